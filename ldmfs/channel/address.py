"""Unix sockets at a path: listening and connecting, where an address takes 107 bytes and a path may have 4,095."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import NotServed

LONGEST_NAME = 64

BACKLOG = 1024
"""Connections that wait while no instance of a container takes them."""


def file_name(name: str) -> str:
    """Return the file name of the socket of a container: its own, or a digest where that is too long."""
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def listen(path: Path, mode: int = 0o666, kind: socket.SocketKind = socket.SocketKind.SOCK_SEQPACKET) -> socket.socket:
    """Return a socket that listens for consumers at `path`, in place of one that a killed process left there.

    Everyone may connect: what they may open is decided from their credentials and each device's mode.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        path.unlink(missing_ok=True)
        with address(path) as at:
            listener.bind(at)
        path.chmod(mode)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """Connect to a container's socket, blocking.  Raises `NotServed` where nobody listens, `OSError` otherwise."""
    with connecting(path) as (sock, at):
        sock.connect(at)
    return sock


@contextlib.contextmanager
def connecting(path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Give a socket and the address to connect it to; it is closed where that fails, by `NotServed` or `OSError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with address(path) as at:
            yield sock, at
    except ConnectionRefusedError:
        sock.close()
        raise NotServed(f"nobody serves {path.name}") from None
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """Give an address for `path` that is short enough: through a descriptor of its directory."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
