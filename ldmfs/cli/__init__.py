"""The command `ldmfs`: a thin consumer of the devices of `system`, plain errors, exit codes."""
