"""What a consumer may send: its credentials against a device's mode, owner and group, as they are for a file."""

from __future__ import annotations

import ctypes
import socket
import struct

from ..core.device import LogicalDevice, Peer
from ..core.errors import AccessDenied, LdmError, NotSupported
from ..core.request import Request, RequestType

SO_PEERGROUPS = 59
"""Socket option that tells a peer's supplementary groups (`include/uapi/asm-generic/socket.h`)."""

MAX_GROUPS = 65536
"""Groups that one process can be in (`NGROUPS_MAX`)."""

_READING = frozenset({RequestType.READ})
_WRITING = frozenset(RequestType) - _READING

_libc = ctypes.CDLL(None)


def credentials(sock: socket.socket) -> tuple[Peer, frozenset[int]]:
    """Return who is at the other end, as the kernel tells it, and the groups that it is in."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, gid, 0, "channel"), _groups(sock)


def _groups(sock: socket.socket) -> frozenset[int]:
    """Return a peer's supplementary groups; not by `getsockopt` of Python, which has room for 256 of them only."""
    groups = (ctypes.c_uint32 * MAX_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, groups, ctypes.byref(size)):
        return frozenset()
    return frozenset(groups[: size.value // 4])


def allowed(device: LogicalDevice, peer: Peer, groups: frozenset[int]) -> frozenset[RequestType]:
    """Return the types of requests that a peer may send: as the device's file would let it read and write."""
    rights = _rights(device, peer, groups)
    return device.accepts & ((_READING if rights & 4 else frozenset()) | (_WRITING if rights & 2 else frozenset()))


def _rights(device: LogicalDevice, peer: Peer, groups: frozenset[int]) -> int:
    if peer.uid == 0:
        return 7
    if peer.uid == device.uid:
        return device.mode >> 6 & 7
    if device.gid == peer.gid or device.gid in groups:
        return device.mode >> 3 & 7
    return device.mode & 7


def refusal(device: LogicalDevice, request: Request) -> LdmError:
    """Return the error that a request ends with whose type a consumer may not send."""
    if request.type in device.accepts:
        return AccessDenied(f"{device.name!r} takes no {request.type.name} requests from this consumer")
    return NotSupported(f"device {device.name!r} takes no {request.type.name} requests")
