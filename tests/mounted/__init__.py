"""Level three: real trees, mounted by a real supervisor."""
