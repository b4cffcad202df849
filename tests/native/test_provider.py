"""Providers in C as devices of a container: handlers, complete later, cancelling, what they say of themselves."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest
import trio
import trio.testing
from channel.served import error_of

import ldmfs
from ldmfs import Kind, Reply, Request, RequestType
from ldmfs.core.device import Execution

from .hosted import Built, ask, configured, native

MIB = 1 << 20


async def report(root: Path) -> dict[str, int]:
    """Return what the device `keeper` counts."""
    words = bytes((await ask(root, "box/keeper", Request(RequestType.READ, length=200))).data).decode().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


async def held(root: Path, number: int = 1) -> None:
    """Wait until the provider holds so many requests."""
    while (await report(root))["held"] != number:
        await trio.lowlevel.checkpoint()


async def test_a_request_is_answered_with_its_metadata(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}):
        reply = await ask(tmp_path, "box/plain", Request(RequestType.CALL, b"hello", metadata=b"about"))
        assert (bytes(reply.data), reply.metadata) == (b"hello", b"about")


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, 16 * MIB])
async def test_data_of_any_size_comes_back(tmp_path: Path, built: Built, size: int) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}):
        data = bytes(range(256)) * (size // 256 + 1)
        assert await ask(tmp_path, "box/plain", data[:size]) == data[:size]


async def test_data_that_is_too_large_for_a_part_is_refused(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}):
        error = await error_of(ask(tmp_path, "box/plain", bytes(16 * MIB + 1)))
        assert isinstance(error, ldmfs.MessageTooLong)


async def test_the_status_of_a_handler_is_the_consumer_s_error(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}):
        error = await error_of(ask(tmp_path, "box/plain", b"fail 28"))
        assert (type(error), str(error)) == (ldmfs.NoSpace, "No space left on device")


@pytest.mark.logs
async def test_what_is_no_status_is_an_input_output_error(
    tmp_path: Path, built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    async with native(tmp_path, {"caller": {"source": built("caller")}}):
        assert (await error_of(ask(tmp_path, "box/odd", b"x"))).errno == errno.EIO
        assert "status 7" in caplog.text


async def test_a_request_is_completed_later(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}), trio.open_nursery() as nursery:
        replies: list[bytes] = []

        async def call(data: bytes) -> None:
            replies.append(await ask(tmp_path, "box/gate", data))

        nursery.start_soon(call, b"one")
        nursery.start_soon(call, b"two")
        await held(tmp_path, 2)
        assert replies == []
        assert await ask(tmp_path, "box/keeper", b"release") == b"2\n"
        while len(replies) < 2:
            await trio.lowlevel.checkpoint()
        assert sorted(replies) == [b"one", b"two"]


async def test_a_request_is_completed_later_with_an_error(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}), trio.open_nursery() as nursery:
        errors = []

        async def call() -> None:
            errors.append(await error_of(ask(tmp_path, "box/gate", b"one")))

        nursery.start_soon(call)
        await held(tmp_path)
        await ask(tmp_path, "box/keeper", b"fail 28")
        while not errors:
            await trio.lowlevel.checkpoint()
        assert isinstance(errors[0], ldmfs.NoSpace)


async def test_more_requests_than_there_are_threads_are_outstanding(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}), trio.open_nursery() as nursery:
        replies: list[bytes] = []
        async with await ldmfs.aio.open_device("box/gate", root=tmp_path) as device:

            async def call(number: int) -> None:
                replies.append(await ldmfs.aio.send_request(device, b"%d" % number))

            for number in range(200):
                nursery.start_soon(call, number)
            await held(tmp_path, 200)
            await ask(tmp_path, "box/keeper", b"release")
            while len(replies) < 200:
                await trio.lowlevel.checkpoint()
        assert sorted(map(int, replies)) == list(range(200))


async def test_cancelling_a_request_runs_the_cancel_handler(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}):
        async with await ldmfs.aio.open_device("box/gate", root=tmp_path) as device, trio.open_nursery() as nursery:
            nursery.start_soon(ldmfs.aio.send_request, device, b"one")
            await held(tmp_path)
            nursery.cancel_scope.cancel()
        assert (await report(tmp_path)).items() >= {"held": 0, "cancelled": 1, "opened": 1, "closed": 1}.items()


async def test_a_consumer_that_closes_cancels_what_it_has_outstanding(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}), trio.open_nursery() as nursery:
        errors = []
        device = await ldmfs.aio.open_device("box/gate", root=tmp_path)

        async def call() -> None:
            errors.append(await error_of(ldmfs.aio.send_request(device, b"one")))

        nursery.start_soon(call)
        await held(tmp_path)
        await device.close()
        assert (await report(tmp_path)).items() >= {"held": 0, "cancelled": 1, "opened": 1, "closed": 1}.items()
        assert isinstance(errors[0], ldmfs.LdmError)


async def test_a_provider_that_does_not_care_for_cancelling_is_waited_for(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}), trio.open_nursery() as nursery:
        device = await ldmfs.aio.open_device("box/stubborn", root=tmp_path)
        nursery.start_soon(error_of, ldmfs.aio.send_request(device, b"one"))
        await held(tmp_path)
        nursery.start_soon(device.close)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await report(tmp_path))["closed"] == 0
        await ask(tmp_path, "box/keeper", b"release")
        while not (await report(tmp_path))["closed"]:
            await trio.lowlevel.checkpoint()


async def test_a_block_device_completes_later_too(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}), trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def read() -> None:
            replies.append(await ask(tmp_path, "box/blocks", Request(RequestType.READ, offset=4000, length=500)))

        nursery.start_soon(read)
        await held(tmp_path)
        await ask(tmp_path, "box/keeper", b"release")
        while not replies:
            await trio.lowlevel.checkpoint()
        assert bytes(replies[0].data) == b"r" * 96


async def test_an_object_is_unmarshalled_and_marshalled(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"caller": {"source": built("caller")}}):
        device = await ldmfs.aio.open_device(
            "box/object", root=tmp_path, marshal=lambda number: bytes([number]), unmarshal=lambda data: data[0]
        )
        async with device:
            assert (await device.send(Request(RequestType.NON_STANDARD, object=21))).object == 42


async def test_an_object_that_cannot_be_unmarshalled_is_the_consumer_s_error(tmp_path: Path, built: Built) -> None:
    async with (
        native(tmp_path, {"caller": {"source": built("caller")}}),
        await ldmfs.aio.open_device("box/object", root=tmp_path, marshal=bytes) as device,
    ):
        error = await error_of(device.send(Request(RequestType.NON_STANDARD, object=b"four")))
        assert isinstance(error, ldmfs.InvalidRequest)


async def test_a_device_without_unmarshal_takes_no_objects(tmp_path: Path, built: Built) -> None:
    async with (
        native(tmp_path, {"caller": {"source": built("caller")}}),
        await ldmfs.aio.open_device("box/talk", root=tmp_path, marshal=bytes) as device,
    ):
        error = await error_of(device.send(Request(RequestType.NON_STANDARD, object=b"x")))
        assert isinstance(error, ldmfs.NotSupported)


async def test_a_timer_rings_and_is_started_again_by_its_function(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"caller": {"source": built("caller"), "parameters": {"ticks": 5}}}):
        for _ in range(2):
            assert bytes((await ask(tmp_path, "box/ticks", Request(RequestType.READ, length=9))).data) == b"5"


@pytest.mark.logs
async def test_what_a_provider_logs_is_in_the_container_s_log(
    tmp_path: Path, built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    async with native(tmp_path, {"t": {"source": built("caller")}}):
        await ask(tmp_path, "box/talk", b"it is so")
        records = [(record.levelno, record.getMessage()) for record in caplog.records]
        assert records == [(logging.WARNING, "provider t: it is so")]


async def test_output_may_be_shorter_than_the_memory_that_was_taken(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"caller": {"source": built("caller")}}):
        for length in (10, MIB):
            reply = await ask(tmp_path, "box/big", Request(RequestType.READ, length=length))
            assert bytes(reply.data) == b"b" * length


async def test_a_device_is_what_its_specification_says(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"caller": {"source": built("caller")}, "gate": {"source": built("gate")}}) as it:
        device = it.container.registry.find("crash")
        assert (device.description, device.takes, device.gives) == ("bad", "anything", "nothing")
        assert (device.mode, device.uid, device.gid) == (0o640, 12, 34)
        assert device.provider == "native"
        blocks = it.container.registry.find("blocks")
        assert (blocks.kind, blocks.size, blocks.mode) == (Kind.BLOCK, 4096, 0o666)
        assert it.container.registry.find("slow").accepts == {RequestType.CALL}


async def test_handlers_do_not_run_on_the_loop(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}) as it:
        assert {device.request_execution for device in it.container.registry} == {Execution.ASYNC}


async def test_a_device_that_rm_has_destroyed_is_no_trouble_at_the_stop(tmp_path: Path, built: Built) -> None:
    async with native(tmp_path, {"gate": {"source": built("gate")}}) as it:
        it.container.destroy_device("plain")
        assert "plain" not in it.container.registry.devices


async def test_two_tables_of_one_source_are_two_providers(tmp_path: Path, built: Built) -> None:
    tables = {
        name: {"source": "ramdisk", "parameters": {"size": size}} for name, size in (("a", "1 MiB"), ("b", "64 KiB"))
    }
    async with native(tmp_path, tables):
        await ask(tmp_path, "box/a", Request(RequestType.WRITE, b"only here", offset=100))
        read = Request(RequestType.READ, offset=100, length=9)
        assert bytes((await ask(tmp_path, "box/a", read)).data) == b"only here"
        assert bytes((await ask(tmp_path, "box/b", read)).data) == bytes(9)
        async with await ldmfs.aio.open_device("box/b", root=tmp_path) as device:
            assert device.size == 1 << 16


async def test_a_start_that_fails_leaves_no_device(built: Built) -> None:
    container = ldmfs.Container("box")
    provider = configured(container, {"t": {"source": built("caller"), "parameters": {"refuse": True}}})
    with pytest.raises(ldmfs.LdmError, match="the start of provider t failed: No such device") as raised:
        await provider.start()
    assert raised.value.errno == errno.ENODEV
    assert not container.registry.devices


async def test_a_name_that_is_taken_is_refused_to_the_provider(built: Built) -> None:
    container = ldmfs.Container("box")
    provider = configured(container, {"one": {"source": built("gate")}, "two": {"source": built("gate")}})
    with pytest.raises(ldmfs.DeviceExists):
        await provider.start()
    assert {device.name for device in container.registry} >= {"one", "keeper"}
    await provider.stop()
    assert not container.registry.devices
