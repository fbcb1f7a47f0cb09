"""One module for each command: its options and help. Heavy packages are imported only when it runs."""
