"""Launch configurations."""

from __future__ import annotations

import dataclasses


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


def choose(kernel: str, dropout: bool) -> Config:
    return Config(16, 64 if dropout else 16)
