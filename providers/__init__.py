"""The bundled providers, one file each: the module's docstring is its manual."""
