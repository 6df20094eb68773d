"""What users import to test their own contexts and stores."""

from kiseki.testing.deciders import Decided, Given, Scenario, scenario
from kiseki.testing.projections import Following, following

__all__ = ["Decided", "Following", "Given", "Scenario", "following", "scenario"]
