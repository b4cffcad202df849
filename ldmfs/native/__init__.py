"""Providers in C in user space: the same sources as in the kernel, as shared objects that a container loads."""
