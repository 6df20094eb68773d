"""The read side: read-model database, query definitions, and waiting for one's own writes."""
