"""The tests behind `kiseki.testing.journal_conformance`, by theme, and what they are made of."""
