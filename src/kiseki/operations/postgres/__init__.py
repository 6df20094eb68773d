"""Copies of the stores on PostgreSQL."""
