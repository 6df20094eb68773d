"""Erasures that outlive every restore: the ledger, its stores, and replaying it."""
