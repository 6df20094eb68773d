"""The read-model database on PostgreSQL: one schema for each build."""
