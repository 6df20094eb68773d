"""The write store: one contract (`port`), one module per store. Every store passes the same conformance suite."""
