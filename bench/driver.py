"""The version of NVIDIA's kernel driver, which PyTorch does not tell."""

from __future__ import annotations

import pathlib
import re

_TOLD_BY = pathlib.Path("/proc/driver/nvidia/version")


def driver_version() -> str:
    """Such as "550.54.15"; empty where there is none."""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _TOLD_BY.read_text() if _TOLD_BY.exists() else "")
    return found[1] if found else ""
