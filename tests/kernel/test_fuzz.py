"""Random system calls on the kernel's devices: see `fuzz.c`.  FUZZ_SECONDS and FUZZ_SEED say for how long and which."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

from kmod.vm import guest, modules
from kmod.vm.kernel import Kernel

from .suites import HERE, PROVIDERS, compile_program, load_lines

SECONDS = float(os.environ.get("FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(64)

LOADED = [
    "ldm",
    "gate",
    "ldm_crc32",
    "ldm_delay milliseconds=20",
    "ldm_ramdisk size=1M",
    "ldm_relay lower=sum=kernel/crc32,disk=kernel/ramdisk,held=kernel/gate,twice=kernel/held,self=kernel/self",
]
"""What is fuzzed, with its parameters."""

SCRIPT = """\
. {here}/prepare.sh
load_all <<'END'
{load}
END
for parameter in ignore-gfp-wait:N verbose:0; do
	for fault in failslab fail_page_alloc fail_usercopy; do
		file=/sys/kernel/debug/$fault/${{parameter%:*}}
		[ ! -e $file ] || echo ${{parameter#*:}} >$file
	done
done
cp $VM/program /tmp/program
/tmp/program {seed} {seconds} || exit
for device in /sys/class/ldm/*; do
	soon grep -qx 0 $device/consumers || exit
done
unload_all
"""


def test_random_calls_do_no_harm(kernel: Kernel, tmp_path: Path) -> None:
    built = modules.build(kernel, PROVIDERS)
    compile_program(HERE / "fuzz.c", tmp_path)
    load = load_lines(built, [module.split() for module in LOADED])
    script = SCRIPT.format(here=HERE, load=load, seed=SEED, seconds=SECONDS)
    outcome = guest.run(kernel, script, tmp_path, limit=SECONDS + 300)
    print(f"FUZZ_SEED={SEED}\n{outcome.output}")
    outcome.check()
    done = {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", outcome.output)}
    assert done["calls"]
    assert done["killed"]
    assert bool(done["failures"]) == (kernel.name == "debug"), "only the debug kernel fails what it is told to"
