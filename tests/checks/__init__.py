"""Checks of the source itself, which are part of `make test`."""
