"""The journal on PostgreSQL: one row per commit, group commit in one statement, epochs."""
