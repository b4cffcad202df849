"""The supervisor: one process that mounts, starts one process for each container, watches and restarts them.

It is never on the path of a request: kill it, and running containers go on.
"""
