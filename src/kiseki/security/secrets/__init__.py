"""Secrets of settings: references to files, AWS Secrets Manager and Vault, read again after they were rotated."""
