"""How a step is trained and scored, and where it runs."""
