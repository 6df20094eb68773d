"""Backups: making, listing, verifying, removing and restoring them, whatever the store."""
