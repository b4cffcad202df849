"""rooms: devices that come and go while the container runs, and a READ that waits.

    door      `open NAME` makes a room, `close NAME` takes it away; a READ lists the rooms
    <room>    a CALL says something; a READ gives what the reader has not heard yet, and waits while there is nothing

A room can be closed when nobody is in.

    $ ldmfs run examples/rooms.py &
    /ldm/rooms/door
    $ echo open kitchen > /ldm/rooms/door
    $ echo 'tea is ready' > /ldm/rooms/kitchen; cat /ldm/rooms/kitchen
    tea is ready
    $ cat /ldm/rooms/door
    kitchen
    $ echo close kitchen > /ldm/rooms/door
"""

from __future__ import annotations

import trio

import ldmfs

MAX_LINES = 1000
"""Lines that a room remembers; then it takes no more."""


class Room(ldmfs.Device):
    """A list of lines, and how much of it each consumer has heard."""

    takes, gives = "something to say", "what was said since the last READ"

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.heard: dict[int, int] = {}
        self.said = trio.Event()

    def open(self, consumer_id: int) -> None:
        """Let a newcomer hear everything."""
        self.heard[consumer_id] = 0

    def close(self, consumer_id: int) -> None:
        """Forget a consumer; a READ of its that still waited has been cancelled before."""
        del self.heard[consumer_id]

    async def request(self, consumer_id: int, request: ldmfs.Request) -> bytes:
        """Say or hear something.  An `async` handler that waits holds nobody up."""
        if request.type is ldmfs.RequestType.CALL:
            self.say(bytes(request.data))
            return b""
        while self.heard[consumer_id] == len(self.lines):
            await self.said.wait()
        news = self.lines[self.heard[consumer_id] :]
        self.heard[consumer_id] = len(self.lines)
        return b"".join(news)

    def say(self, line: bytes) -> None:
        """Add a line, and wake those who wait for one."""
        if len(self.lines) >= MAX_LINES:
            raise ldmfs.NoSpace(f"the room has heard {MAX_LINES} lines, as many as it remembers")
        self.lines.append(line)
        self.said.set()
        self.said = trio.Event()


class Rooms(ldmfs.Provider):
    """Rooms to talk in, and the door to them."""

    def start(self) -> None:
        """Create the door; the rooms come later."""
        self.rooms: set[str] = set()
        self.create_device("door", request_handler=self.door, takes="open NAME, close NAME", gives="the rooms")

    def door(self, name: str, consumer_id: int, request: ldmfs.Request) -> bytes:
        """Make or take away a room."""
        match bytes(request.data).decode(errors="replace").split():
            case []:
                return "".join(f"{room}\n" for room in sorted(self.rooms)).encode()
            case ["open", room]:
                self.create_device(room, Room(), description=f"the room {room}")
                self.rooms.add(room)
            case ["close", room] if room in self.rooms:
                self.destroy_device(room)  # DeviceBusy while somebody is in
                self.rooms.remove(room)
            case _:
                raise ldmfs.InvalidRequest("expected 'open NAME', or 'close NAME' of a room that there is")
        return b""


if __name__ == "__main__":
    ldmfs.run(Rooms)
