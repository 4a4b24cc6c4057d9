"""Tables of :mod:`longformer_triton.model.memory`: the longest texts for given memories, and what a length needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.memory import DTYPES, OPTIMIZERS, MemoryEstimate, estimate_memory, longest_text, usable
from longformer_triton.model.memory_terms import ARCHITECTURES

_BASE = {
    "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 4098, "type_vocab_size": 1, "attention_window": 512,
}  # fmt: skip
_LARGE = {**_BASE, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# The two models of the paper (arXiv 2004.05150, section 5).
SIZES: dict[str, dict[str, Any]] = {"longformer-base-4096": _BASE, "longformer-large-4096": _LARGE}
MODES: dict[str, dict[str, bool]] = {
    "trains": {"training": True},
    "trains, checkpointing": {"training": True, "checkpointing": True},
    "runs": {"training": False},
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a table is about: models, memories, and the options of :func:`estimate_memory` that all of them share."""

    memories: tuple[str, ...]
    models: dict[str, LongformerConfig]
    margin: float
    batch: int
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        memories: tuple[str, ...],
        model: str | None,
        *,
        batch: int,
        dtype: str,
        optimizer: str,
        architecture: str | None,
        num_globals: int,
        margin: float,
        device: str,
    ) -> Plan:
        """A plan from texts; ``model`` is a checkpoint's directory or hub name, or None for the paper's two sizes.

        An ``optimizer`` of "none" is none at all.

        Raises:
            ValueError, TypeError: something does not fit, with its name; CheckpointError where a file is missing or damaged.
            NotImplementedError: a checkpoint that no Longformer computes.
        """
        if optimizer not in (*OPTIMIZERS, "none"):
            raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(OPTIMIZERS)} or none.")
        dtypes = {str(known).removeprefix("torch."): known for known in DTYPES}
        if dtype.removeprefix("torch.") not in dtypes:
            raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(dtypes)}.")
        if model is None:
            models = {name: LongformerConfig(**sizes) for name, sizes in SIZES.items()}
        else:
            models = {model: LongformerConfig.from_pretrained(model)}
        config = next(iter(models.values()))
        if architecture is None:
            named = (config.architectures or [""])[0]
            architecture = named if named in ARCHITECTURES else "LongformerModel"
        options = {
            "dtype": dtypes[dtype.removeprefix("torch.")],
            "optimizer": None if optimizer == "none" else optimizer,
            "architecture": architecture,
            "num_globals": num_globals,
            "device": device,
        }
        for memory in memories:
            usable(memory, margin)
        return cls(memories, models, margin, batch, options)

    def longest(self) -> dict[str, list[list[str]]]:
        """For each model the most tokens in each mode and memory; the first row names the columns."""
        return {
            name: [["tokens", *self.memories], *([mode, *self._longest(config, flags)] for mode, flags in MODES.items())]
            for name, config in self.models.items()
        }

    def _longest(self, config: LongformerConfig, flags: dict[str, bool]) -> list[str]:
        found = (
            longest_text(config, memory, self.batch, margin=self.margin, **flags, **self.options) for memory in self.memories
        )
        return [f"{tokens:,}" if tokens else "none" for tokens in found]

    def needed(self, seq_len: int) -> dict[str, list[list[str]]]:
        """For each model what texts of a length need in each mode, and whether that fits; the first row names the columns."""
        tables = {}
        for name, config in self.models.items():
            tables[name] = [[f"{seq_len:,} token{'' if seq_len == 1 else 's'}", "GiB", *self.memories]]
            for mode, flags in MODES.items():
                estimate = self._estimate(config, seq_len, flags)
                marks = ("yes" if estimate.fits(memory, self.margin) else "no" for memory in self.memories)
                tables[name].append([mode, f"{estimate.total / 2**30:.2f}", *marks])
        return tables

    def breakdowns(self, seq_len: int) -> list[MemoryEstimate]:
        """The estimates behind :meth:`needed`, which print where the memory goes."""
        return [self._estimate(config, seq_len, flags) for config in self.models.values() for flags in MODES.values()]

    def notes(self) -> str:
        """What was estimated, and what was left out."""
        dtype = str(self.options["dtype"]).removeprefix("torch.")
        return (
            f"Estimated, not measured: {self.options['architecture']} on {self.options['device']}, batch {self.batch}, all in "
            f"{dtype}, {self.options['optimizer'] or 'no optimizer'}, {self.options['num_globals']} global in each text. "
            f"GB is 10^9 bytes, GiB 2^30. {self.margin:.0%} of the memory is set aside for what is left out: the CUDA "
            "context, libraries, rounding and fragmentation (--margin changes that). Texts longer than the position table need "
            "resize_position_embeddings."
        )

    def _estimate(self, config: LongformerConfig, seq_len: int, flags: dict[str, Any]) -> MemoryEstimate:
        return estimate_memory(config, self.batch, seq_len, **flags, **self.options)
