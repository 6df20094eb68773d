"""The embedded read-model database: a directory with one SQLite file for each build."""
