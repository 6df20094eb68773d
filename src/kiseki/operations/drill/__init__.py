"""Disaster drills: a copy of the system is destroyed under load, and what recovery cost is measured."""
