"""Numbers and machines in sentences."""

from __future__ import annotations


def counted(number: int | str, what: str) -> str:
    """1 thread, 2 threads."""
    return f"{number} {what}{'' if str(number) == '1' else 's'}"


def place(device: str, threads: int | str, torch: str) -> str:
    """A device, its number of threads if there is one, and its PyTorch: a processor, 2 threads, torch 2.13.0."""
    return ", ".join([device, *([counted(threads, "thread")] if threads else []), f"torch {torch}"])
