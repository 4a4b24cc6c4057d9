"""One cell of a benchmark: its axes, its inputs, and how many useful operations it takes."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import random

import torch
from torch import Tensor

from longformer_triton.kernels import AttentionPattern

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FORWARD, TRAINING = "forward", "forward+backward"
DIRECTIONS = (FORWARD, TRAINING)
PREFIX, SCATTERED = "prefix", "scattered"
PLACES = (PREFIX, SCATTERED)
_DROPOUT_SEED = 20040515


@dataclasses.dataclass(frozen=True)
class Case:
    """The axes of one cell. Lengths are in tokens, shares in percent.

    Attributes:
        provider: whose implementation.
        direction: forward, or forward+backward.
        seq_len: tokens of each text, padding included.
        window: keys that an interior query sees besides itself, Hugging Face's attention_window: half on each side, or all
            before it where ``is_causal``. None for providers that compute full attention.
        batch: texts.
        heads: query heads.
        head_dim: channels of a head.
        dtype: of the inputs, a key of ``DTYPES``.
        num_globals: global tokens of each text. Their rows have projections of their own and see everything; where
            ``is_causal`` they are keys alone, attention sinks.
        globals_at: where they are: ``prefix``, at the start, or ``scattered`` over the text, elsewhere in each text.
        padding: share of tokens at the end of each text that are padding.
        dropout: share of the probabilities that are dropped; implementations round it, ours to a multiple of 1/256.
        is_causal: 1 where no query sees a key after itself.
        dilation: distance between neighbouring keys of a window.
        key_heads: heads of key and value (grouped-query attention); None: as many as query heads.
        graph: 1 where the call is captured in a CUDA graph once and replayed.
    """

    provider: str
    direction: str
    seq_len: int
    window: int | None
    batch: int = 1
    heads: int = 12
    head_dim: int = 64
    dtype: str = "float32"
    num_globals: int = 0
    globals_at: str = PREFIX
    padding: int = 0
    dropout: int = 0
    is_causal: int = 0
    dilation: int = 1
    key_heads: int | None = None
    graph: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """What identifies the cell in a file of results."""
        return dataclasses.astuple(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the inputs."""
        return DTYPES[self.dtype]

    @property
    def side(self) -> int:
        """Keys on each side of a query in a window that looks both ways."""
        return self.seq_len if self.window is None else self.window // 2

    @property
    def band(self) -> tuple[int, int]:
        """(left, right): steps that a query sees before and after itself; full attention is a window of everything."""
        if self.window is None:
            return self.seq_len, 0 if self.is_causal else self.seq_len
        return (self.window, 0) if self.is_causal else (self.side, self.side)

    @property
    def step(self) -> int:
        """The dilation of the window; full attention has none."""
        return 1 if self.window is None else self.dilation

    @property
    def real_len(self) -> int:
        """Tokens of each text that are no padding."""
        return self.seq_len - self.seq_len * self.padding // 100

    @property
    def real_key_heads(self) -> int:
        """Heads of key and value."""
        return self.heads if self.key_heads is None else self.key_heads

    @property
    def has_global_rows(self) -> bool:
        """Whether global tokens have rows of their own; those are bidirectional by nature, so not in a causal pattern."""
        return self.num_globals > 0 and not self.is_causal

    def global_positions(self, sample: int = 0) -> list[int]:
        """The global tokens of one text, ascending: the same for every provider, window and direction.

        Scattered ones lie one in each of ``num_globals`` equal stretches of the text, at a random place of it.
        """
        if self.globals_at == PREFIX:
            return list(range(self.num_globals))
        draw, count = random.Random(sample), self.num_globals
        bounds = [index * self.real_len // count for index in range(count + 1)] if count else []
        return [low + int(draw.random() * (high - low)) for low, high in itertools.pairwise(bounds)]


def visible_pairs(case: Case, sample: int = 0) -> int:
    """Pairs (query, key) of one text and head that the softmaxes run over; exact for every combination of axes.

    Counted over the R tokens that are no padding. A window of (l, r) steps has, in each residue class of the dilation, with m
    tokens and l, r < m, m (l + r + 1) - l (l + 1) / 2 - r (r + 1) / 2 pairs. A global token adds a column for the queries that
    do not see it in their window (those after it, where causal), and its own row, unless causal, attends to all R keys in place
    of its window and the global keys. O(G log G) for G global tokens.
    """
    length, (left, right), step = case.real_len, case.band, case.step
    full, rest = divmod(length, step)
    pairs = rest * _band_pairs(full + 1, left, right) + (step - rest) * _band_pairs(full, left, right)
    positions = case.global_positions(sample)
    classes: dict[int, list[int]] = {}
    for position in positions:
        classes.setdefault(position % step, []).append(position)
    for position in positions:
        # The queries that see a key in their window are the keys that it would see in the window turned round.
        pairs += (length - position if case.is_causal else length) - _in_window(position, right, left, step, length)
        if not case.is_causal:
            like = classes[position % step]
            inside = bisect.bisect_right(like, position + right * step) - bisect.bisect_left(like, position - left * step)
            pairs += length - (_in_window(position, left, right, step, length) + len(positions) - inside)
    return pairs


def _band_pairs(length: int, left: int, right: int) -> int:
    """Pairs of ``length`` tokens in a row of which the second is at most ``left`` before or ``right`` after the first."""
    left, right = min(left, length - 1), min(right, length - 1)
    return length * (left + right + 1) - (left * (left + 1) + right * (right + 1)) // 2 if length else 0


def _in_window(position: int, left: int, right: int, step: int, length: int) -> int:
    """Keys in the window of one query."""
    return min(left, position // step) + min(right, (length - 1 - position) // step) + 1


def useful_flops(case: Case) -> int:
    """Floating-point operations that cannot be avoided: 4 head_dim a visible pair forward, 2.5 times that backward.

    Forward has two matrix products (q k^T, p v) of 2 head_dim operations a pair; backward five (the scores again, dp, dq, dk,
    dv). Softmax, masks and recomputation beyond that are not counted, and dropout spares nothing: a product of tiles does not
    get shorter by zeros in it.
    """
    if case.num_globals and case.globals_at == SCATTERED:
        pairs = sum(visible_pairs(case, sample) for sample in range(case.batch))
    else:
        pairs = case.batch * visible_pairs(case)
    forward = 4 * case.head_dim * case.heads * pairs
    return forward if case.direction == FORWARD else forward + forward * 5 // 2


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random inputs of a cell.

    ``packed`` holds the leaves as a model's projections give them, (batch, seq_len, heads * head_dim); ``heads_of`` views them
    as (batch, heads, seq_len, head_dim). Random, never zeros: zeros run faster than data. Only ``grad_out`` is zero, where
    padding is: a loss does not look there.
    """

    case: Case
    packed: dict[str, Tensor]
    grad_out: Tensor

    @classmethod
    def random(cls, case: Case, device: torch.device, seed: int = 0) -> Inputs:
        """The same numbers for every provider of a cell."""
        generator = torch.Generator(device=device).manual_seed(seed)
        training = case.direction == TRAINING
        names = ["query", "key", "value"] + (["query_global", "key_global", "value_global"] if case.has_global_rows else [])

        def draw(heads: int) -> Tensor:
            shape = (case.batch, case.seq_len, heads * case.head_dim)
            return torch.randn(shape, generator=generator, device=device).to(case.torch_dtype)

        packed = {
            name: draw(case.heads if name.startswith("query") else case.real_key_heads).requires_grad_(training)
            for name in names
        }
        grad_out = draw(case.heads)
        grad_out[:, case.real_len :] = 0
        return cls(case, packed, cls._split(grad_out, case))

    @staticmethod
    def _split(states: Tensor, case: Case) -> Tensor:
        return states.unflatten(-1, (-1, case.head_dim)).transpose(1, 2)

    def heads_of(self, name: str) -> Tensor:
        """(batch, heads or key_heads, seq_len, head_dim), a view of the leaf."""
        return self._split(self.packed[name], self.case)

    @functools.cached_property
    def attention_mask(self) -> Tensor:
        """(batch, seq_len) int64, 0 at padding."""
        mask = torch.ones((self.case.batch, self.case.seq_len), dtype=torch.int64, device=self.grad_out.device)
        mask[:, self.case.real_len :] = 0
        return mask

    @functools.cached_property
    def global_attention_mask(self) -> Tensor:
        """(batch, seq_len) int64, 1 at global tokens."""
        mask = torch.zeros((self.case.batch, self.case.seq_len), dtype=torch.int64)
        for sample in range(self.case.batch):
            mask[sample, self.case.global_positions(sample)] = 1
        return mask.to(self.grad_out.device)

    @functools.cached_property
    def dropout_seed(self) -> Tensor:
        """int64, of shape (): the seed of implementations whose dropout is a function of one."""
        return torch.tensor(_DROPOUT_SEED, device=self.grad_out.device)

    def pattern(self) -> AttentionPattern:
        """The cell's pattern, built from masks as a model would; without padding there is no mask, for anybody."""
        case = self.case
        return AttentionPattern.from_masks(
            self.attention_mask if case.padding else None,
            self.global_attention_mask if case.num_globals else None,
            shape=(case.batch, case.seq_len),
            device=self.grad_out.device,
            window=case.band,
            dilation=case.step,
            is_causal=bool(case.is_causal),
            # The number of global tokens is known, so nothing has to be read back from a device.
            max_globals=case.num_globals or None,
        )
