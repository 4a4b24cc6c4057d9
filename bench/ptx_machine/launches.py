"""Launches of the Triton backend, compiled for a GPU and run here."""

from __future__ import annotations

import functools
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from longformer_triton.bench.compiled import handle_of
from longformer_triton.bench.ptx_machine.machine import Code, Program
from longformer_triton.bench.ptx_machine.memory import FaultError, GlobalMemory, SharedMemory
from longformer_triton.bench.ptx_machine.parse import parse
from longformer_triton.bench.ptx_machine.transfers import TensorMap
from longformer_triton.kernels.triton_impl.steps import Launch

# Where tensor maps lie among the parameters.
_MAPS = 0x5000_0000


@functools.lru_cache(maxsize=64)
def _code(ptx: str) -> tuple[Code, list[tuple[str, str]]]:
    kernel = parse(ptx)
    return Code(kernel), kernel.parameters


def _parameters(
    launch: Launch, handle: Any, declared: list[tuple[str, str]], memory: GlobalMemory
) -> tuple[dict[str, int | float], dict[int, TensorMap]]:
    """A kernel's parameters by name, and tensor maps by address: its arguments in order, then two pointers to nothing."""
    values: list[int | float] = []
    maps: dict[int, TensorMap] = {}
    about = iter(handle.metadata.tensordesc_meta)
    for name, kind in handle.src.signature.items():
        argument = launch.arguments[name]
        if kind == "constexpr":
            continue
        if isinstance(argument, TensorDescriptor):
            tile = next(about)
            address = _MAPS + 128 * len(maps)
            maps[address] = TensorMap(
                memory.address(argument.base), tuple(argument.shape), tuple(argument.strides), tuple(tile["block_size"]),
                tile["elem_size"], tile["swizzle"],
            )  # fmt: skip
            values += [address, *argument.shape, *argument.strides]
        elif isinstance(argument, torch.Tensor):
            values.append(memory.address(argument))
        else:
            values.append(float(argument) if kind == "fp32" else int(argument))
    values += [0, 0]
    return dict(zip((name for _, name in declared), values, strict=True)), maps


def run_launch(launch: Launch, architecture: str, *, find_races: bool = False) -> None:
    """Compile one launch for ``architecture`` and run all of its programs.

    Raises:
        FaultError: a program did what a GPU, or its sanitizer, would have reported.
    """
    handle = handle_of(launch, architecture)
    code, declared = _code(handle.asm["ptx"])
    tensors = [
        argument.base if isinstance(argument, TensorDescriptor) else argument
        for argument in launch.arguments.values()
        if isinstance(argument, (torch.Tensor, TensorDescriptor))
    ]
    memory = GlobalMemory(tensors)
    parameters, maps = _parameters(launch, handle, declared, memory)
    for number in range(launch.programs):
        shared = SharedMemory(handle.metadata.shared, find_races=find_races)
        try:
            code.run(Program(number, launch.config.num_warps, parameters, memory, shared, maps))
        except FaultError as fault:
            raise FaultError(f"{launch.kernel.__name__} on {architecture}: {fault}") from None
    memory.store_back()
