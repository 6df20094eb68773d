"""Measurements of kiseki against an ordinary stack and against a bare server."""
