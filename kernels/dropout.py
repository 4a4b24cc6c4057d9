"""Which attention probabilities dropout keeps: a pure function of (seed, batch, query head, query, key).

The bytes come from Philox4x32 with 7 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by the
seed's low and high 32 bits. Key j = 64 J + 8 k + 2 c + e (k < 8, c < 4, e < 2) reads byte 2 k + e, low byte first, of the call
with counter (query, 4 J + c, batch * query_heads + head, 0). A probability is dropped when its byte is below the threshold
t = round(256 p); survivors are scaled by 256 / (256 - t). Tiles, backends and recomputation therefore see one mask.

In a window with dilation d, key j counts as j // d and the last counter word is j mod d. Global rows, and global keys outside a
query's window, use the undilated j and 0.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 7
_BLOCK = 64


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-7 of four counter words (int64 tensors that broadcast, each in 0 .. 2**32 - 1): four words, likewise."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which leaves both 32-bit halves of the unsigned product intact.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _WORD) ^ c1 ^ k0
        c1 = product1 & _WORD
        c2 = ((product0 >> 32) & _WORD) ^ c3 ^ k1
        c3 = product0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


@dataclasses.dataclass(frozen=True)
class Dropout:
    """A seed (int64 tensor of shape ()) and a threshold t in 1 .. 255: drop where the byte is below t."""

    seed: Tensor
    threshold: int

    @property
    def scale(self) -> float:
        """What survivors are multiplied with, so that the expectation stays the same."""
        return 256 / (256 - self.threshold)

    def factor_range(
        self, stream: Tensor, query: Tensor, first_key: int, last_key: int, residue: int, dtype: torch.dtype
    ) -> Tensor:
        """Factors (0 or :attr:`scale`) for the contiguous keys ``first_key .. last_key - 1``: one Philox call serves 16 keys.

        Args:
            stream: (heads,) int64, batch * query_heads + head.
            query: (queries,) int64, absolute positions.
            first_key, last_key: in steps of the dilation, that is j // d.
            residue: j mod d.
            dtype: of the result.

        Returns:
            (heads, queries, last_key - first_key).
        """
        first_block, last_block = first_key // _BLOCK, -(-last_key // _BLOCK)
        call = torch.arange(4 * first_block, 4 * last_block, device=query.device)
        words = philox((query[:, None], call, stream[:, None, None], torch.full_like(call, residue)), self.seed)
        shape = (stream.shape[0], query.shape[0], last_block - first_block, 4)
        # [heads, queries, J, word, c], each word then read as its four bytes, low byte first: byte = 2 * (k % 2) + e.
        packed = torch.stack([word.expand(*shape[:2], call.shape[0]).reshape(shape) for word in words], dim=3)
        packed = torch.stack([(packed >> shift) & 0xFF for shift in (0, 8, 16, 24)], dim=-1)
        # [heads, queries, J, word, c, k % 2, e] -> [heads, queries, J, word, k % 2, c, e], which runs over the keys in order.
        byte = packed.unflatten(-1, (2, 2)).transpose(4, 5).reshape(shape[0], shape[1], -1)
        offset = first_key - first_block * _BLOCK
        return self._factor(byte[..., offset : offset + last_key - first_key], dtype)

    def factor_at(self, stream: Tensor, query: Tensor, key: Tensor, dtype: torch.dtype, residue: Tensor | int = 0) -> Tensor:
        """Factors for keys at arbitrary positions: (heads, queries, keys); the arguments broadcast to that shape."""
        call = 4 * (key // _BLOCK) + (key % 8) // 2
        residue = torch.as_tensor(residue, device=key.device)
        words = torch.stack(torch.broadcast_tensors(*philox((query, call, stream, residue), self.seed)))
        byte_index = (2 * ((key % _BLOCK) // 8) + key % 2).expand(words.shape[1:])
        word = words.gather(0, (byte_index // 4)[None])[0]
        return self._factor((word >> (8 * (byte_index % 4))) & 0xFF, dtype)

    def _factor(self, byte: Tensor, dtype: torch.dtype) -> Tensor:
        return (byte >= self.threshold).to(dtype) * self.scale
