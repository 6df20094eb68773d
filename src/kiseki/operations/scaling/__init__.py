"""How far a service may grow: tasks, database connections, capacity of DynamoDB. Planned, checked, and compared."""
