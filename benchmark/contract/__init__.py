"""Does a method behave: the contract check."""
