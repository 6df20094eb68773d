"""The pure centre: what events, commands, deciders and personal data are. No I/O, no clock, no randomness."""
