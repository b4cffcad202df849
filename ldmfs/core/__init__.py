"""The model without I/O: devices, consumers, requests, errors, and the dispatch between them.

Nothing below this package knows trio, pyfuse3, sockets or /proc; all of it is tested without a mount.
"""
