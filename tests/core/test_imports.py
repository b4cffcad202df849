"""What a script and the command line import: not what serves devices, which takes longer than what they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SERVES = {"trio", "pyfuse3", "rich", "asyncio"}

TELL = "\nimport sys; print(*sys.modules)"


def imported(source: str, *arguments: str | Path) -> set[str]:
    """Return the modules that a program has imported at its end, which it tells in its last line."""
    command = [sys.executable, "-c", source + TELL, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", ["open_device", "send_request", "close_device", "Request", "LdmError"])
def test_what_a_consumer_uses_is_there_without_what_serves(name: str) -> None:
    assert not SERVES & imported(f"import ldmfs; ldmfs.{name}")


@pytest.mark.parametrize("command", ["'ls'", "'ls', 'box'", "'umount'", "'restart', 'box'"])
def test_the_command_line_imports_what_serves_only_to_serve(tmp_path: Path, command: str) -> None:
    for name in ("system", "box"):
        (tmp_path / name).mkdir()
    (tmp_path / "system/graph").write_text('{"containers": []}')
    source = f"import sys; from ldmfs.cli.main import main; main([{command}, '--root', sys.argv[1]])"
    assert not SERVES & imported(source, tmp_path)
