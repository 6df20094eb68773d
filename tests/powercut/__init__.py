"""A power-cut simulator: record what a program does to files, rebuild what a cut would leave."""
