"""Copies of the embedded stores."""
