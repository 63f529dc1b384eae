"""What the user asked for: the subcommands."""
