"""A container's process and what it shares, without a mount."""
