"""Sliding chunks, the vectorised implementation of the paper (arXiv 2004.05150, appendix A), in plain PyTorch.

Query and key are cut into chunks of 2 w tokens that overlap by w. A batched product scores each chunk against itself; of these
scores the band of w keys on either side is taken, (seq_len, 2 w + 1), which costs twice the products that the window needs. The
same product the other way round gives the output, and autograd the backward. Kernels of today are measured against what this
could do without any.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout, pad

from longformer_triton.bench.cases import TRAINING, Case, Inputs
from longformer_triton.bench.provider import CAUSAL, DILATION, GLOBALS, GRAPH, GROUPED, Provider, Run


class Chunks(Provider):
    """The paper's chunks; no global tokens, as in its Figure 1."""

    name, title = "chunks", "sliding chunks (the paper's, PyTorch)"
    lacks = frozenset({GLOBALS, CAUSAL, DILATION, GROUPED, GRAPH})

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """Chunks of no tokens do not slide."""
        return "windows of at least 2" if not case.side else None

    def prepare(self, inputs: Inputs) -> Run:
        """Nothing to set up; what of the text is real is part of the call, as it is in a model."""
        case = inputs.case
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        return lambda: sliding_chunks(query, key, value, case.side, case.real_len, case.dropout / 100)

    def peak_bytes(self, case: Case, device: torch.device) -> int:
        """Scores of chunks, of the three parts of a band, and of the band: 4, 3 and 2 windows a token, some more than once."""
        band = case.batch * case.heads * (case.seq_len + case.side) * case.side * max(4, case.torch_dtype.itemsize)
        return super().peak_bytes(case, device) + band * (40 if case.direction == TRAINING else 22)


def sliding_chunks(query: Tensor, key: Tensor, value: Tensor, side: int, real_len: int, dropout_p: float = 0.0) -> Tensor:
    """Windowed attention by overlapping chunks.

    Args:
        query, key, value: (batch, heads, seq_len, head_dim).
        side: keys on each side of a query, at least 1.
        real_len: tokens that are no padding.
        dropout_p: on the probabilities.

    Returns:
        (batch, heads, seq_len, head_dim).
    """
    seq_len, scale = query.shape[2], query.shape[3] ** -0.5
    # Whole blocks of w tokens, and one more at either end, so that every block has two neighbours.
    ends = (0, 0, side, side + -seq_len % side)
    chunks = [pad(states, ends).unfold(2, 2 * side, side) for states in (query * scale, key)]  # [b, h, chunks, d, 2w]
    scores = chunks[0].transpose(-1, -2) @ chunks[1]  # [b, h, chunks, 2w, 2w]
    # A block's left neighbour is in the chunk that the block ends, its right one in the chunk that it begins.
    ending, beginning = scores[:, :, :-1, side:], scores[:, :, 1:, :side]
    three_blocks = torch.cat((ending[..., :side], beginning), -1)  # [b, h, blocks, w, 3w]
    band = _diagonals(three_blocks)  # [b, h, blocks, w, 2w + 1]

    real = torch.arange(-side, seq_len + side + -seq_len % side, device=query.device)
    visible = ((real >= 0) & (real < real_len)).unfold(0, 2 * side + 1, 1).view(-1, side, 2 * side + 1)
    probability = torch.softmax(band.masked_fill(~visible, torch.finfo(band.dtype).min), -1)
    probability = dropout(probability, dropout_p, training=dropout_p > 0)
    values = pad(value, ends).unfold(2, 3 * side, side)  # [b, h, blocks, d, 3w]
    out = _from_diagonals(probability) @ values.transpose(-1, -2)  # [b, h, blocks, w, d]
    return out.flatten(2, 3)[:, :, :seq_len]


def _diagonals(blocks: Tensor) -> Tensor:
    """(..., w, 3 w) to (..., w, 2 w + 1): row i from column i on. Rows that are one longer begin one further on each time."""
    side = blocks.shape[-2]
    return pad(blocks.flatten(-2), (0, side)).unflatten(-1, (side, 3 * side + 1))[..., : 2 * side + 1]


def _from_diagonals(band: Tensor) -> Tensor:
    """The inverse of :func:`_diagonals`, with zeros elsewhere."""
    side = band.shape[-2]
    return pad(band, (0, side)).flatten(-2)[..., :-side].unflatten(-1, (side, 3 * side))
