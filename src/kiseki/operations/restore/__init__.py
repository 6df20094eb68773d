"""Bringing a system back: what to start from, the order that mixes nothing, whole clusters, read models."""
