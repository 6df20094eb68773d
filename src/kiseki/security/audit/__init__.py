"""What happened that matters for security: a log that can't be changed unseen, and what reads and verifies it."""
