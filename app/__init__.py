"""What a person runs: the command line and everything behind it."""
