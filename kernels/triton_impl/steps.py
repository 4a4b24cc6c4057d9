"""What a call of the backend is made of: launches of kernels, and what PyTorch does between them.

A kernel has some sixty arguments, and Triton looks at each of them in every launch, to see which of the programs that it has
compiled it wants: 50 microseconds of Python, where the kernel itself may take 20. What decides is little, and known here, so
the programs that Triton gives out are kept by it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from longformer_triton.kernels.triton_impl.tuning import Config, NotServedError

# By what decides about them, the programs that Triton has compiled and loaded.
_compiled: dict[Hashable, Any] = {}


@functools.lru_cache
def _parameters(kernel: Any) -> tuple[tuple[bool, bool], ...]:
    """Of each parameter, whether it is a constant, and whether some values of a number get programs of their own."""
    return tuple((parameter.is_constexpr, not parameter.do_not_specialize) for parameter in kernel.params)


def _kind(value: Any, is_specialised: bool) -> Hashable:
    """What Triton's choice of a program sees of an argument that is no constant, or more.

    Of pointers their type and whether they are aligned to 16 bytes; of whole numbers their width and, where they are
    specialised, whether they are 1 or multiples of 16; of numbers that are no whole ones, nothing.
    """
    if type(value) is int:
        is_wide = not -(2**31) <= value < 2**31
        return (is_wide, value == 1, value % 16 == 0) if is_specialised else is_wide
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, TensorDescriptor):
        return value.base.dtype, *value.block_shape
    return float if type(value) is float else value


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel with its grid, its arguments in the order of its signature, and its configuration."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    config: Config

    @staticmethod
    def of(kernel: Any, programs: int, config: Config, available: dict[str, Any]) -> Launch:
        """Pick the kernel's arguments out of everything that is available."""
        available = {**available, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        return Launch(kernel, programs, {name: available[name] for name in kernel.arg_names}, config)

    @property
    def compiled_key(self) -> Hashable:
        """Equal for two launches only if one program of Triton's serves both, on one device."""
        kinds = [
            value if is_constant else _kind(value, is_specialised)
            for value, (is_constant, is_specialised) in zip(self.arguments.values(), _parameters(self.kernel), strict=True)
        ]
        return (self.kernel, self.config, *kinds)

    def run(self) -> None:
        """Launch on the current stream of the current device.

        Raises:
            NotServedError: the device has less shared memory than the configuration needs; the message has both numbers.
        """
        is_compiled_for_nvidia = isinstance(self.kernel, triton.JITFunction) and torch.version.hip is None
        # AMD's programs differ by the sizes of tensors too.
        key = (torch.cuda.current_device(), self.compiled_key) if is_compiled_for_nvidia else None
        program = _compiled.get(key)
        if program is not None:
            program[(self.programs, 1, 1)](*self.arguments.values())
            return
        try:
            program = self.kernel[(self.programs,)](**self.arguments, **self.config.options())
        except OutOfResources as error:
            raise NotServedError(
                f"the {self.kernel.__name__} kernel needs {error.required} ({error.name}) with {self.config}, and the "
                f"device has {error.limit} (`longformer-triton bench tune` finds a smaller one)"
            ) from error
        if key is not None:
            _compiled[key] = program


@dataclasses.dataclass(frozen=True)
class HostStep:
    """What PyTorch does between two launches."""

    run: Callable[[], object]


Step = Launch | HostStep
