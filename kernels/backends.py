"""Which backends there are, which of them run where, and which one a call gets."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Any

import torch

from longformer_triton.kernels import devices

_log = logging.getLogger(__name__)

BACKENDS = ("triton", "torch", "reference")
# What a call that leaves the choice gets on a GPU: the kernels, or the PyTorch backend where their table of configurations has
# no line for the problem. The operators decide, since a traced function cannot read the table.
AUTOMATIC = "triton, else torch"
# What a call gets that asked for the kernels and wants gradients: those must be served too, or it is refused.
BOTH_WAYS = "triton, both ways"
LARGEST_HEAD_DIM = 256
# Constants, so that torch.compile sees them as such.
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
# Whether Triton interprets its kernels on the CPU, for tests. Triton, too, reads this once.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
_OLDEST_CAPABILITY = (8, 0)


@functools.cache
def tell_torch_is_used(device: torch.device, reason: str | None) -> None:
    """Log, once for each reason, that the PyTorch backend computes what the kernels do not: a warning where that is slow."""
    if device.type == "meta":  # which computes nothing
        return
    is_slow = device.type != "cpu"
    level, where = (logging.WARNING, ", where it is slow") if is_slow else (logging.INFO, "")
    _log.log(level, "PyTorch backend in use on %s%s: %s", device, where, reason)


def best_device() -> str:
    """A GPU that PyTorch sees, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def why_absent(device: torch.device) -> str | None:
    """None when PyTorch sees ``device`` here, else the reason."""
    if device.type in ("cpu", "meta"):
        return None
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type != device.type:
        return f"PyTorch sees no {device.type} device here"
    if device.index is not None and device.index >= torch.accelerator.device_count():
        return f"PyTorch sees {torch.accelerator.device_count()} {device.type} devices here, and no {device}"
    return None


def present(device: torch.device | str | int) -> torch.device:
    """The device of that name, or the accelerator of that number.

    Raises:
        ValueError: there is no such name, or no such device here.
    """
    place = devices.as_device(device)
    reason = why_absent(place)
    if reason is not None:
        raise ValueError(f"device: got {str(device)!r}, expected one that is here: {reason}.")
    return place


def why_not(backend: str, device: torch.device, dtype: torch.dtype | None = None, head_dim: int | None = None) -> str | None:
    """None when ``backend`` runs on ``device``, else the reason. One probe for choosing, listing and refusing.

    Without ``dtype`` and ``head_dim`` the answer is for some tensors; with them, for such tensors.
    """
    if backend != "triton":
        return None
    if not TRITON_INSTALLED:
        return "the triton package is not installed: pip install 'triton>=3.6,<3.8'"
    if device.type == "cpu" and not INTERPRETING:
        return "Triton drives GPUs, not cpu devices (TRITON_INTERPRET=1, set before Python starts, interprets for tests)"
    if device.type not in ("cpu", "cuda"):
        return f"Triton drives GPUs, not {device.type} devices"
    if device.type == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly: use float16 or float32, or a GPU"
    if device.type == "cuda":
        if dtype == torch.float64:
            return "on GPUs the kernels accumulate in float32: backend='torch' computes float64"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
            major, minor = torch.cuda.get_device_capability(device)
            return f"the kernels need compute capability 8.0 or newer, and this GPU has {major}.{minor}"
    if head_dim is not None and head_dim > LARGEST_HEAD_DIM:
        return f"the kernels take head_dim up to {LARGEST_HEAD_DIM}, and this is {head_dim}"
    return None


def choose(requested: Any, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str:
    """The backend that runs: the one asked for, or the first that can (AUTOMATIC for the kernels); one that cannot raises.

    Left to choose, the kernels are for GPUs: interpreted ones run only when asked for.

    Raises:
        ValueError: no backend has that name.
        NotImplementedError: the backend asked for cannot run, with the reason.
    """
    if requested is None:
        usable = (name for name in BACKENDS if name != "triton" or device.type != "cpu")
        first = next(name for name in usable if why_not(name, device, dtype, head_dim) is None)
        return AUTOMATIC if first == "triton" else first
    if requested not in BACKENDS:
        raise ValueError(f"backend: got {requested!r}, expected None or one of {', '.join(map(repr, BACKENDS))}.")
    reason = why_not(requested, device, dtype, head_dim)
    if reason is not None:
        raise NotImplementedError(
            f"backend: got {requested!r}, which cannot run {str(dtype).removeprefix('torch.')} on {device}: {reason}. "
            "Pass backend=None for the best that runs; available_backends(device) lists all."
        )
    return requested
