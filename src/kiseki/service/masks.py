"""`masking_of`: what masks the secrets of a process's settings in everything it logs. Used by the command line."""

from __future__ import annotations

from kiseki.security.masking import Masker
from kiseki.security.secrets.reference import SecretReference, SecretReferenceInvalid
from kiseki.service.checks import SECRETS
from kiseki.service.limits import IN_MEMORY
from kiseki.service.settings import Settings

__all__ = ["masking_of"]


def masking_of(settings: Settings) -> Masker:
    """A masker that knows the values of all secret settings, beside what looks like a secret."""
    masker = Masker()
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if not field.repr:
            for text in (value,) if isinstance(value, str) else value:
                if _is_secret(name, text):
                    masker.add(text)
    return masker


def _is_secret(name: str, text: str) -> bool:
    # A password inside a URL is known by its place; the rest of the URL says where something is.
    if name not in SECRETS:
        return bool(text) and ":" not in text and (name, text) != ("rate_store", IN_MEMORY)
    try:
        return bool(text) and SecretReference.parse(text).kind == "plain"
    except SecretReferenceInvalid:
        return True  # nearly a reference, or a secret that looks like one
