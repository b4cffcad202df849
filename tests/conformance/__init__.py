"""Every bundled provider's devices against the conformance suite."""
