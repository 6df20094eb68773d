"""What protects a service: who is asking, what they may do, personal data and its keys."""
