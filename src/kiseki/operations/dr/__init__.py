"""Two regions, of which one writes: failover, failback, and how things stand. Used by `kiseki dr`."""
