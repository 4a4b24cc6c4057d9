"""What a run ran in: ``environment.json`` beside the CSV, so that a table can be cited and a difference explained.

One session for each command that wrote rows into the folder. The file never names a user, a host or a folder of the machine:
paths in the command line and in variables are cut down to their last component.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch

from longformer_triton.bench.driver import driver_version

FILE_NAME = "environment.json"
# Instruction sets that decide how fast a matrix product or a conversion runs, by the names of x86 and of ARM kernels.
_CPU_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
_PACKAGES = (
    "longformer-triton", "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy", "accelerate", "pandas",
    "matplotlib", "flash-attn", "xformers", "natten", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "intel-openmp", "mkl",
)  # fmt: skip
_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|ONEDNN|DNNL|OPENBLAS|MALLOC|GLIBC|TRITON|CUDA|NVIDIA|TORCHINDUCTOR|PYTORCH|LONGFORMER_TRITON)_\w+"
    r"|LD_PRELOAD|ATEN_CPU_CAPABILITY|LONGFORMER_BENCH_COMMIT"
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW", re.IGNORECASE)


def without_folders(text: str) -> str:
    """Text whose absolute paths, home-relative ones and ones that climb are cut down to their last component."""
    return re.sub(r"(?<![\w.])(?:~|\.\.)?/[^\s:;,='\"]*", _last_component, text)


def _last_component(path: re.Match[str] | str) -> str:
    place = pathlib.PurePath(path if isinstance(path, str) else path[0])
    # A home directory's last component is the name of its user.
    return "~" if place == pathlib.Path.home() else place.name or "/"


def command_line(arguments: Sequence[str]) -> str:
    """The command as one would type it again."""
    program = pathlib.PurePath(arguments[0]).name if arguments else ""
    if program in ("cli.py", "__main__.py", "-c", "-m", ""):
        program = "longformer-triton"
    return shlex.join([program, *map(_argument, arguments[1:])])


def _argument(text: str) -> str:
    """One word of a command line; as a whole it may be a path with spaces."""
    option, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    if value.startswith(("/", "~/")) and ":" not in value:
        return option + equals + _last_component(value)
    return option + equals + without_folders(value)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change how fast something runs, or what it computes with."""
    return {
        name: without_folders(value)
        for name, value in sorted(environment.items())
        if _VARIABLES.fullmatch(name) and not _SECRET.search(name)
    }


def _cpu_flags() -> list[str]:
    path = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", path.read_text() if path.exists() else "", re.MULTILINE)
    present = set(found[1].split()) if found else set()
    return [flag for flag in _CPU_FLAGS if flag in present]


def _cpu() -> dict[str, Any]:
    from longformer_triton.bench.machine import device_name

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": device_name(torch.device("cpu")),
        "flags": _cpu_flags(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": allowed,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _gpus() -> list[dict[str, Any]]:
    """Only where the run uses them: asking starts CUDA, which a run on the CPU should not."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "model": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "driver": driver_version(),
            }
        )
    return found


def _torch_build() -> dict[str, Any]:
    """What torch's libraries are; its compiler flags are left out."""
    shown = torch.__config__.show().splitlines()
    lines = [line.strip(" -") for line in shown if line.startswith("  - ") and "Build settings" not in line]
    return {
        "libraries": [without_folders(line) for line in lines],
        "cuda": torch.version.cuda or torch.version.hip or "",
        "cudnn": torch.backends.cudnn.version() or "",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _fixed() -> dict[str, Any]:
    """What does not change while a process lives."""
    return {
        "system": {
            "name": platform.system(),
            # Whoever builds kernels may name them after machines.
            "release": re.split(r"[^\d.]", platform.release())[0],
            "libc": " ".join(platform.libc_ver()),
        },
        "cpu": _cpu(),
        "versions": _versions(),
        "torch_build": _torch_build(),
    }


def session(origin: Mapping[str, str]) -> dict[str, Any]:
    """A description of this process. ``origin`` is the provenance of its rows, from ``machine.provenance``."""
    commit = origin.get("commit", "")
    return {
        "command": command_line(sys.argv),
        "commit": commit.removesuffix("+"),
        "uncommitted_changes": commit.endswith("+"),
        "device": origin.get("device", ""),
        "threads": origin.get("threads", ""),
        **_fixed(),
        "gpus": _gpus(),
        "variables": variables(os.environ),
    }


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The sessions of a folder, oldest first; empty where none were noted.

    Raises:
        ValueError: the file is not what :func:`note` writes.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        sessions = json.loads(path.read_text())["sessions"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"out: {path} is no list of sessions ({error!r}); move it away, or choose an empty folder.") from error
    if not isinstance(sessions, list) or not all(isinstance(entry, dict) for entry in sessions):
        raise ValueError(f"out: {path} is no list of sessions; move it away, or choose an empty folder.")
    return sessions


def note(folder: pathlib.Path, origin: Mapping[str, str]) -> None:
    """Add this process to the sessions of ``folder``; a session like the last one adds its date there.

    Raises:
        ValueError: the file that is there is not one of ours.
    """
    sessions, entry, date = read(folder), session(origin), origin.get("date", "")
    if sessions and {name: value for name, value in sessions[-1].items() if name != "dates"} == entry:
        if date not in sessions[-1]["dates"]:
            sessions[-1]["dates"].append(date)
    else:
        sessions.append({"dates": [date], **entry})
    # Replaced as a whole, so that an interruption leaves the old file or the new one.
    unfinished = folder / f"{FILE_NAME}.part"
    unfinished.write_text(json.dumps({"sessions": sessions}, indent=1) + "\n")
    unfinished.replace(folder / FILE_NAME)
