"""What users import to test their own contexts and stores.

`kiseki.testing.journal_conformance` is the suite for stores; it needs pytest and hypothesis and is imported by name.
"""

from kiseki.testing.application import RunningApplication, running
from kiseki.testing.deciders import Decided, Given, Scenario, scenario
from kiseki.testing.projections import Following, following

__all__ = ["Decided", "Following", "Given", "RunningApplication", "Scenario", "following", "running", "scenario"]
