"""Tests under other versions of what this package depends on, in an environment of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Torch and this package come from the environment that runs the test; what the new environment installs goes before them.
_BORROW = "import site; site.addsitedir({!r})\n"


class Environment:
    """A virtual environment in ``folder`` with the newest of ``packages``; the test is skipped where pip cannot get them."""

    def __init__(self, folder: pathlib.Path, *packages: str) -> None:
        venv.create(folder / "venv", with_pip=True)
        self.folder, self.python = folder, folder / "venv" / "bin" / "python"
        self.site = next((folder / "venv" / "lib").glob("python*/site-packages"))
        (self.site / "borrow.pth").write_text(_BORROW.format(sysconfig.get_paths()["purelib"]))
        install = [self.python, "-m", "pip", "install", "--upgrade", *packages]
        installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"pip cannot get {', '.join(packages)}: {installed.stderr[-300:]}")

    def version(self, package: str) -> str:
        """The version of a package there."""
        command = [self.python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout.strip()

    def passes(self, *tests: pathlib.Path) -> bool:
        """Whether the tests pass there; what pytest says is printed."""
        # Not in the root: there transformers 5 would find our folder `kernels` instead of the package of that name.
        command = [
            self.python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            ROOT,
        ]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        child = subprocess.run([*command, *tests], cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        print(sys.version, child.stdout[-20_000:], child.stderr[-5_000:])
        return child.returncode == 0
