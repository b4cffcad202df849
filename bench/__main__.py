"""Measure, print, and write bench/RESULTS.md: `python -m bench [--quick] [--only NAME] [--check]`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import chain, channel, idle, machine, round_trip, scale, takeover, throughput
from .report import Section
from .servers import BenchError, Setup, detach_below

RESULTS = Path(__file__).parent / "RESULTS.md"
MEASUREMENTS = {
    "round_trip": round_trip.measure,
    "throughput": throughput.measure,
    "idle": idle.measure,
    "scale": scale.measure,
    "channel": channel.measure,
    "chain": chain.measure,
    "takeover": takeover.measure,
}
EXIT_MISSED, EXIT_FAILED, EXIT_INTERRUPTED = 1, 3, 130


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up as for Ctrl-C
    begin = time.monotonic()
    about = f"# Benchmark\n\nWritten by `make bench`, all in one run.\n\n{machine.describe()}"
    print(about, flush=True)
    try:
        sections = _measure(options.only or list(MEASUREMENTS), quick=options.quick)
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    took = f"The whole run took {time.monotonic() - begin:.0f} s."
    missed = [target for section in sections for target in section.targets if not target.met]
    verdict = "\n".join(
        ["All targets are met."] if not missed else [f"{len(missed)} target(s) missed:", "", *map(str, missed)]
    )
    print(f"\n## Targets\n\n{verdict}\n\n{took}")
    if options.quick or options.only:
        print(f"{RESULTS.name} is written by a whole run only, and is left as it is.")
    else:
        RESULTS.write_text("\n\n".join([about, took, f"## Targets\n\n{verdict}", *map(str, sections)]) + "\n")
    return EXIT_MISSED if missed and options.check else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure ldmfs and what it is compared with.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, to see whether it works")
    parser.add_argument(
        "--only", action="append", choices=list(MEASUREMENTS), help="measure only this; may be repeated"
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 when a target is missed")
    return parser.parse_args()


def _measure(names: list[str], *, quick: bool) -> list[Section]:
    sections = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="ldmfs-bench-") as directory:
            try:
                section = MEASUREMENTS[name](Setup(Path(directory), quick=quick))
            finally:
                detach_below(Path(directory))
        print(f"\n{section}", flush=True)
        sections.append(section)
    return sections


if __name__ == "__main__":
    sys.exit(main())
