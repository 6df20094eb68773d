"""`masking_of`: what masks the secrets of a process's settings in everything it logs. Used by the command line."""

from __future__ import annotations

from kiseki.security.masking import Masker
from kiseki.service.settings import Settings

__all__ = ["masking_of"]


def masking_of(settings: Settings) -> Masker:
    """A masker that knows the values of all secret settings, beside what looks like a secret."""
    masker = Masker()
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        # A password inside a URL is known by its place; the rest of the URL says where something is.
        if not field.repr and isinstance(value, str) and value and ":" not in value:
            masker.add(value)
    return masker
