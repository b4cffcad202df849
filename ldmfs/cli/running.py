"""`ldmfs run`: one provider by hand."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ..container.by_hand import run_by_hand
from ..container.plug_ins import PlugIn, found
from ..container.provider import load, load_file
from .main import UsageError
from .mounting import chosen_root


def run(module_or_file: str, name: str | None, settings: list[str], root: Path | None) -> int:
    """Host the provider of a module, a file or an installed plug-in until Ctrl-C."""
    plug_ins = found()
    if module_or_file in plug_ins and not Path(module_or_file).suffix:
        own_name, provider = module_or_file, load(plug_ins[module_or_file].value)
    else:
        own_name, provider = load_file(module_or_file)
    table = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise UsageError(f"--set {setting}: expected KEY=VALUE")
        try:
            table.update(tomllib.loads(f"{key} = {value}"))
        except tomllib.TOMLDecodeError:
            table[key] = value
    plug_in = PlugIn(own_name, "", "--set", table)
    return run_by_hand(provider, name or own_name, chosen_root(root), plug_in)
