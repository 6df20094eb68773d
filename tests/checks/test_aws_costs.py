"""The tables of docs/aws-costs.md are what tools/aws_costs.py computes."""

from __future__ import annotations

import pytest

from tools.aws_costs import BEGIN, HOURS, PAGE, PRICES, SIZES, Line, idle, main, per_million, written


def test_the_page_is_written_anew_with_every_change() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == written(text), "run python tools/aws_costs.py --write"


def test_a_page_without_its_markers_is_left_alone() -> None:
    with pytest.raises(ValueError, match="lacks"):
        written(f"no end\n{BEGIN}\n")


def test_a_line_is_a_price_times_its_quantities() -> None:
    line = Line("tasks", [(3, "tasks"), (2, "vCPU"), (HOURS, "h")], "Fargate, ARM: vCPU")
    assert line.dollars == pytest.approx(3 * 2 * 730 * PRICES["Fargate, ARM: vCPU"][0])
    assert line.arithmetic == "3 tasks × 2 vCPU × 730 h × $0.03238"


def test_every_price_is_used() -> None:
    lines = [line for size in SIZES for line in idle(size)]
    lines += [line for part in per_million().values() for line in part]
    assert {line.price for line in lines} <= PRICES.keys()


def test_a_wrong_argument_is_answered_with_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--wriet"]) == 2
    assert "usage:" in capsys.readouterr().err
