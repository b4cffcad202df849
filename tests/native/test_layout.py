"""The structures in Python are those of the headers: a small program tells where their fields are."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ldmfs.native import layout
from ldmfs.native.build import HERE, compiler, includes

STRUCTURES: dict[str, Any] = {
    "ldm_data": layout.Data,
    "ldm_request": layout.RequestBlock,
    "ldm_device_spec": layout.DeviceSpec,
    "ldm_about": layout.About,
    "ldm_provider": layout.ProviderRecord,
    "ldm_param": layout.ParameterRecord,
    "ldm_host": layout.HostTable,
    "ldm_runtime": layout.RuntimeTable,
}

NUMBERS = {
    "LDM_RUNTIME_VERSION": layout.VERSION,
    "LDM_LATER": layout.LATER,
    "LDM_MAX_DATA": layout.MAX_DATA,
    "LDM_MAX_CHAIN": layout.MAX_CHAIN,
    **{f"LDM_{part.name}": part for part in layout.Part},
    **{f"LDM_PARAM_{kind.name.lower()}": kind for kind in layout.ParameterType},
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Give what the compiler says: sizes, offsets, numbers."""
    lines = [f'\tprintf("{name} %zu\\n", sizeof(struct {name}));' for name in STRUCTURES]
    for name, structure in STRUCTURES.items():
        for field, *_ in structure._fields_:
            lines.append(f'\tprintf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    lines += [f'\tprintf("{name} %d\\n", (int){name});' for name in NUMBERS]
    source = tmp_path_factory.mktemp("layout") / "layout.c"
    source.write_text("\n".join(['#include "runtime.h"', "int main(void)", "{", *lines, "\treturn 0;", "}\n"]))
    program = source.with_suffix("")
    subprocess.run([compiler(), f"-I{includes()}", f"-I{HERE}", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_has_the_size_that_it_has_in_c(told: dict[str, int], name: str) -> None:
    assert ctypes.sizeof(STRUCTURES[name]) == told[name]


@pytest.mark.parametrize("name", STRUCTURES)
def test_each_field_is_where_it_is_in_c(told: dict[str, int], name: str) -> None:
    fields = [field for field, *_ in STRUCTURES[name]._fields_]
    assert {field: getattr(STRUCTURES[name], field).offset for field in fields} == {
        field: told[f"{name}.{field}"] for field in fields
    }


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_that_of_c(told: dict[str, int], name: str) -> None:
    assert NUMBERS[name] == told[name]


def test_the_headers_are_there() -> None:
    assert (Path(includes()) / "ldm.h").is_file()
