"""Unit: docs/metrics.md documents every metric that CloudWatch gets, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from kiseki.operations.dr.ages import AGES
from kiseki.service.embedded_metrics import EMBEDDED
from kiseki.service.lambda_records import Counts

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_has_all_of_them() -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [*EMBEDDED, *AGES]


def test_the_page_has_those_of_the_function() -> None:
    (sentence,) = re.findall(r"dimension `function`: ([^(]*)", PAGE.read_text("utf-8"))
    assert re.findall(r"`(\w+)`", sentence) == list(Counts.__struct_fields__)
