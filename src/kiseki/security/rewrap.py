"""Re-wrapping: after the master key was rotated, wraps every key anew, so that the old master key can be destroyed."""

from __future__ import annotations

from kiseki.security.grouped import each
from kiseki.security.key_store import KeyStore, Rewrapped, WrappedKey, wrap_context
from kiseki.security.master_key import KeyWrapper, wrapped_by

__all__ = ["rewrap"]


async def rewrap(store: KeyStore, wrapper: KeyWrapper, *, page: int = 500) -> int:
    """Wraps with the current master key what another one wrapped; returns how many keys.

    Safe while services run, and to run again after it was interrupted. When every process wraps with the current master
    key and this returns 0, the old one is needed no more. Data keys, and so events, stay as they are.

    Raises MasterKeyMissing, WrappedKeyBroken, Unavailable.
    """
    rewrapped = 0
    async for keys in store.scan(page):
        old = [(subject, key) for subject, key in keys if wrapped_by(key.wrapped) != wrapper.key_id]
        if old:
            rewrapped += await store.replace(await each(lambda key: _rewrap(wrapper, *key), old))
    return rewrapped


async def _rewrap(wrapper: KeyWrapper, subject: str, key: WrappedKey) -> Rewrapped:
    context = wrap_context(subject, key.key_id)
    plain = await wrapper.unwrap(key.wrapped, context)
    return Rewrapped(subject, key, await wrapper.wrap(plain, context))
