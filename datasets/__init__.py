"""What each step gets to see: data sets, scenarios, label tables, transforms."""
