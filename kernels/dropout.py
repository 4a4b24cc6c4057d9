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

from longformer_triton.kernels.layout import ceil_div
from longformer_triton.kernels.workspace import Workspace

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
        # int64 products wrap modulo 2**64, which leaves both 32-bit halves of the unsigned product intact. Only factors have to
        # be 32-bit words: what c1 and c3 hold above that is cut off where they meet the next product's upper half.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) ^ c1 ^ k0) & _WORD, product1
        c2, c3 = ((product0 >> 32) ^ c3 ^ k1) & _WORD, product0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1 & _WORD, c2, c3 & _WORD


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
        self,
        stream: Tensor,
        query: Tensor,
        first_key: int,
        last_key: int,
        residue: int,
        dtype: torch.dtype,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """Factors (0 or :attr:`scale`) for the contiguous keys ``first_key .. last_key - 1``: one Philox call serves 16 keys.

        Args:
            stream: (heads,) int64, batch * query_heads + head.
            query: (queries,) int64, absolute positions.
            first_key, last_key: in steps of the dilation, that is j // d.
            residue: j mod d.
            dtype: of the result.
            workspace: scratch tensors to reuse; the result is then valid until the next call.

        Returns:
            (heads, queries, last_key - first_key).
        """
        workspace = workspace or Workspace()
        first_block, last_block = first_key // _BLOCK, ceil_div(last_key, _BLOCK)
        blocks = torch.arange(first_block, last_block, device=query.device)
        call = 4 * blocks + torch.arange(4, device=query.device)[:, None, None, None]
        heads, queries = stream.shape[0], query.shape[0]
        # [word, c, heads, queries, J]
        shape = (4, 4, heads, queries, len(blocks))
        counter = (query[:, None], call, stream[:, None, None], torch.full_like(blocks, residue))
        words = torch.stack(philox(counter, self.seed), out=workspace.take("words", call, *shape))
        packed = workspace.take("packed", call, heads, queries, len(blocks), 4, 2)
        # In the order of the keys, word k // 2 gives its low half (k even) for c = 0 .. 3, then its high half (k odd): eight
        # bytes each time, so four halves are gathered into 64 bits, and those read as bytes. That moves an eighth of the
        # elements that bytes of their own would be. (Low byte first: so do the processors that PyTorch runs on.)
        halves = workspace.take("halves", call, *shape)
        for odd in range(2):
            if odd:
                torch.bitwise_right_shift(words, 16, out=halves)
            else:
                torch.bitwise_and(words, 0xFFFF, out=halves)
            eight = halves[:, 0]
            for c in range(1, 4):
                eight |= halves[:, c].bitwise_left_shift_(16 * c)
            packed[..., odd] = eight.movedim(0, -1)
        byte = packed.view(torch.uint8).flatten(2)
        offset, count = first_key - first_block * _BLOCK, last_key - first_key
        factor = workspace.take("factor", call, heads, queries, count, dtype=dtype)
        return self._thin(factor.copy_(byte[..., offset : offset + count]))

    def factor_at(self, stream: Tensor, query: Tensor, key: Tensor, dtype: torch.dtype, residue: Tensor | int = 0) -> Tensor:
        """Factors for keys at arbitrary positions: (heads, queries, keys); the arguments broadcast to that shape."""
        call = 4 * (key // _BLOCK) + (key % 8) // 2
        residue = torch.as_tensor(residue, device=key.device)
        words = torch.stack(torch.broadcast_tensors(*philox((query, call, stream, residue), self.seed)))
        byte_index = (2 * ((key % _BLOCK) // 8) + key % 2).expand(words.shape[1:])
        word = words.gather(0, (byte_index // 4)[None])[0]
        return self._thin(((word >> (8 * (byte_index % 4))) & 0xFF).to(dtype))

    def _thin(self, byte: Tensor) -> Tensor:
        """Factors in place of bytes, which come as floats: bytes of a slice would be compared one at a time."""
        return byte.ge_(self.threshold).mul_(self.scale)
