"""Commands for the shell. Nothing here is needed to use the package from Python."""
