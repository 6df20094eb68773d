"""Who is asking: bearer tokens, the keys they are verified with, what was revoked, and tokens of one's own."""
