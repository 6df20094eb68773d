"""Continuous protection: what is new is copied every minute, so that little is lost with a machine."""
