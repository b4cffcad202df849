"""The consumer's side: where the tree is, and the way to a device."""
