"""When a test gives up waiting for another program."""

HANGS_S = 900
"""After this time a command hangs: on a machine that others use, one of a minute takes ten."""
