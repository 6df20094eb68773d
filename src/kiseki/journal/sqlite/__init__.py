"""The embedded journal: one SQLite file, group commit in one writing thread."""
