"""The write side: load, decide, append, one aggregate at a time."""
