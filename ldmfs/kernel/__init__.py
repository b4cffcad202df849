"""The kernel's edge: the devices of the module ldm, by their character devices, and what /sys tells of them."""
