"""Unit: what is unsafe about settings."""

from __future__ import annotations

import pytest

from kiseki.service.checks import UnsafeSettings, findings, refuse_unsafe
from kiseki.service.settings import Settings


def names(**given: object) -> list[str]:
    return [finding.name for finding in findings(Settings(**given))]  # type: ignore[arg-type]


def test_development_is_fine_as_it_is() -> None:
    assert names() == []
    refuse_unsafe(Settings())


def test_production_names_what_is_missing() -> None:
    assert names(profile="production") == ["authentication", "transport"]
    with pytest.raises(UnsafeSettings) as refused:
        refuse_unsafe(Settings(profile="production"))
    first, *others = str(refused.value).splitlines()
    assert first == "the production profile refuses to start; 2 findings:"
    assert [line.split(":")[0] for line in others] == ["  - authentication", "  - transport"]


def test_inner_times_have_to_be_shorter_than_outer_ones() -> None:
    assert names(request_timeout=11) == ["shutdown"]
    assert names(request_timeout=11, requests_done_timeout=11) == []
    assert names(consistency_wait=10) == ["timeouts"]


def test_a_shutdown_has_to_fit_in_what_the_platform_gives() -> None:
    assert names(termination_grace=30) == ["shutdown"]
    assert names(termination_grace=41) == []
    assert "shutdown" in names(profile="production", termination_grace=30)
    assert "shutdown" not in names(profile="production")
