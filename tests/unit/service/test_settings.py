"""Unit: settings, their sources and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import kiseki
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.settings_sources import load_settings


def load(
    directory: Path,
    *,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    toml: str | None = None,
    config: Path | None = None,
) -> Settings:
    if toml is not None:
        (directory / "kiseki.toml").write_text(toml, encoding="utf-8")
    return load_settings(options=options or {}, environ=environ or {}, directory=directory, config=config)


def refusal(directory: Path, **given: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        load(directory, **given)
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_defaults_are_those_of_development(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.development
    assert (settings.host, settings.command_port, settings.query_port, settings.management_port) == (
        "127.0.0.1",
        18080,
        18082,
        8558,
    )
    assert settings.data_dir == Path("data")
    assert (settings.drain_delay, settings.log_format, settings.termination_grace) == (3.0, "console", None)
    assert (settings.body_limit, settings.keep_alive, settings.consistency_wait) == (65_536, 75.0, 2.0)


def test_defaults_of_production(tmp_path: Path) -> None:
    settings = load(tmp_path, environ={"KISEKI_PROFILE": "production"})
    assert (settings.drain_delay, settings.log_format, settings.termination_grace) == (30.0, "json", 120.0)


def test_what_is_given_beats_the_default_of_the_profile(tmp_path: Path) -> None:
    environ = {"KISEKI_PROFILE": "production", "KISEKI_DRAIN_DELAY": "1.5", "KISEKI_LOG_FORMAT": "console"}
    settings = load(tmp_path, environ=environ)
    assert (settings.drain_delay, settings.log_format) == (1.5, "console")


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        options={"command_port": 1, "workers": None},
        environ={"KISEKI_COMMAND_PORT": "2", "KISEKI_QUERY_PORT": "2", "KISEKI_WORKERS": "2"},
        toml="command_port = 3\nquery_port = 3\nmanagement_port = 3\n",
    )
    assert (settings.command_port, settings.query_port, settings.management_port) == (1, 2, 3)
    assert (settings.workers, settings.host) == (2, "127.0.0.1")


def test_a_named_file_is_read_instead_of_the_usual_one(tmp_path: Path) -> None:
    named = tmp_path / "other.toml"
    named.write_text("workers = 4\n")
    settings = load(tmp_path, toml="workers = 2\n", config=named)
    assert settings.workers == 4


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    assert "missing.toml" in refusal(tmp_path, config=tmp_path / "missing.toml")


@pytest.mark.parametrize("name", ["KISEKI_WORKRES", "KISEKI_", "KISEKI_SECRET", "kiseki_workers"])
def test_an_unknown_variable_is_an_error(tmp_path: Path, name: str) -> None:
    assert name in refusal(tmp_path, environ={name: "2"})


def test_an_unknown_key_in_the_file_is_an_error(tmp_path: Path) -> None:
    text = refusal(tmp_path, toml="wrokers = 2\n[http]\nbody = 3\n")
    assert "'wrokers'" in text
    assert "'http'" in text
    assert "kiseki.toml" in text
    assert "did you mean workers?" in text


def test_a_file_that_is_not_toml_is_an_error_with_its_place(tmp_path: Path) -> None:
    text = refusal(tmp_path, toml="workers = = 2\n")
    assert "kiseki.toml" in text
    assert "line 1" in text


def test_every_bad_value_is_named_with_where_it_was_set(tmp_path: Path) -> None:
    text = refusal(
        tmp_path,
        options={"command_port": 70_000},
        environ={"KISEKI_WORKERS": "many", "KISEKI_PROFILE": "prod"},
        toml="body_limit = 1\n",
    )
    assert "--command-port" in text
    assert "KISEKI_WORKERS in the environment" in text
    assert "KISEKI_PROFILE in the environment" in text
    assert "'body_limit' in " in text
    assert "many" not in text
    assert "default factory" not in text


def test_variables_of_tests_are_passed_over(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"KISEKI_TEST_POSTGRES_URL": "postgresql://x"}).workers == 1


def test_service_links_of_kubernetes_are_passed_over(tmp_path: Path) -> None:
    # A service named `kiseki-command` makes a variable with the name of a setting.
    links = {
        "KISEKI_SERVICE_HOST": "10.0.0.1",
        "KISEKI_SERVICE_PORT": "18080",
        "KISEKI_SERVICE_PORT_HTTP": "18080",
        "KISEKI_PORT": "tcp://10.0.0.1:18080",
        "KISEKI_COMMAND_SERVICE_HOST": "10.0.0.1",
        "KISEKI_COMMAND_PORT": "tcp://10.0.0.1:18080",
        "KISEKI_COMMAND_PORT_18080_TCP": "tcp://10.0.0.1:18080",
        "KISEKI_COMMAND_PORT_18080_TCP_PROTO": "tcp",
        "KISEKI_COMMAND_PORT_18080_TCP_PORT": "18080",
        "KISEKI_COMMAND_PORT_18080_TCP_ADDR": "10.0.0.1",
    }
    assert load(tmp_path, environ=links).command_port == 18080
    assert load(tmp_path, environ={**links, "KISEKI_QUERY_PORT": "9"}).query_port == 9


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        settings.workers = 3  # type: ignore[misc]


def test_every_setting_is_used_somewhere() -> None:
    package = Path(kiseki.__file__).parent
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
        if path.name not in ("settings.py", "settings_sources.py")
    )
    own = (package / "service" / "settings.py").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"settings.{name}" in source or f"self.{name}" in own, f"nothing reads the setting {name}"


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
