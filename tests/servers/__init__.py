"""Real servers for tests and benchmarks: throw-away PostgreSQL clusters and an emulator of AWS."""
