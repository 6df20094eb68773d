"""The GraphQL command and query APIs: schema from commands and queries, document cache, limits, errors."""
