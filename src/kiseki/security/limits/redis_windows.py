"""`RedisWindows`: the windows of rate limits in Redis or Valkey, shared by processes. Needs `kiseki[redis]`.

The same algorithm as in `windows`: one number for each slot of a window that has units, one value for each key. One
script makes a check atomic and takes the time from the server, so that no clock of a client counts. When the server's
clock was set back, units from what is now the future are dated anew, to now: they count longer, never shorter.

A key is the policy's name and window and a keyed hash: neither a subject nor an address can be read out of Redis.
Every key ends by itself when its last unit counts no more. The server must not evict keys (`maxmemory-policy
noeviction`): an evicted key is a limit set back. Imported by the composition root, and only where Redis is used.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from kiseki.kernel.errors import DefinitionError, KisekiError
from kiseki.security.limits.redis_address import RedisAddress
from kiseki.security.limits.shared_store import SharedTake, SharedWindowsUnavailable
from kiseki.security.limits.verdict import SLOTS, LimitPolicy

__all__ = ["RedisWindows"]

_CONNECT_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 1.0
_CONNECTIONS: Final = 16
_KEY_HEX: Final = 32
_MICROSECONDS: Final = 1_000_000

# All numbers are exact: microseconds of the epoch stay below 2^53. An entry is 12 bytes: slot (double), units (uint32).
_SCRIPT: Final = """
local limit, cost = tonumber(ARGV[1]), tonumber(ARGV[2])
local width, slots = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local slot = math.floor(now / width)
local stored = redis.call('GET', KEYS[1]) or ''
if #stored % 12 ~= 0 then
  return redis.error_reply('ERR a damaged rate limit')
end
local first, stop, used, future, newest, newest_units = 1, 0, 0, 0, nil, 0
for at = 1, #stored, 12 do
  local when, units = struct.unpack('>dI4', stored, at)
  if when > slot then
    future = future + units
  else
    stop = at + 11
    if when < slot - slots then
      first = at + 12
    else
      used, newest, newest_units = used + units, when, units
    end
  end
end
used = used + future
local allowed = used + cost <= limit
local added = future
if allowed then
  used, added = used + cost, added + cost
end
if added > 0 then
  if newest == slot then
    added, stop = added + newest_units, stop - 12
  end
  newest = slot
  stored = string.sub(stored, first, stop) .. struct.pack('>dI4', slot, added)
  redis.call('SET', KEYS[1], stored, 'PX', math.ceil(width * (slots + 1) / 1000) + 1000)
  first = 1
end
local reset, wait = 0, 0
if newest then
  reset = (newest + slots + 1) * width - now
end
if not allowed then
  local missing = used + cost - limit
  wait = width * slots
  for at = first, #stored, 12 do
    local when, units = struct.unpack('>dI4', stored, at)
    missing = missing - units
    if missing <= 0 then
      wait = (when + slots + 1) * width - now
      break
    end
  end
end
return {allowed and 1 or 0, used, reset, wait}
"""
_DIGEST: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class _Link:
    """The client of one address. Once another takes its place, it is closed when the calls under way have ended."""

    __slots__ = ("calls", "client", "retired")

    def __init__(self, address: RedisAddress) -> None:
        # Any: the library's own commands have no types.
        self.client: Any = _connect(address)
        self.calls = 0
        self.retired = False


class RedisWindows:
    """A WindowStore in one Redis server (or what stands for one behind an address: a primary, a proxy).

    A failover to a replica loses what was not replicated yet; what each process allows is bounded by its own half.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        digest: Callable[[str, str], str],
        prefix: str = "kiseki:limit:1:",
        renew: Callable[[], Awaitable[RedisAddress]] | None = None,
    ) -> None:
        """`digest` hashes a key under a secret that all processes share (the Protector's). `renew` gives the address
        anew when the server refuses the password, which may have been rotated; it may raise KisekiError. Connects when
        first used; belongs to one event loop. Raises DefinitionError."""
        if not prefix.isascii() or not prefix.isprintable() or len(prefix) > 64:
            raise DefinitionError("the prefix of rate limits in Redis is at most 64 printable ASCII characters")
        self._address = address
        self._digest = digest
        self._prefix = prefix
        self._renew = renew
        self._link: _Link | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, policy: LimitPolicy, key: str, cost: int) -> SharedTake:
        """As WindowStore."""
        width = -(-policy.window * _MICROSECONDS // SLOTS)
        hashed = self._digest(f"limit/{policy.name}", key)[:_KEY_HEX]
        arguments = (1, f"{self._prefix}{policy.name}:{policy.window}:{hashed}", policy.limit, cost, width, SLOTS)
        link = self._connected()
        try:
            answer = await self._run(link, arguments)
        except (RedisError, OSError) as problem:
            reason = _reason(problem)
            renewed = await self._renewed(link) if reason == "denied" else None
            if renewed is None:
                raise SharedWindowsUnavailable(reason) from problem
            # What was denied has not counted.
            try:
                answer = await self._run(renewed, arguments)
            except (RedisError, OSError) as again:
                raise SharedWindowsUnavailable(_reason(again)) from again
        match answer:
            case [0 | 1 as allowed, int(used), int(reset), int(wait)]:
                return SharedTake(
                    allowed=allowed == 1, used=used, reset_after=reset / _MICROSECONDS, wait=wait / _MICROSECONDS
                )
        raise SharedWindowsUnavailable("unreadable")

    async def close(self) -> None:
        """As WindowStore."""
        self._closed = True
        link, self._link = self._link, None
        if link is not None:
            await link.client.aclose()
        if self._closing:
            await asyncio.wait(self._closing)

    def use(self, address: RedisAddress) -> None:
        """From the next call on this one. The same address is no change: its connections stay."""
        if all(getattr(address, name) == getattr(self._address, name) for name in RedisAddress.__slots__):
            return
        self._address = address
        link, self._link = self._link, None
        if link is not None:
            link.retired = True
            self._let_go(link)

    async def _renewed(self, denied: _Link) -> _Link | None:
        """Another connection than the one that was denied, when there is another address by now."""
        if self._renew is None or self._closed:
            return None
        try:
            self.use(await self._renew())
        except KisekiError:
            return None  # said by whoever read it; what is known stays in use
        return self._connected() if denied.retired and not self._closed else None

    def _connected(self) -> _Link:
        if self._closed:
            raise SharedWindowsUnavailable("closed")
        if self._link is None:
            self._link = _Link(self._address)
        return self._link

    def _let_go(self, link: _Link) -> None:
        if link.retired and not link.calls:
            task = asyncio.create_task(link.client.aclose(), name="old connections of rate limits")
            self._closing.add(task)
            task.add_done_callback(self._let_gone)

    def _let_gone(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # seen: what was let go of may fail as it likes

    async def _run(self, link: _Link, arguments: tuple[int | str, ...]) -> Any:
        link.calls += 1
        try:
            return await link.client.execute_command("EVALSHA", _DIGEST, *arguments)
        except NoScriptError:
            # The server is new, or was started again. This leaves the script there.
            return await link.client.execute_command("EVAL", _SCRIPT, *arguments)
        finally:
            link.calls -= 1
            self._let_go(link)


def _connect(address: RedisAddress) -> Redis:
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": address.database,
        "username": address.user,
        "password": address.password,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": _ANSWER_SECONDS,
        "socket_keepalive": True,
        "protocol": 2,
        # A check that is repeated would count twice.
        "retry": Retry(NoBackoff(), 0),
    }
    if address.tls:
        options.update(
            connection_class=SSLConnection,
            ssl_cert_reqs="required",
            ssl_check_hostname=True,
            ssl_ca_certs=address.ca_file,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
        )
    else:
        options.update(connection_class=Connection)
    pool = BlockingConnectionPool(max_connections=_CONNECTIONS, timeout=_ANSWER_SECONDS, **options)
    return Redis.from_pool(pool)


def _reason(problem: Exception) -> str:
    """A stable word for what happened; the library's own text may hold an address, a user or a key."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "tls"
        cause = cause.__cause__ or cause.__context__
    if isinstance(problem, AuthenticationError | AuthorizationError | NoPermissionError):
        return "denied"
    if isinstance(problem, OutOfMemoryError):
        return "full"
    if isinstance(problem, ResponseError):
        return "denied" if str(problem).startswith(("NOAUTH", "WRONGPASS", "NOPERM")) else "refused"
    return "unreachable"
