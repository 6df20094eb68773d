"""Where settings come from: command line, then environment, then a TOML file, then defaults. Used by the command line.

A key that no setting has is an error wherever it stands: a setting that is silently ignored is a hole.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from kiseki.service.settings import ENVIRONMENT_PREFIX, Settings, SettingsError

__all__ = ["CONFIG_FILE", "load_settings"]

CONFIG_FILE: Final = "kiseki.toml"
_TEST_PREFIX: Final = "KISEKI_TEST_"

# Kubernetes gives every container these for every service in its namespace, so a service named `kiseki-command` sets
# KISEKI_COMMAND_PORT=tcp://10.0.0.1:80 (https://kubernetes.io/docs/tutorials/services/connect-applications-service/).
_LINK_NAME: Final = re.compile(
    r"KISEKI(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_LINK_PORT_NAME: Final = re.compile(r"KISEKI(_[A-Z0-9_]+)?_PORT")
_LINK_PORT_VALUE: Final = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def load_settings(
    *,
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    directory: Path,
    config: Path | None = None,
) -> Settings:
    """The settings of this process.

    `options` are those given on the command line (None means not given). `config` names the TOML file; without it
    `kiseki.toml` in `directory` is read if it is there.
    Raises SettingsError, one line, with every problem found.
    """
    file = _config_file(config, directory)
    from_file = {} if file is None else _read_toml(file)
    from_environment = _relevant(environ)
    given = {key: value for key, value in options.items() if value is not None}
    _refuse_unknown(from_file, file, from_environment)
    try:
        return _settings(given, from_environment, from_file)
    except ValidationError as invalid:
        # Defaults that depend on the profile are not computed when something else is wrong; that is no further problem.
        errors = [error for error in invalid.errors() if error["type"] != "default_factory_not_called"]
        raise SettingsError(
            "; ".join(_problem(error, given, from_environment, from_file, file) for error in errors)
        ) from invalid


def _settings(options: Mapping[str, Any], environment: Mapping[str, str], from_file: Mapping[str, Any]) -> Settings:
    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            variables = EnvSettingsSource(settings_cls)
            variables.env_vars = {name.lower(): value for name, value in environment.items()}
            return init_settings, variables, InitSettingsSource(settings_cls, dict(from_file))

    return Loaded(**options)


def _config_file(config: Path | None, directory: Path) -> Path | None:
    if config is None:
        usual = directory / CONFIG_FILE
        return usual if usual.is_file() else None
    if not config.is_file():
        raise SettingsError(f"there is no configuration file {config}; check --config")
    return config


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as problem:
        raise SettingsError(f"{file} is not valid TOML: {problem}") from problem
    except UnicodeDecodeError as problem:
        raise SettingsError(f"{file} is not valid TOML: it is not UTF-8") from problem
    except OSError as problem:
        raise SettingsError(f"{file} can't be read: {problem.strerror}") from problem


def _relevant(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that mean kiseki's settings."""
    return {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(ENVIRONMENT_PREFIX)
        and not name.startswith(_TEST_PREFIX)
        and not _is_service_link(name, value)
    }


def _is_service_link(name: str, value: str) -> bool:
    if _LINK_NAME.fullmatch(name):
        return True
    return _LINK_PORT_NAME.fullmatch(name) is not None and _LINK_PORT_VALUE.fullmatch(value) is not None


def _refuse_unknown(from_file: Mapping[str, Any], file: Path | None, environment: Mapping[str, str]) -> None:
    known = sorted(Settings.model_fields)
    problems = [f"unknown setting {key!r} in {file}{_suggestion(key, known)}" for key in from_file if key not in known]
    names = [_variable(key) for key in known]
    problems += [
        f"unknown setting {name} in the environment{_suggestion(name, names)}"
        for name in sorted(environment)
        if name not in names
    ]
    if problems:
        raise SettingsError("; ".join(problems))


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "; remove it"


def _variable(key: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{key.upper()}"


def _problem(
    error: Any,
    options: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, Any],
    file: Path | None,
) -> str:
    """One problem of pydantic's in the words of whoever set the value. The value itself is not repeated."""
    key = str(error["loc"][0]) if error["loc"] else ""
    if key in options:
        where = f"--{key.replace('_', '-')}"
    elif _variable(key) in environment:
        where = f"{_variable(key)} in the environment"
    elif key in from_file:
        where = f"{key!r} in {file}"
    else:
        where = key
    message = str(error["msg"])
    return f"{where} can't be used: {message[:1].lower()}{message[1:]}"
