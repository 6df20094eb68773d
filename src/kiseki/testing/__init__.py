"""What users import to test their own contexts and stores."""

from kiseki.testing.deciders import Decided, Given, Scenario, scenario

__all__ = ["Decided", "Given", "Scenario", "scenario"]
