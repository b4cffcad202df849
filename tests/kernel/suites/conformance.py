"""The conformance suite of all devices, on those of the kernel.

modules: ldm timeout=600; gate; ldm_crc32; ldm_ramdisk size=64K
modules: ldm_relay lower=sum=kernel/crc32,upper=text/upper,deep=x/either
"""

from __future__ import annotations

import ldmfs.testing

ldmfs.testing.SECONDS = 600.0  # on an emulated processor; the case's own limit may end it before

SUM = b"352441c2\n"


def check(name: str, **sample: bytes) -> None:
    ldmfs.testing.check_device_blocking(name, **sample)


def case_a_message_device_of_the_kernel_conforms() -> None:
    check("kernel/crc32", request=b"abc", reply=SUM)


def case_a_block_device_of_the_kernel_conforms() -> None:
    check("kernel/ramdisk")


def case_a_kernel_device_over_a_kernel_device_conforms() -> None:
    check("kernel/sum", request=b"abc", reply=SUM)


def case_a_kernel_device_over_a_user_device_conforms() -> None:
    check("kernel/upper", request=b"hello", reply=b"HELLO")


def case_a_kernel_device_that_takes_its_time_conforms() -> None:
    check("kernel/either", request=b"hello", reply=b"hello", slow=b"wait")


def case_a_user_device_over_a_kernel_device_conforms() -> None:
    check("x/either", request=b"hello", reply=b"hello", slow=b"wait")


def case_a_kernel_device_over_a_user_device_over_a_kernel_device_conforms() -> None:
    check("kernel/deep", request=b"hello", reply=b"hello", slow=b"wait")
