"""Level four: the command line as a user runs it."""
