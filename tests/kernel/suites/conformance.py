"""The conformance suite of all devices, on those of the kernel.

modules: ldm; ldm_crc32; ldm_ramdisk size=64K; ldm_relay lower=sum=kernel/crc32,upper=text/upper
"""

from __future__ import annotations

import ldmfs.testing

SUM = b"352441c2\n"


def check(name: str, **sample: bytes) -> None:
    ldmfs.testing.check_device_blocking(f"kernel/{name}", paths=("file",), **sample)


def case_a_message_device_of_the_kernel_conforms() -> None:
    check("crc32", request=b"abc", reply=SUM)


def case_a_block_device_of_the_kernel_conforms() -> None:
    check("ramdisk")


def case_a_kernel_device_over_a_kernel_device_conforms() -> None:
    check("sum", request=b"abc", reply=SUM)


def case_a_kernel_device_over_a_user_device_conforms() -> None:
    check("upper", request=b"hello", reply=b"HELLO")
