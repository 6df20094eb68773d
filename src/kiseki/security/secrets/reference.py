"""`SecretReference`: what a setting says about where its secret is.

    file:///run/secrets/token                   a file of this machine
    aws-sm://prod/db?region=eu-west-1#password  AWS Secrets Manager, the whole text or one key of a JSON object
    vault://kv/prod/db#password                 a field in KV version 2 of Vault or OpenBao
    anything else                               the secret itself

There is no `env:`: a setting can come from the environment as it is.
"""

from __future__ import annotations

import re
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import parse_qsl, unquote

import msgspec

from kiseki.kernel.errors import KisekiError

__all__ = ["SecretReference", "SecretReferenceInvalid"]

Kind: TypeAlias = Literal["plain", "file", "aws-sm", "vault"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):(//)?")
_KINDS: Final[tuple[Kind, ...]] = ("file", "aws-sm", "vault")
_URLS: Final = frozenset({"postgresql", "postgres", "redis", "rediss", "http", "https", "dynamodb", "sqlite"})
"""Schemes of settings that are URLs, and may hold a secret themselves."""
_NEVER: Final = frozenset({"env", "file", "vault", "aws-sm"})
_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
_AWS_NAME: Final = re.compile(r"[A-Za-z0-9/_+=.@:!-]{1,2048}")
_VAULT_PART: Final = re.compile(r"[A-Za-z0-9_.@+ -]{1,200}")
_FIELD: Final = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


class SecretReferenceInvalid(KisekiError):
    """A reference to a secret can't be understood. The message does not show it: it may be a secret itself."""

    code = "SECRET_REFERENCE"


class SecretReference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a secret is; of a plain one the secret itself is here, so this is never shown but by its label."""

    kind: Kind
    name: str
    """The path of a file, the id or ARN in AWS, `mount/path` in Vault, or the plain secret."""
    field: str = ""
    """The key of a JSON object, or the field."""
    region: str = ""
    """In AWS; empty for the one of the environment."""
    endpoint: str = ""

    @property
    def label(self) -> str:
        """For messages, logs and the audit log."""
        if self.kind == "plain":
            return "a plain value"
        return f"{self.kind}://{self.name}" + (f"#{self.field}" if self.field else "")

    def __repr__(self) -> str:
        return f"SecretReference({self.label})"

    __str__ = __repr__

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a setting's value. Raises SecretReferenceInvalid for what is nearly a reference: taken as it is, it
        would be a secret that anybody can guess."""
        scheme = _SCHEME.match(text)
        if scheme is None:
            return cls(kind="plain", name=text)
        word, slashes = scheme[1].lower(), scheme[2]
        kind = next((each for each in _KINDS if text.startswith(f"{each}://")), None)
        if kind is None:
            if (slashes and word not in _URLS) or word in _NEVER:
                raise SecretReferenceInvalid(
                    "a reference to a secret is file:///path, aws-sm://id?region=eu-west-1#key or "
                    "vault://mount/path#field"
                )
            return cls(kind="plain", name=text)
        rest = text[len(kind) + 3 :]
        if kind == "file":
            return cls(kind=kind, name=_file(rest))
        rest, _, field = rest.partition("#")
        name, _, query = rest.partition("?")
        if field and (not _FIELD.fullmatch(unquote(field)) or "?region=" in field):
            raise SecretReferenceInvalid("the #key of a reference to a secret comes last, after ?parameters")
        parameters = _parameters(query)
        if kind == "aws-sm":
            return cls._aws(name, unquote(field), parameters)
        return cls._vault(name, unquote(field), parameters)

    @classmethod
    def _aws(cls, name: str, field: str, parameters: dict[str, str]) -> Self:
        name = unquote(name)
        if not _AWS_NAME.fullmatch(name) or not parameters.keys() <= {"region", "endpoint"}:
            raise SecretReferenceInvalid("a secret in AWS is aws-sm://id?region=eu-west-1#key; the key may be left out")
        region = parameters.get("region", "")
        if not region and name.startswith("arn:") and name.count(":") >= 6:
            region = name.split(":")[3]
        if region and not _REGION.fullmatch(region):
            raise SecretReferenceInvalid("the region of a secret in AWS is one such as eu-west-1")
        return cls(kind="aws-sm", name=name, field=field, region=region, endpoint=parameters.get("endpoint", ""))

    @classmethod
    def _vault(cls, name: str, field: str, parameters: dict[str, str]) -> Self:
        parts = [unquote(part) for part in name.split("/")]
        good = len(parts) >= 2 and all(_VAULT_PART.fullmatch(part) and part not in (".", "..") for part in parts)
        if not good or not field or parameters:
            raise SecretReferenceInvalid("a secret in Vault is vault://mount/path#field, in KV version 2")
        return cls(kind="vault", name="/".join(parts), field=field)


def _file(rest: str) -> str:
    path = unquote(rest)
    if not path.startswith("/") or path.startswith("//") or "\0" in path or "#" in rest or "?" in rest:
        raise SecretReferenceInvalid("a secret in a file is file:///path, with three slashes, and nothing after it")
    return path


def _parameters(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise SecretReferenceInvalid("a reference to a secret gives a parameter twice")
    return parameters
