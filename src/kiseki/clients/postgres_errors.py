"""What an error of asyncpg says: whether it is the server's or the network's, and a phrase for people.

Used by `postgres` and by the PostgreSQL journal, key store and read model.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

import asyncpg

__all__ = ["PasswordUnavailable", "is_unavailable", "reason"]

# https://www.postgresql.org/docs/current/errcodes-appendix.html; the longest prefix that fits says the reason.
_REASONS: Final = {
    "08": "the connection was lost",
    "25006": "the server is read-only (a standby?)",
    "25P03": "the transaction was idle for too long",
    "28": "the server did not accept the user or password",
    "3D000": "there is no such database",
    "40001": "concurrent transactions got into each other's way",
    "40P01": "concurrent transactions waited for each other",
    "42501": "the user lacks a permission in the database",
    "53": "the server is short of resources",
    "53100": "the server's disk is full",
    "53200": "the server is out of memory",
    "53300": "the server has too many connections",
    "55P03": "a lock was not available in time",
    "57014": "the server did not finish in time",
    "57P01": "the server is shutting down",
    "57P02": "the server crashed and recovers",
    "57P03": "the server is starting up or shutting down",
    "57P04": "the database was dropped",
    "57P05": "the server ended an idle session",
    "58": "the server has a fault of its own (input/output)",
}


class PasswordUnavailable(OSError):
    """The password of a database can't be had from where its URL says it is; the message says why, and names no value.

    Whoever waits for a server waits for this in the same way.
    """


def is_unavailable(problem: BaseException) -> bool:
    """Whether an error says something of the server, the network or the settings, and not of a defect in a statement.

    The same call may succeed later, when people or time have mended it.
    """
    return _known_reason(problem) is not None


def reason(problem: BaseException) -> str:
    """One short phrase for people, without values from statements and without secrets."""
    known = _known_reason(problem)
    if known is not None:
        return known
    if isinstance(problem, asyncpg.PostgresError):
        return f"the server refused a statement ({type(problem).__name__}, {problem.sqlstate})"
    return f"an unexpected {type(problem).__name__}"


def _known_reason(problem: BaseException) -> str | None:
    if isinstance(problem, asyncpg.PostgresError):
        return _reason_of_state(problem.sqlstate or "")
    if isinstance(problem, OSError):
        return _reason_of_system(problem)
    if isinstance(problem, asyncpg.ClientConfigurationError):
        return "the parameters of its URL can't be used"
    if isinstance(problem, asyncpg.TargetServerAttributeNotMatched):
        return "no server of the kind that target_session_attrs asks for answers"
    # A last word of the server that asyncpg has read, and not yet the end of the connection after it.
    if isinstance(problem, asyncpg.InternalClientError):
        return _REASONS["08"]
    # asyncpg has one class for a connection that is gone and for wrong use; only the text tells them apart.
    if isinstance(problem, asyncpg.InterfaceError) and "connection is closed" in str(problem):
        return _REASONS["08"]
    return None


def _reason_of_state(state: str) -> str | None:
    return _REASONS.get(state) or _REASONS.get(state[:2])


def _reason_of_system(problem: OSError) -> str:
    if isinstance(problem, PasswordUnavailable):
        return str(problem)
    if isinstance(problem, TimeoutError):
        return "the server did not answer in time"
    if isinstance(problem, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(problem, socket.gaierror):
        return "the host name is not known"
    if isinstance(problem, ssl.SSLCertVerificationError):
        return "the server's certificate was not accepted"
    if isinstance(problem, ssl.SSLError):
        return "TLS with the server failed"
    if isinstance(problem, ConnectionError):
        return _REASONS["08"]
    return f"the network failed ({(problem.strerror or type(problem).__name__).lower()})"
