"""Which rows a step learns from, and which of their tokens are masked: both follow from the seed and the step alone.

So a run that goes on after a kill sees what it would have seen, and as many rows a step are the same rows however many
processes and batches they are divided among.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from longformer_triton.heads.collators import IGNORED, mask_tokens, ordinary_words
from longformer_triton.heads.packing import PackedRows

# What random numbers are for; each purpose has its own.
_HELD_OUT, _ORDER, _MASKING, _VALIDATION = range(4)


@dataclasses.dataclass(frozen=True)
class MaskedBatch:
    """Rows with masked tokens.

    Attributes:
        input_ids: (rows, seq_len) of int64.
        attention_mask: (rows, seq_len), or None if nothing is padding.
        places: (masked,) of int64: which tokens are to be predicted, counted through all rows.
        targets: (masked,) of int64: what they were.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    places: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> dict[str, Tensor | None]:
        """As arguments, on a device."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: None if value is None else value.to(device, non_blocking=True) for name, value in fields}

    @property
    def tokens(self) -> int:
        """How many tokens are no padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())


class TokenMasker:
    """Makes batches of rows, hiding tokens as a generator of each row's own says."""

    def __init__(self, tokenizer: Any, probability: float, seed: int) -> None:
        self.seed, self.probability = seed, probability
        self.mask_token_id, self.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.special, self.words = torch.tensor(tokenizer.all_special_ids), ordinary_words(tokenizer)

    def batch(self, rows: Sequence[numpy.ndarray], purpose: int, numbers: Sequence[int]) -> MaskedBatch:
        """Rows of any lengths; ``numbers`` say which random numbers each gets."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            original = torch.from_numpy(row)
            ids[place, : len(row)], labels[place, : len(row)] = mask_tokens(
                original,
                ~torch.isin(original, self.special),
                mask_token_id=self.mask_token_id,
                words=self.words,
                probability=self.probability,
                generator=_generator(self.seed, purpose, number),
            )
        lengths = torch.tensor([len(row) for row in rows])
        mask = None if int(lengths.min()) == width else (torch.arange(width) < lengths[:, None]).long()
        places = (labels.flatten() != IGNORED).nonzero().flatten()
        return MaskedBatch(ids, mask, places, labels.flatten()[places])


class TrainingRows:
    """An endless sequence of rows: all of them in random order, then all in another.

    Args:
        rows: packed texts.
        chosen: the numbers of the rows to learn from.
        masker: masks tokens.
    """

    def __init__(self, rows: PackedRows, chosen: Tensor, masker: TokenMasker) -> None:
        self.rows, self.chosen, self.masker = rows, chosen, masker
        self._epoch, self._order = -1, chosen

    def row_at(self, position: int) -> int:
        """The number of the row at a position of the sequence."""
        epoch, place = divmod(position, len(self.chosen))
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.chosen), generator=_generator(self.masker.seed, _ORDER, epoch))
            self._epoch = epoch
        return int(self.chosen[self._order[place]])

    def batch(self, start: int, count: int) -> MaskedBatch:
        """The ``count`` rows from a position on."""
        positions = range(start, start + count)
        return self.masker.batch([self.rows[self.row_at(position)] for position in positions], _MASKING, positions)


class ValidationRows:
    """Rows that are held out, with the same tokens masked each time.

    Args:
        rows: packed texts.
        chosen: the numbers of the rows.
        masker: masks tokens.
    """

    def __init__(self, rows: PackedRows, chosen: Tensor, masker: TokenMasker) -> None:
        self.rows, self.chosen, self.masker = rows, chosen.tolist(), masker

    def batches(self, size: int, process: int, processes: int) -> list[MaskedBatch]:
        """A process's share: as many batches as the others have, since they may wait for each other; some predict nothing."""
        batches = []
        together = size * processes
        for start in range(process * size, math.ceil(len(self.chosen) / together) * together, together):
            numbers = self.chosen[start : start + size]
            batch = self.masker.batch([self.rows[n] for n in numbers or self.chosen[:1]], _VALIDATION, numbers or [0])
            batches.append(batch if numbers else dataclasses.replace(batch, places=batch.places[:0], targets=batch.targets[:0]))
        return batches


def held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of rows (to learn from, to validate on), both ascending; one row at least is held out, unless ``share`` is 0.

    Raises:
        ValueError: nothing would be left to learn from.
    """
    size = max(1, round(count * share)) if share else 0
    if size >= count:
        raise ValueError(
            f"validation_share: got {share} of {count} rows, which leaves none to learn from: give more texts, a smaller "
            "seq_len, or validation_share 0."
        )
    order = torch.randperm(count, generator=_generator(seed, _HELD_OUT, 0))
    return order[size:].sort().values, order[:size].sort().values


def _generator(*parts: int) -> torch.Generator:
    """Random numbers that belong to these whole numbers."""
    seed = int(numpy.random.SeedSequence(parts).generate_state(1, numpy.uint64)[0])
    return torch.Generator().manual_seed(seed)
