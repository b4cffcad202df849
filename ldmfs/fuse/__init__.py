"""The file edge: a container's devices as files of a FUSE mount, through pyfuse3."""
