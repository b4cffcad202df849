"""A provider that the tests run by hand."""

from ldmfs import Device, Provider, Request


class Twice(Device):
    """Gives back what it got, twice."""

    def request(self, consumer_id: int, request: Request) -> bytes:
        return bytes(request.data) * 2


class ByHand(Provider):
    """One device."""

    def start(self) -> None:
        self.create_device("twice", Twice())
