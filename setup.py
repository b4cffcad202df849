"""Builds ldmfs; what it is made of stands in pyproject.toml, but for the bundled providers in C.

Where there is no C compiler these are left out, and the plug-in `native` tells what is missing.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NATIVE = Path("ldmfs/native")
BUILD = runpy.run_path(str(HERE / NATIVE / "build.py"))


def provider(source: Path) -> Extension:
    """Return the shared object of a bundled provider, `ldm_NAME.so` beside its source."""
    headers = [*(Path("kmod") / name for name in BUILD["HEADERS"]), NATIVE / "runtime.h"]
    return Extension(
        f"ldmfs_providers.ldm_{source.stem}",
        sources=[str(source), *(str(NATIVE / name) for name in BUILD["SOURCES"])],
        depends=[str(header) for header in headers],
        include_dirs=["kmod", str(NATIVE)],
        extra_compile_args=[*BUILD["COMPILE"], *BUILD["WARNINGS"]],
        extra_link_args=["-pthread"],
        optional=True,
    )


class BuildProviders(build_ext):
    """Builds plain shared objects: no modules of Python, whose names have its version in them."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path below the build directory."""
        return fullname.replace(".", "/") + ".so"


class BuildPackages(build_py):
    """Takes the headers along which the source of a provider includes."""

    def run(self) -> None:
        """Build the packages."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / NATIVE / "include"
            target.mkdir(parents=True, exist_ok=True)
            for name in BUILD["HEADERS"]:
                shutil.copy(HERE / "kmod" / name, target)


setup(
    ext_modules=[provider(path.relative_to(HERE)) for path in sorted((HERE / "providers").glob("*.c"))],
    cmdclass={"build_ext": BuildProviders, "build_py": BuildPackages},
)
