"""Who attends to whom: the one statement of Longformer's mask rule.

A query token ``i`` sees a key token ``j`` when both are real tokens and

    (j is global)  or  (j = i + m * dilation  for some  -left <= m <= right)

and, in a causal pattern, ``j <= i`` as well (Beltagy, Peters, Cohan 2020, arXiv 2004.05150, sections 3.1 and 3.2). Every
backend calls :func:`in_band` and :func:`key_range` or has a twin of them, and is tested against this rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from longformer_triton.kernels import checks, compaction, devices
from longformer_triton.kernels.layout import ceil_div

_PICTURE_TOKENS = 64


def in_band(query_position: Tensor, key_position: Tensor, left: int, right: int, dilation: int | Tensor) -> Tensor:
    """Whether each key lies in the window of each query; positions broadcast against each other."""
    distance = key_position - query_position
    inside = (distance >= -left * dilation) & (distance <= right * dilation)
    if isinstance(dilation, int) and dilation == 1:
        return inside
    return inside & (distance % dilation == 0)


def key_range(first_query: int, end_query: int, left: int, right: int, seq_len: int) -> tuple[int, int]:
    """The half-open range of keys that any of the queries ``first_query .. end_query - 1`` sees without dilation.

    With ``left`` and ``right`` exchanged it goes the other way: ``key_range(a, b, right, left, n)`` are the queries that see
    any of the keys ``a .. b - 1``.
    """
    return max(0, first_query - left), min(seq_len, end_query + right)


def flags_and_span(key_mask: Tensor) -> tuple[Tensor, Tensor]:
    """``key_flags`` and ``key_span`` of a pattern, by which backends leave out the padding at both ends.

    Flags are int16: Triton picks a product's layout by the narrowest type that its operands depend on, and miscompiles some of
    those that it picks for bytes (bench/LOG.md, "a mask of bytes").
    """
    flags = key_mask.to(torch.int16, memory_format=torch.contiguous_format)
    first = flags.argmax(1)
    last = (flags * torch.arange(1, flags.shape[1] + 1, dtype=torch.int32, device=flags.device)).amax(1)
    return flags, torch.stack([first, last, last - first - flags.sum(1)], 1).to(torch.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPattern:
    """A sliding window, its dilation, the padding and the global tokens of one batch.

    Build it with :meth:`from_masks`, once a forward pass; it serves every layer (:meth:`with_window` for layers whose window
    differs). It costs O(batch * seq_len) memory, lives on the device of the masks, and is no block mask.

    Attributes:
        window: (left, right), the number of steps that a query sees before and after itself, both inclusive; 2**31 - 1 at most,
            which is farther than any text reaches.
        dilation: the distance between two neighbouring keys of a window, one number or one a query head.
        is_causal: whether a query sees no key after itself, global keys included.
        batch: number of sequences.
        seq_len: number of tokens in each, padding included.
        key_mask: (batch, seq_len) bool, True at real tokens; None when all are real.
        key_flags: (batch, seq_len) int16, 1 at real tokens; None when all are real. What the kernels read.
        key_span: (batch, 3) int32, the first real token, one past the last, how many between are masked; None likewise.
        global_mask: (batch, seq_len) bool, True at global tokens (never at padding); None when none is global.
        global_index: (batch, G) int64, the positions of the global tokens, ascending, padded with -1.
        global_count: (batch,) int64, how many entries of each row of ``global_index`` count.
    """

    window: tuple[int, int]
    dilation: int | tuple[int, ...]
    is_causal: bool
    batch: int
    seq_len: int
    key_mask: Tensor | None
    key_flags: Tensor | None = dataclasses.field(repr=False)
    key_span: Tensor | None = dataclasses.field(repr=False)
    global_mask: Tensor | None
    global_index: Tensor
    global_count: Tensor

    @classmethod
    def from_masks(
        cls,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        *,
        shape: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        window: int | tuple[int, int],
        dilation: int | Sequence[int] = 1,
        is_causal: bool = False,
        max_globals: int | None = None,
        validate: bool | None = None,
    ) -> AttentionPattern:
        """Build a pattern from Hugging Face's two masks.

        Args:
            attention_mask: (batch, seq_len) of bool, integer or float; 1 = real token, 0 = padding, 2 = real and global.
            global_attention_mask: (batch, seq_len) of 0 and 1; 1 = global token. A padded token is never global.
            shape: (batch, seq_len), needed when neither mask is given.
            device: where the pattern lives: with the masks, or when neither is given here; the default is the CPU.
            window: (left, right) in steps, both inclusive; an int w means (w, w).
            dilation: one number, or one for each query head.
            is_causal: forbid keys after the query.
            max_globals: the width of ``global_index``. Given, nothing is read back from the device (CUDA graphs can capture
                the call) and a batch with more globals stops in an assertion. Omitted, the width is the largest count.
            validate: check the values of the masks. The default checks where that costs no synchronisation: eager CPU.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: shapes, devices or values do not fit; the message names the argument and the remedy.
        """
        left, right = checks.window(window)
        steps = checks.dilation(dilation)
        batch, seq_len, place = checks.mask_shape(attention_mask, global_attention_mask, shape, device)
        max_globals = checks.max_globals(max_globals)
        is_causal = checks.is_causal(is_causal)
        if checks.should_validate(validate, place):
            checks.mask_values("attention_mask", attention_mask, highest=2)
            checks.mask_values("global_attention_mask", global_attention_mask, highest=1)

        key_mask = None if attention_mask is None else attention_mask != 0
        key_flags, key_span = (None, None) if key_mask is None else flags_and_span(key_mask)
        global_mask = None if global_attention_mask is None else global_attention_mask != 0
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            marked = attention_mask == 2
            global_mask = marked if global_mask is None else global_mask | marked
        if global_mask is None and max_globals is not None:
            global_mask = torch.zeros((batch, seq_len), dtype=torch.bool, device=place)  # a width that was given is kept
        if global_mask is not None and key_mask is not None:
            global_mask = global_mask & key_mask

        if global_mask is not None and max_globals is None and place.type == "meta":
            raise ValueError("max_globals: got None for masks on meta, which cannot be counted, expected a number.")
        if global_mask is not None:
            index, count = compaction.global_index(global_mask, max_globals)
            # Where the width was counted and is known, a mask that marks nothing is as good as none, and cheaper.
            if max_globals is None and not checks.is_tracing() and index.shape[1] == 0:
                global_mask = None
        else:
            index = torch.empty((batch, 0), dtype=torch.int64, device=place)
            count = torch.zeros((batch,), dtype=torch.int64, device=place)
        return cls((left, right), steps, is_causal, batch, seq_len, key_mask, key_flags, key_span, global_mask, index, count)

    @property
    def band(self) -> tuple[int, int]:
        """(left, right) after causality: what the window part of a kernel runs over."""
        left, right = self.window
        return (left, 0) if self.is_causal else (left, right)

    @property
    def covering(self) -> Literal["full", "causal"] | None:
        """The dense attention that this amounts to when no window leaves anything out: "full", "causal", or None when some do.

        Global keys then add nothing: every query that may see one has it inside its window.
        """
        (left, right), reach = self.band, self.seq_len - 1
        if left < reach or set(self.dilations) != {1}:
            return None
        if right >= reach:
            return "full"
        # A window that ends at its query is causal attention too, as long as no global key stands after a query.
        return "causal" if right == 0 and (self.is_causal or self.global_mask is None) else None

    @property
    def dilations(self) -> tuple[int, ...]:
        """The dilation as a tuple, of length one when it is the same for every head."""
        return (self.dilation,) if isinstance(self.dilation, int) else self.dilation

    @property
    def device(self) -> torch.device:
        """Where the pattern lives."""
        return self.global_index.device

    def with_window(self, window: int | tuple[int, int]) -> AttentionPattern:
        """The same masks and global tokens with another window; nothing is computed again.

        Raises:
            TypeError, ValueError: ``window`` does not fit.
        """
        return dataclasses.replace(self, window=checks.window(window))

    def to(self, device: torch.device | str) -> AttentionPattern:
        """The same pattern with its tensors on ``device``; this one where they are there.

        Raises:
            ValueError: there is no such device.
        """
        place = devices.as_device(device)
        if devices.is_at(place, self.device) and (place.index is not None or place.type == "cpu"):
            return self
        devices.usable(place)
        tensors: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)

    def gather_global(self, states: Tensor) -> Tensor:
        """The rows of ``states`` at the global tokens, differentiable.

        Args:
            states: (batch, heads, seq_len, head_dim), or any (batch, ..., seq_len, features).

        Returns:
            (batch, ..., G, features); entries past a sample's own count are zero.

        Raises:
            TypeError, ValueError: ``states`` is no tensor, or not of the pattern's batch, seq_len and device.
        """
        checks.gatherable("states", states, self.batch, self.seq_len, self.device)
        between = (1,) * (states.dim() - 3)
        index = self.global_index.view(self.batch, *between, self.global_index.shape[1], 1)
        rows = states.gather(-2, index.clamp_min(0).expand(*states.shape[:-2], index.shape[-2], states.shape[-1]))
        return torch.where(index >= 0, rows, rows.new_zeros(()))

    def to_dense(self) -> Tensor:
        """(batch, heads or 1, seq_len, seq_len) bool, True where the query (row) sees the key (column).

        Quadratic in memory: for tests, pictures and explanations. Rows of padded queries are all False.
        """
        return self._visible_among(self.seq_len)

    def _visible_among(self, tokens: int) -> Tensor:
        """The upper left corner of :meth:`to_dense`, (batch, heads or 1, tokens, tokens): the first ``tokens`` tokens."""
        position = torch.arange(tokens, device=self.device)
        query, key = position[:, None], position[None, :]
        left, right = self.window
        visible = torch.stack([in_band(query, key, left, right, d) for d in self.dilations])[None]
        if self.global_mask is not None:
            visible = visible | self.global_mask[:, None, None, :tokens]
        if self.is_causal:
            visible = visible & (key <= query)
        if self.key_mask is not None:
            real = self.key_mask[:, None, :tokens]
            visible = visible & real[:, :, None, :] & real[:, :, :, None]
        return visible.expand(self.batch, -1, -1, -1)

    def visible_keys(self) -> Tensor:
        """How many keys each query sees: (batch, heads or 1, seq_len) int64, in O(batch * heads * seq_len)."""
        key_mask = self.key_mask
        if key_mask is None:
            key_mask = torch.ones((self.batch, self.seq_len), dtype=torch.bool, device=self.device)
        count = torch.stack([self._count_in_window(key_mask, d) for d in self.dilations], 1)
        if self.global_mask is not None:
            total = self.global_mask.sum(1, keepdim=True) if not self.is_causal else self.global_mask.cumsum(1)
            inside = torch.stack([self._count_in_window(self.global_mask, d) for d in self.dilations], 1)
            count = count + total[:, None] - inside
        return count * key_mask[:, None]

    def _count_in_window(self, marked: Tensor, dilation: int) -> Tensor:
        """(batch, seq_len): the number of marked keys inside each query's window, by prefix sums over residue classes."""
        left, right = self.band
        dilation = min(dilation, self.seq_len)  # farther apart, each token is alone too
        steps = ceil_div(self.seq_len, dilation)
        padded = torch.nn.functional.pad(marked.long(), (0, steps * dilation - self.seq_len))
        prefix = torch.nn.functional.pad(padded.view(self.batch, steps, dilation).cumsum(1), (0, 0, 1, 0))
        step = torch.arange(steps, device=self.device)
        inside = prefix[:, (step + right + 1).clamp_max(steps)] - prefix[:, (step - left).clamp_min(0)]
        return inside.reshape(self.batch, steps * dilation)[:, : self.seq_len]

    def _repr_svg_(self) -> str:
        """A picture for notebooks: the first sample and head, at most the first 64 tokens, queries downwards."""
        shown = min(self.seq_len, _PICTURE_TOKENS)
        if self.batch == 0 or self.device.type == "meta":
            return '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'
        visible = self._visible_among(shown)[0, 0].tolist()
        is_global = [False] * shown if self.global_mask is None else self.global_mask[0, :shown].tolist()
        cells = [
            f'<rect x="{column}" y="{row}" width="1" height="1" fill="{"#D55E00" if is_global[column] else "#0072B2"}"/>'
            for row in range(shown)
            for column in range(shown)
            if visible[row][column]
        ]
        title = f"window {self.window}, dilation {self.dilation}: tokens 0 to {shown - 1} of {self.seq_len}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="320" height="320" viewBox="0 0 {shown} {shown}">'
            f'<title>{title}</title><rect width="{shown}" height="{shown}" fill="#EEEEEE"/>{"".join(cells)}</svg>'
        )
