"""The direct channel's edge: a socket from a consumer's process to a container, and shared memory for large data."""
