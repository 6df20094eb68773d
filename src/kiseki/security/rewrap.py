"""Re-wrapping: after the master key was rotated, wraps every key anew, so that the old master key can be destroyed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kiseki.security.grouped import each
from kiseki.security.key_store import KeyStore, Rewrapped, WrappedKey, wrap_context
from kiseki.security.master_key import KeyWrapper, wrapped_by

__all__ = ["rewrap", "survey"]


async def survey(store: KeyStore, *, page: int = 500) -> dict[str, int]:
    """How many keys each master key wrapped, by the master key's id. Unwraps nothing.

    Raises WrappedKeyBroken, Unavailable.
    """
    counts: Counter[str] = Counter()
    async for keys in store.scan(page):
        counts.update(wrapped_by(key.wrapped) for _, key in keys)
    return dict(counts)


async def rewrap(
    store: KeyStore, wrapper: KeyWrapper, *, page: int = 500, on_progress: Callable[[int], None] | None = None
) -> int:
    """Wraps with the current master key what another one wrapped; returns how many keys. `on_progress` hears after each
    page how many it is so far.

    Safe while services run, and to run again after it was interrupted. When every process wraps with the current master
    key and this returns 0, the old one is needed no more. Data keys, and so events, stay as they are.

    Raises MasterKeyMissing, WrappedKeyBroken, Unavailable.
    """
    rewrapped = 0
    async for keys in store.scan(page):
        old = [(subject, key) for subject, key in keys if wrapped_by(key.wrapped) != wrapper.key_id]
        if old:
            rewrapped += await store.replace(await each(lambda key: _rewrap(wrapper, *key), old))
            if on_progress is not None:
                on_progress(rewrapped)
    return rewrapped


async def _rewrap(wrapper: KeyWrapper, subject: str, key: WrappedKey) -> Rewrapped:
    context = wrap_context(subject, key.key_id)
    plain = await wrapper.unwrap(key.wrapped, context)
    return Rewrapped(subject, key, await wrapper.wrap(plain, context))
