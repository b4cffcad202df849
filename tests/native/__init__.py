"""Providers in C in user space: the run time behind ldm.h, and the container's side of it."""
