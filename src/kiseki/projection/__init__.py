"""From journal to read model: what a projection is, and the machinery that applies every event exactly once."""
