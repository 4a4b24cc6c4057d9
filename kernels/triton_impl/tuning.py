"""Launch configurations."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping

import torch

INTERPRETER = "interpreter"
# The kernels whose configuration depends on what they run on.
KERNELS = (
    "forward",
    "backward_query",
    "backward_key_value",
    "rows_forward",
    "rows_backward_query",
    "rows_backward_key_value",
    "columns",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None
    reason: str = ""

    def options(self) -> dict[str, int]:
        """What the launch takes besides the kernel's own arguments."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.max_registers is None else {**options, "maxnreg": self.max_registers}


@dataclasses.dataclass(frozen=True)
class Target:
    """What the kernels are launched on: an architecture, whether its copy engine is used, and configurations under trial."""

    architecture: str
    descriptors: bool
    trial: Mapping[str, Config] = dataclasses.field(default_factory=dict)

    def config(self, kernel: str, head_dim: int, dtype: torch.dtype, precision: str, dropout: bool) -> Config:
        if kernel in self.trial:
            return self.trial[kernel]
        return Config(16, 64 if dropout else 16)


@functools.lru_cache
def target_of(device: torch.device) -> Target:
    """The target that ``device`` is."""
    if os.environ.get("TRITON_INTERPRET") == "1" and device.type == "cpu":
        return Target(INTERPRETER, descriptors=False)
    if torch.version.hip is not None:
        return Target(torch.cuda.get_device_properties(device).gcnArchName.split(":")[0], descriptors=False)
    major, minor = torch.cuda.get_device_capability(device)
    return Target(f"sm_{major}{minor}", descriptors=major >= 9)
