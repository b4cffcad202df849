"""The direct channel's edge: a socket between a consumer's process and a container, and shared memory for large data."""
