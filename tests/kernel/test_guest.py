"""Guests: what comes back from them, and that each way in which a kernel can go wrong is noticed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kmod.vm import guest, modules
from kmod.vm.kernel import Kernel

from .suites import KERNEL

PLANTED = Path(__file__).with_name("planted.c")

MISTAKES = [
    ("warning", "WARNING:"),
    ("locks", "possible circular locking dependency"),
    ("sleep", "sleeping function called from invalid context"),
    ("memory", "KASAN: use-after-free"),
    ("leak", "unreferenced object"),
]
"""What `planted.c` does, and what the kernel says to it; Debian's sees only the first."""

SEEN = MISTAKES if KERNEL == "debug" else MISTAKES[:1]


def planted(kernel: Kernel, directory: Path, mistake: str) -> guest.Outcome:
    module = modules.build_one(kernel, PLANTED, directory / "planted")
    return guest.run(kernel, f"insmod {module} mistake={mistake} || true")


def test_output_status_and_the_share_come_back(kernel: Kernel, tmp_path: Path) -> None:
    outcome = guest.run(kernel, "echo out; echo err >&2; pwd >$VM/where; exit 7", tmp_path)
    assert (outcome.status, outcome.output, outcome.reports) == (7, "out\nerr\n", [])
    assert (tmp_path / "where").read_text().strip() == str(guest.REPOSITORY)


def test_the_hosts_files_are_read_and_not_written(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("host\n")
    guest.run(
        kernel,
        f'[ "$(cat {file})" = host ] && echo guest >{file} && [ "$(cat {file})" = guest ]',
    ).check()
    assert file.read_text() == "host\n"


def test_guests_at_the_same_time_do_not_disturb_each_other(kernel: Kernel) -> None:
    outcomes: dict[int, guest.Outcome] = {}

    def run(number: int) -> None:
        outcomes[number] = guest.run(kernel, f"echo {number} >/same && cat /same")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: (outcome.status, outcome.output) for number, outcome in outcomes.items()} == {
        number: (0, f"{number}\n") for number in range(2)
    }


def test_a_panic_is_told_with_its_cause(kernel: Kernel, tmp_path: Path) -> None:
    outcome = planted(kernel, tmp_path, "oops")
    assert (outcome.status, outcome.why) == (None, "kernel panic")
    assert "planted_init" in "\n".join(report.text for report in outcome.reports)
    with pytest.raises(AssertionError, match="kernel panic"):
        outcome.check()


def test_a_command_that_does_not_end_is_told_with_what_waits(kernel: Kernel) -> None:
    outcome = guest.run(kernel, "echo begun; sleep 1000", limit=15)
    assert (outcome.status, outcome.why, outcome.output) == (None, "time limit", "begun\n")
    assert "sysrq: Show Blocked State" in outcome.messages


def test_a_guest_that_does_nothing_any_more_is_ended(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "GRACE", -40)  # so that the guest's own limit, of 60 s, is none
    outcome = guest.run(kernel, "exec busybox halt -f", limit=60)
    assert outcome.status is None
    assert "time limit: the guest does nothing" in outcome.why


def test_a_report_is_attributed_to_the_case_that_ran(kernel: Kernel, tmp_path: Path) -> None:
    module = modules.build_one(kernel, PLANTED, tmp_path / "planted")
    say = "echo vm: case {} >/dev/kmsg;".format
    plant = f"insmod {module} mistake=warning;"
    outcome = guest.run(kernel, say("good") + say("bad") + plant + say("fine") + "true")
    assert [report.case for report in outcome.reports] == ["bad"]


@pytest.mark.parametrize(("mistake", "said"), SEEN)
def test_a_mistake_of_a_module_is_reported(kernel: Kernel, tmp_path: Path, mistake: str, said: str) -> None:
    outcome = planted(kernel, tmp_path, mistake)
    assert outcome.status == 0
    assert said in "\n".join(report.text for report in outcome.reports)
    with pytest.raises(AssertionError, match=said):
        outcome.check()


def test_a_sound_module_is_not_reported(kernel: Kernel, tmp_path: Path) -> None:
    planted(kernel, tmp_path, "none").check()
