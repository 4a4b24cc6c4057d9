"""Devices by their names, and whether tensors can be made there."""

from __future__ import annotations

from typing import Any

import torch


def as_device(value: Any) -> torch.device:
    """``torch.device(value)``; raises for what is none."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: got {value!r}, expected a torch.device or its name, such as cpu, cuda or cuda:1.") from None


def is_at(wanted: torch.device, place: torch.device) -> bool:
    """Whether ``place`` is the device that was asked for, whose number may have been left open."""
    return wanted.type == place.type and (wanted.index is None or wanted.type == "cpu" or wanted.index == place.index)


def usable(device: torch.device) -> None:
    """Refuse a device on which PyTorch cannot make tensors."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"device: got {str(device)!r}, expected one that is here: {error}") from error
