"""`hold_back`: lets no new connection begin on a listening socket, while those that have begun still can be accepted.

Used by the server when it unbinds. A socket that is closed resets whatever the kernel accepts between the last look
into its queue and the closing, however short that is. Linux can be told to drop the packets that open a connection:
their senders repeat them after a second, and are then refused, as by a port on which nobody listens.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
from typing import Final

__all__ = ["hold_back"]

_log = logging.getLogger(__name__)

_SO_ATTACH_FILTER: Final = 26
"""socket(7); Python has no name for it."""
_INSTRUCTIONS: Final = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header
    (0x54, 0, 0, 0x12),  # leave SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone opens a connection
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFF_FFFF),  # pass on anything else
)
_PROGRAM: Final = b"".join(struct.pack("HBBI", *instruction) for instruction in _INSTRUCTIONS)


def hold_back(listener: socket.socket) -> bool:
    """Whether the kernel does so from here on, for every process that has this socket."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    described = struct.pack("@HP", len(_INSTRUCTIONS), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    except OSError as problem:
        _log.debug("new connections can't be held back: %s", problem.strerror)
        return False
    return True
