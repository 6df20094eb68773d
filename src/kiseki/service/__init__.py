"""A running process: settings, HTTP, health, metrics, logging, shutdown, and the only composition root."""
