"""The documents say what is so: their sessions run, their programs work, their tables agree with the code."""
