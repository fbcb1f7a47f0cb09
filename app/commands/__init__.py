"""The commands' options and help, one file each; what a command works with is imported only when it runs."""
