"""The container: one process that hosts providers, one fault domain, one name space of devices."""
