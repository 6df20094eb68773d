"""Which key store belongs to a journal: `bind_key_store`, called by whoever opens both, before anything is served.

With another key store, or one newly made because its file was not put back, nothing that is sealed could be opened,
idempotency keys would be forgotten and claims could be taken twice, because the root of keyed hashes is another one. So
a journal remembers its key store: as a claim, which every store keeps, exports and compares already.
"""

from __future__ import annotations

from typing import Final

from kiseki.journal.port import START, ClaimTaken
from kiseki.journal.transfer.transferable import HeldClaim, TransferableJournal
from kiseki.kernel.codec import SEALED_MARK
from kiseki.kernel.errors import KisekiError
from kiseki.security.digests import Digests
from kiseki.security.key_store import KeyStore

__all__ = ["BINDING_SCOPE", "BINDING_VALUE", "KeyStoreForeign", "bind_key_store"]

BINDING_SCOPE: Final = "$key-store"
"""No decider can name such a scope."""
BINDING_VALUE: Final = "$key-store"

_SAMPLE: Final = 100
_SEALED: Final = SEALED_MARK.encode()


class KeyStoreForeign(KisekiError):
    """The key store is not the one that the journal was written with. Nothing was changed."""

    code = "KEY_STORE_FOREIGN"


async def bind_key_store(journal: TransferableJournal, key_store: KeyStore, digests: Digests) -> None:
    """Makes sure that the two belong together; the first time, notes in the journal that they do.

    The key store also has to know somebody among those in the oldest commits, for journals from before there were such
    notes, and for copies from before there was anybody. Costs a page and a write, whatever the journal's size.
    Raises KeyStoreForeign, Unavailable, CorruptJournal.
    """
    await _compare(journal, key_store)
    own = f"KeyStore-{digests.key_store_id}"
    try:
        await journal.restore_held([HeldClaim(BINDING_SCOPE, BINDING_VALUE, own)], [])
    except ClaimTaken:
        raise _foreign() from None


async def _compare(journal: TransferableJournal, key_store: KeyStore) -> None:
    page = await journal.feed(START, limit=_SAMPLE)
    subjects = {
        event.subject or commit.stream
        for commit in page.commits
        for event in commit.events
        if _SEALED in bytes(event.data)
    }
    if subjects and not await key_store.load(subjects):
        raise _foreign()


def _foreign() -> KeyStoreForeign:
    return KeyStoreForeign(
        "the key store is not the one this journal was written with; put its newest copy back, or check where `keys` "
        "leads"
    )
