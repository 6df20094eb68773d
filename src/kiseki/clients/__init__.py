"""Clients of stores that several rooms use: connections to PostgreSQL, signed calls to DynamoDB."""
