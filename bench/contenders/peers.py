"""Ways of one process to call another: the server and the client of each, all of which echo.

Run: python -m bench.contenders.peers NAME SOCKET [LOWER]

It prints `ready`, then answers at the Unix socket until it is ended.  A server of `SERVERS` sends back what it gets;
that of packets may ask the one at the socket LOWER instead.  A client of `CLIENTS` is a context manager, an
asynchronous one for a way that is; it connects to an address and gives the calls that it can make.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from typing import Any, NamedTuple

MANY = 64
"""Requests of one `many`."""

LARGEST_PACKET = 4096
"""Room for a packet of the raw socket, which is for small ones only."""

LENGTH = struct.Struct("<Q")
BUS_NAME, BUS_OBJECT, BUS_INTERFACE = "org.ldmfs.Bench", "/bench", "org.ldmfs.Bench"


class Calls(NamedTuple):
    """What a client can do, blocking or as coroutine functions."""

    once: Callable[[bytes], Any]
    """Send a request, return its reply."""
    many: Callable[[bytes], Any] | None = None
    """Send a request `MANY` times before the first reply is taken, return the replies; None where it cannot be done."""


def ready() -> None:
    """Tell who started this that it answers."""
    print("ready", flush=True)


# -- a raw socket of packets


def serve_packets(path: str, lower: str | None = None) -> None:
    """Send back each packet, or what the server at `lower` makes of it."""
    with _listen(path, socket.SOCK_SEQPACKET) as listener, contextlib.ExitStack() as stack:
        once = stack.enter_context(connect_packets(lower)).once if lower is not None else None
        while True:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(LARGEST_PACKET):
                    connection.send(data if once is None else once(data))


@contextlib.contextmanager
def connect_packets(path: str) -> Iterator[Calls]:
    """`send`, `recv`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)

        def once(data: bytes) -> bytes:
            sock.send(data)
            return sock.recv(LARGEST_PACKET)

        def many(data: bytes) -> list[bytes]:
            for _ in range(MANY):
                sock.send(data)
            return [sock.recv(LARGEST_PACKET) for _ in range(MANY)]

        yield Calls(once, many)


def _listen(path: str, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(path)
    listener.listen()
    ready()
    return listener


# -- a raw stream


def serve_stream(path: str) -> None:
    """Send back messages, each with its length before it; the memory for them is used again and again."""
    buffer = bytearray()
    with _listen(path, socket.SOCK_STREAM) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(EOFError):
                while True:
                    (size,) = LENGTH.unpack(_receive(connection, bytearray(LENGTH.size)))
                    if len(buffer) != size:
                        buffer = bytearray(size)
                    _receive(connection, buffer)
                    connection.sendall(LENGTH.pack(size))
                    connection.sendall(buffer)


@contextlib.contextmanager
def connect_stream(path: str) -> Iterator[Calls]:
    """`sendall`, `recv_into` new memory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)

        def once(data: bytes) -> bytearray:
            sock.sendall(LENGTH.pack(len(data)))
            sock.sendall(data)
            (size,) = LENGTH.unpack(_receive(sock, bytearray(LENGTH.size)))
            return _receive(sock, bytearray(size))

        yield Calls(once)


def _receive(sock: socket.socket, buffer: bytearray) -> bytearray:
    view = memoryview(buffer)
    while view:
        size = sock.recv_into(view)
        if not size:
            raise EOFError
        view = view[size:]
    return buffer


# -- multiprocessing.connection


def serve_multiprocessing(path: str) -> None:
    """Send back what `recv_bytes` gives."""
    with Listener(path, "AF_UNIX") as listener:
        ready()
        while True:
            with listener.accept() as connection, contextlib.suppress(EOFError):
                while True:
                    connection.send_bytes(connection.recv_bytes())


@contextlib.contextmanager
def connect_multiprocessing(path: str) -> Iterator[Calls]:
    """`send_bytes`, `recv_bytes`."""
    with Client(path, "AF_UNIX") as connection:

        def once(data: bytes) -> bytes:
            connection.send_bytes(data)
            return connection.recv_bytes()

        def many(data: bytes) -> list[bytes]:
            for _ in range(MANY):
                connection.send_bytes(data)
            return [connection.recv_bytes() for _ in range(MANY)]

        yield Calls(once, many)


# -- pyzmq


def serve_pyzmq(path: str) -> None:
    """A REP socket."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REP) as sock:
        sock.bind(f"ipc://{path}")
        ready()
        while True:
            sock.send(sock.recv())


@contextlib.contextmanager
def connect_pyzmq(path: str) -> Iterator[Calls]:
    """A REQ socket, which has one request outstanding; a DEALER for many."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as sock, context.socket(zmq.DEALER) as dealer:
        sock.connect(f"ipc://{path}")
        dealer.connect(f"ipc://{path}")

        def once(data: bytes) -> bytes:
            sock.send(data)
            return sock.recv()

        def many(data: bytes) -> list[bytes]:
            for _ in range(MANY):
                dealer.send_multipart([b"", data])
            return [dealer.recv_multipart()[1] for _ in range(MANY)]

        yield Calls(once, many)


# -- pynng


def serve_pynng(path: str) -> None:
    """A Rep0 socket."""
    import pynng

    with pynng.Rep0(listen=f"ipc://{path}", recv_max_size=0) as sock:
        ready()
        while True:
            sock.send(sock.recv())


@contextlib.contextmanager
def connect_pynng(path: str) -> Iterator[Calls]:
    """A Req0 socket; a context of it for each request of many."""
    import pynng

    with pynng.Req0(dial=f"ipc://{path}", recv_max_size=0) as sock, contextlib.ExitStack() as stack:
        contexts = [stack.enter_context(sock.new_context()) for _ in range(MANY)]

        def once(data: bytes) -> Any:
            sock.send(data)
            return sock.recv()

        def many(data: bytes) -> list[Any]:
            for context in contexts:
                context.send(data)
            return [context.recv() for context in contexts]

        yield Calls(once, many)


# -- grpcio


UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def serve_grpcio(path: str) -> None:
    """A unary method without serialisation."""
    import grpc

    def echo(request: bytes, _context: object) -> bytes:
        return request

    server = grpc.server(ThreadPoolExecutor(4), options=UNLIMITED)
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", methods),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    ready()
    server.wait_for_termination()


@contextlib.contextmanager
def connect_grpcio(path: str) -> Iterator[Calls]:
    """A unary call; futures for many."""
    import grpc

    with grpc.insecure_channel(f"unix:{path}", options=UNLIMITED) as channel:
        call = channel.unary_unary("/Bench/Echo")

        def many(data: bytes) -> list[Any]:
            return [future.result() for future in [call.future(data) for _ in range(MANY)]]

        yield Calls(call, many)


# -- dbus-fast: the socket is that of a message bus


def serve_dbus(path: str) -> None:
    """Answer each method call with its arguments."""
    asyncio.run(_serve_dbus(path))


async def _serve_dbus(path: str) -> None:
    from dbus_fast import Message, MessageType
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_address=f"unix:path={path}").connect()

    def echo(message: Message) -> Message | None:
        if message.message_type is MessageType.METHOD_CALL and message.path == BUS_OBJECT:
            return Message.new_method_return(message, "ay", message.body)
        return None

    bus.add_message_handler(echo)
    await bus.request_name(BUS_NAME)
    ready()
    await bus.wait_for_disconnect()


@contextlib.asynccontextmanager
async def connect_dbus(path: str) -> AsyncIterator[Calls]:
    """A method call; as many tasks for many."""
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_address=f"unix:path={path}").connect()

    async def once(data: bytes) -> Any:
        call = Message(BUS_NAME, BUS_OBJECT, BUS_INTERFACE, "Echo", signature="ay", body=[data])
        reply = await bus.call(call)
        return reply and reply.body[0]

    async def many(data: bytes) -> list[Any]:
        return await asyncio.gather(*(once(data) for _ in range(MANY)))

    yield Calls(once, many)
    bus.disconnect()


# -- ldmfs: the address is that of a device, ROOT:CONTAINER/DEVICE


@contextlib.contextmanager
def connect_ldmfs(address: str, *, inline: bool = False) -> Iterator[Calls]:
    """The blocking API; completion handlers for many; `inline` is without shared memory."""
    import ldmfs

    root, _, name = address.partition(":")
    open_device = functools.partial(ldmfs.open_device, blocks=0) if inline else ldmfs.open_device
    with open_device(name, root=root) as device:
        completed = threading.Semaphore(0)

        def complete(replies: list[Any], reply: Any) -> None:
            replies.append(reply)
            completed.release()

        def once(data: bytes) -> bytes:
            return ldmfs.send_request(device, data)

        def many(data: bytes) -> list[Any]:
            replies: list[Any] = []
            for _ in range(MANY):
                ldmfs.send_request(device, data, complete, replies)
            for _ in range(MANY):
                completed.acquire()
            return replies

        yield Calls(once, many)


@contextlib.contextmanager
def connect_ldmfs_lent(address: str) -> Iterator[Calls]:
    """The blocking API with a `Request`, whose reply's data is a view of the memory that it came in."""
    import ldmfs

    root, _, name = address.partition(":")
    with ldmfs.open_device(name, root=root) as device:

        def once(data: bytes) -> Any:
            return ldmfs.send_request(device, ldmfs.Request(ldmfs.RequestType.CALL, data)).data

        yield Calls(once)


@contextlib.asynccontextmanager
async def connect_ldmfs_trio(address: str) -> AsyncIterator[Calls]:
    """The API for trio; as many tasks for many."""
    import trio

    from ldmfs import aio

    root, _, name = address.partition(":")
    async with await aio.open_device(name, root=root) as device:

        async def once(data: bytes) -> bytes:
            return await aio.send_request(device, data)

        async def many(data: bytes) -> list[bytes]:
            replies: list[bytes] = []

            async def one() -> None:
                replies.append(await aio.send_request(device, data))

            async with trio.open_nursery() as nursery:
                for _ in range(MANY):
                    nursery.start_soon(one)
            return replies

        yield Calls(once, many)


@contextlib.contextmanager
def connect_ldmfs_file(address: str) -> Iterator[Calls]:
    """The device's file: `write`, `read`."""
    fd = os.open(address.replace(":", "/"), os.O_RDWR)

    def once(data: bytes) -> bytes:
        os.write(fd, data)
        return os.read(fd, len(data) + 1)

    yield Calls(once)
    os.close(fd)


SERVERS: dict[str, Callable[..., None]] = {
    "packets": serve_packets,
    "stream": serve_stream,
    "multiprocessing": serve_multiprocessing,
    "pyzmq": serve_pyzmq,
    "pynng": serve_pynng,
    "grpcio": serve_grpcio,
    "dbus-fast": serve_dbus,
}
"""Those of ldmfs are containers."""

CLIENTS: dict[str, Callable[[str], Any]] = {
    "packets": connect_packets,
    "stream": connect_stream,
    "multiprocessing": connect_multiprocessing,
    "pyzmq": connect_pyzmq,
    "pynng": connect_pynng,
    "grpcio": connect_grpcio,
    "dbus-fast": connect_dbus,
    "ldmfs": connect_ldmfs,
    "ldmfs inline": functools.partial(connect_ldmfs, inline=True),
    "ldmfs lent": connect_ldmfs_lent,
    "ldmfs trio": connect_ldmfs_trio,
    "ldmfs file": connect_ldmfs_file,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](*sys.argv[2:])
