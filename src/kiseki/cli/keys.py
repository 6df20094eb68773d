"""`kiseki keys status` and `kiseki keys rotate`: which master keys wrap the keys of personal data, and moving on.

Rotation never touches an event: the data keys of subjects stay, and are wrapped anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec

from kiseki.cli.output import people_table, print_table, progress_bar
from kiseki.kernel.ports import AuditEvent, Auditor
from kiseki.security.key_store import KeyStore
from kiseki.security.master_keys import MasterKeys
from kiseki.security.rewrap import rewrap, survey

__all__ = ["OpenKeys", "rotate", "status"]


class OpenKeys(NamedTuple):
    """What these commands work on, open."""

    store: KeyStore
    master_keys: MasterKeys
    auditor: Auditor
    actor: str | None = None
    """Who works here, for the audit log."""


def status(*, opened: Callable[[], AbstractAsyncContextManager[OpenKeys]], json: bool) -> int:
    """Prints how many keys each master key wrapped; 1 when some can't be read with the master keys there are.

    Raises WrappedKeyBroken, Unavailable, and what `opened` raises.
    """

    async def look() -> tuple[dict[str, int], str, list[str]]:
        async with opened() as keys:
            counts = await survey(keys.store)
            # After it: a key in Vault may have been seen to be a newer version.
            current = keys.master_keys.key_id
            return counts, current, [each for each in counts if not keys.master_keys.reads(each)]

    counts, current, missing = asyncio.run(look())
    if json:
        print(msgspec.json.encode({"current": current, "keys": counts, "missing": missing}).decode())
        return 1 if missing else 0
    table = people_table("master keys", "master key", "keys", "state")
    for key_id in sorted({current, *counts}, key=lambda each: (each != current, each)):
        state = "wraps" if key_id == current else "MISSING" if key_id in missing else "read with, until `keys rotate`"
        table.add_row(key_id, f"{counts.get(key_id, 0):,}", state)
    print_table(table)
    if missing:
        print("keys can't be read without the master keys that are missing: name them in master_keys_previous")
    elif set(counts) <= {current}:
        print("no key needs another master key than the current one")
    return 1 if missing else 0


def rotate(*, opened: Callable[[], AbstractAsyncContextManager[OpenKeys]], json: bool) -> int:
    """Wraps with the current master key what others wrapped, with a progress bar, and says whether the others are still
    needed; 1 when they are. Safe while services run; after an interruption, again.

    Raises MasterKeyMissing, WrappedKeyBroken, AuditUnavailable, Unavailable, and what `opened` raises.
    """
    done, current, left = asyncio.run(_rotate(opened))
    if json:
        print(msgspec.json.encode({"current": current, "rewrapped": done, "left": left}).decode())
    else:
        print(f"{done:,} keys were wrapped anew by {current}")
        if left:
            others = ", ".join(f"{key_id} ({count:,})" for key_id, count in sorted(left.items()))
            print(f"others are still needed: {others}; give all processes the new master key, and run this again")
        else:
            print(
                "no key needs an older master key: when every process has the new one, run this once more, take the "
                "old ones out of master_keys_previous, and destroy them once no backup of keys is older than this"
            )
    return 1 if left else 0


async def _rotate(
    opened: Callable[[], AbstractAsyncContextManager[OpenKeys]],
) -> tuple[int, str, Mapping[str, int]]:
    async with opened() as keys:
        before = await survey(keys.store)
        current = keys.master_keys.key_id
        # First: what is recorded only afterwards is lost by an interruption.
        await keys.auditor.record(_event(keys, current, "done", "begins"))
        try:
            old = sum(count for key_id, count in before.items() if key_id != current)
            with progress_bar("wrapping anew", old) as advance_to:
                done = await rewrap(keys.store, keys.master_keys, on_progress=advance_to)
            after = await survey(keys.store)
        except BaseException:
            keys.auditor.note(_event(keys, current, "failed", "was interrupted"))
            raise
        current = keys.master_keys.key_id
        left = {key_id: count for key_id, count in after.items() if key_id != current}
        await keys.auditor.record(_event(keys, current, "done", f"{done} keys wrapped anew, {sum(left.values())} left"))
        return done, current, left


def _event(keys: OpenKeys, key_id: str, outcome: str, detail: str) -> AuditEvent:
    return AuditEvent(
        kind="key.master_changed",
        outcome=outcome,
        actor=keys.actor,
        operation="keys rotate",
        target=key_id,
        detail=detail,
    )
