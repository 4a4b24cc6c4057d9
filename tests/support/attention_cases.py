"""Random attention problems: options with readable names, inputs, gradients, and the one tolerance helper."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from longformer_triton.kernels import AttentionPattern, longformer_attention, reference, sliding_window_attention
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.torch_impl import fused_window

NAMES = ("query", "key", "value", "query_global", "key_global", "value_global")
PADDINGS = ("none", "right", "left", "holes", "whole_row")
GLOBALS = ("none", "first", "differing", "some", "all")


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of options; everything random about it follows from ``seed``."""

    batch: int = 2
    heads: int = 2
    key_heads: int = 2
    seq_len: int = 40
    head_dim: int = 4
    window: int | tuple[int, int] = 3
    dilation: int | tuple[int, ...] = 1
    is_causal: bool = False
    padding: str = "none"
    globals_: str = "none"
    global_rows: bool = False
    scale: float | None = None
    dropout_p: float = 0.0
    tokens_first: bool = False
    seed: int = 0

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + offset)

    def attention_mask(self) -> Tensor | None:
        """(batch, seq_len) of 0 and 1, or None."""
        if self.padding == "none":
            return None
        shape, generator = (self.batch, self.seq_len), self.generator(1)
        if self.padding == "holes":
            return (torch.rand(shape, generator=generator) < 0.7).long()
        lengths = torch.randint(1, self.seq_len + 1, (self.batch, 1), generator=generator)
        if self.padding == "whole_row":
            lengths[:1] = 0
        mask = (torch.arange(self.seq_len) < lengths).long()
        return mask.flip(1) if self.padding == "left" else mask

    def global_mask(self) -> Tensor | None:
        """(batch, seq_len) of 0 and 1, or None; padded positions may be marked too, and then count as padding."""
        if self.globals_ == "none":
            return None
        shape, generator = (self.batch, self.seq_len), self.generator(2)
        if self.globals_ == "all":
            return torch.ones(shape, dtype=torch.long)
        if self.globals_ == "some":
            return (torch.rand(shape, generator=generator) < 0.15).long()
        mask = torch.zeros(shape, dtype=torch.long)
        for sample in range(self.batch):
            count = 1 if self.globals_ == "first" else min(sample, self.seq_len)
            order = torch.arange(count) if self.globals_ == "first" else torch.randperm(self.seq_len, generator=generator)
            mask[sample, order[:count]] = 1
        return mask

    def pattern(self) -> AttentionPattern:
        return AttentionPattern.from_masks(
            self.attention_mask(),
            self.global_mask(),
            shape=(self.batch, self.seq_len),
            window=self.window,
            dilation=self.dilation,
            is_causal=self.is_causal,
        )

    def inputs(self, dtype: torch.dtype = torch.float64, *, times: float = 1.0, requires_grad: bool = True) -> list[Tensor]:
        """query, key, value and, with global rows, the three global projections; ``times`` scales query and key."""
        generator = self.generator(3)
        shapes = [(self.heads, self.seq_len), (self.key_heads, self.seq_len), (self.key_heads, self.seq_len)]
        if self.global_rows:
            shapes += [(self.heads, self.pattern().global_index.shape[1]), *shapes[1:]]
        tensors = []
        for (heads, tokens), name in zip(shapes, NAMES, strict=False):
            states = torch.randn((self.batch, heads, tokens, self.head_dim), generator=generator, dtype=torch.float64)
            states = (states if name.startswith("value") else states * times).to(dtype)
            if self.tokens_first:
                states = states.transpose(1, 2).contiguous().transpose(1, 2)
            tensors.append(states.requires_grad_(requires_grad))
        return tensors

    def run(self, inputs: Sequence[Tensor], backend: str, pattern: AttentionPattern | None = None) -> tuple[Tensor, Tensor]:
        """(out, lse) through the public functions."""
        pattern = self.pattern() if pattern is None else pattern
        options = {
            "scale": self.scale,
            "dropout_p": self.dropout_p,
            "dropout_seed": torch.tensor(77 + self.seed),
            "return_lse": True,
            "backend": backend,
        }
        if self.global_rows:
            return longformer_attention(*inputs, pattern, **options)
        return sliding_window_attention(*inputs, pattern=pattern, **options)

    def cotangents(self, dtype: torch.dtype, lse_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gradients of out and lse: by shape, since the memory layout of outputs differs between backends."""
        generator, shape = self.generator(4), (self.batch, self.heads, self.seq_len)
        return (
            torch.randn((*shape, self.head_dim), generator=generator, dtype=torch.float64).to(dtype),
            torch.randn(shape, generator=generator, dtype=torch.float64).to(lse_dtype),
        )

    def results(
        self,
        inputs: Sequence[Tensor],
        backend: str,
        pattern: AttentionPattern | None = None,
        *,
        through_lse: bool = True,
    ) -> dict[str, Tensor]:
        """out, lse and the gradient of every input, through out and lse or out alone; masked rows get cotangents as well."""
        out, lse = self.run(inputs, backend, pattern)
        return {"out": out, "lse": lse, **self.gradients((out, lse), inputs, through_lse)}

    def gradients(self, outputs: tuple[Tensor, Tensor], inputs: Sequence[Tensor], through_lse: bool) -> dict[str, Tensor]:
        """{"grad of query": ...}, of out and lse or of out alone."""
        count, cotangents = (2 if through_lse else 1), self.cotangents(*(tensor.dtype for tensor in outputs))
        return gradients(outputs[:count], cotangents[:count], inputs)


def gradients(outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """{"grad of query": ...}; an input that the outputs do not depend on has a gradient of zeros."""
    grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    return {
        f"grad of {name}": torch.zeros_like(tensor) if grad is None else grad
        for name, tensor, grad in zip(NAMES, inputs, grads, strict=False)
    }


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Every entry alike, NaN nowhere; tolerance 0 asks for equal bits."""
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert not value.isnan().any(), f"NaN in {name}"
        torch.testing.assert_close(
            value, expected[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_close_to_float64(kernel_out: Tensor, same_precision_out: Tensor, float64_out: Tensor, name: str = "out") -> None:
    """The kernel's error is at most twice that of the same maths in the same precision; NaN is looked for first."""
    assert not kernel_out.isnan().any(), f"NaN in {name}"
    seen = float64_out != -torch.inf
    assert torch.equal(kernel_out != -torch.inf, seen), f"{name}: -inf in the wrong rows"
    kernel, same, exact = (tensor.detach()[seen].double() for tensor in (kernel_out, same_precision_out, float64_out))
    if exact.numel() == 0:
        return
    error, allowed = (kernel - exact).abs().max().item(), 2 * (same - exact).abs().max().item()
    # A lucky rounding of the yardstick must not fail the kernel: one unit in the last place of the largest value is free.
    allowed += torch.finfo(kernel_out.dtype).eps * exact.abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def naive_results(case: Case, inputs: Sequence[Tensor], *, through_lse: bool = True) -> dict[str, Tensor]:
    """The textbook's attention with every step in the dtype of the inputs: the yardstick for that precision.

    Its gradients belong to probabilities computed again from stored lse, as those of every attention linear in memory. The
    scores of the second product are summed in another order than those in lse, so their errors do not cancel as they do in
    the textbook's softmax.
    """
    out, lse = _naive_rows(case, inputs, recompute=False)
    again = _naive_rows(case, inputs, recompute=True)
    return {"out": out, "lse": lse, **case.gradients(again, inputs, through_lse)}


def _naive_rows(case: Case, inputs: Sequence[Tensor], *, recompute: bool) -> tuple[Tensor, Tensor]:
    pattern, (query, key, value, *rows) = case.pattern(), inputs
    factor, rows_factor = _dropout_factors(case, pattern, query.dtype)
    out, lse = _naive(query, key, value, pattern.to_dense(), factor, case, recompute)
    if not rows or pattern.global_mask is None:
        return out, lse
    query_global, key_global, value_global = rows
    full = query.new_zeros(query.shape)
    for sample, count in enumerate(pattern.global_count.tolist()):
        index = pattern.global_index[sample, :count]
        full[sample, :, index] = query_global[sample, :, :count]
    visible = pattern.global_mask[:, None, :, None].expand(-1, -1, -1, pattern.seq_len)
    visible = visible if pattern.key_mask is None else visible & pattern.key_mask[:, None, None, :]
    global_out, global_lse = _naive(full, key_global, value_global, visible, rows_factor, case, recompute)
    is_global = pattern.global_mask[:, None, :]
    return torch.where(is_global[..., None], global_out, out), torch.where(is_global, global_lse, lse)


def _dropout_factors(case: Case, pattern: AttentionPattern, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """(batch, heads, seq_len, seq_len) for window rows and, at the rows of global tokens, for these."""
    if not case.dropout_p:
        return None, None
    dropout = Dropout(torch.tensor(77 + case.seed), round(256 * case.dropout_p))
    stream = torch.arange(case.batch * case.heads).view(case.batch, case.heads, 1, 1)
    position = torch.arange(case.seq_len)
    rows = dropout.factor_at(stream, position[:, None], position, dtype)
    return reference._window_factor(dropout, pattern, case.heads, dtype), rows


def _naive(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, factor: Tensor | None, case: Case, recompute: bool
) -> tuple[Tensor, Tensor]:
    key, value = (states.repeat_interleave(case.heads // case.key_heads, 1) for states in (key, value))
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    seen = visible.any(-1, keepdim=True)

    def masked(scores: Tensor) -> Tensor:
        return (scores * scale).masked_fill(~visible, -torch.inf).masked_fill(~seen, 0.0)

    scores = masked(query @ key.transpose(-1, -2))
    lse = torch.logsumexp(scores, -1)
    probabilities = torch.softmax(scores, -1)
    if recompute:
        wide = accumulation_dtype(scores.dtype)
        again = masked(query.flip(-1) @ key.flip(-1).transpose(-1, -2))
        probabilities = (again.to(wide) - torch.logsumexp(scores.to(wide), -1, keepdim=True)).exp().to(scores.dtype)
    if factor is not None:
        probabilities = probabilities * factor
    return probabilities.masked_fill(~seen, 0.0) @ value, lse.masked_fill(~seen[..., 0], -torch.inf)


class _Tf32Product(torch.autograd.Function):
    """A float32 product as matrix units make it in TF32: the last 13 bits of both factors count for nothing."""

    @staticmethod
    def forward(ctx, left, right):
        left, right = ((states.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) for states in (left, right))
        ctx.save_for_backward(left, right)
        return left.matmul(right)

    @staticmethod
    def backward(ctx, grad):
        left, right = ctx.saved_tensors
        return _Tf32Product.apply(grad, right.mT), _Tf32Product.apply(left.mT, grad)


class Tf32Products(TorchFunctionMode):
    """Within it, products of two tensors are those of TF32, in both directions; no CPU has them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.__matmul__, torch.Tensor.matmul, torch.matmul):
            return _Tf32Product.apply(*args)
        return function(*args, **(kwargs or {}))


# One option at a time, then the options that share code with each other.
OPTION_CASES = {
    "plain": Case(),
    "window_zero": Case(window=0),
    "asymmetric": Case(window=(5, 1)),
    "causal": Case(window=4, is_causal=True),
    "dilated": Case(dilation=3),
    "dilated_per_head": Case(dilation=(1, 2)),
    "grouped_heads": Case(heads=4, key_heads=2),
    "padded_right": Case(padding="right"),
    "padded_left": Case(padding="left"),
    "padding_holes": Case(padding="holes"),
    "whole_row_padded": Case(padding="whole_row"),
    "global_keys": Case(globals_="differing", batch=3),
    "global_keys_causal": Case(globals_="some", is_causal=True),
    "global_rows": Case(globals_="differing", batch=3, global_rows=True),
    "all_global_rows": Case(globals_="all", global_rows=True),
    "no_global_rows": Case(globals_="none", global_rows=True),
    "negative_scale": Case(scale=-0.7),
    "dropout": Case(dropout_p=0.3, globals_="some", global_rows=True),
    "window_covers_all": Case(window=40, padding="right", globals_="some", global_rows=True),
    "everything": Case(3, 4, 2, 50, 4, (4, 2), (1, 2, 3, 1), padding="holes", globals_="some", global_rows=True, dropout_p=0.1),
}
# Short enough for finite differences, and for a compiler's patience.
SMALL_CASES = {
    # With seed 1 the one sample has three real tokens or one hole, and two global tokens.
    **{
        name: dataclasses.replace(
            case, seq_len=7, head_dim=2, batch=2 if "differing" in case.globals_ or "whole" in case.padding else 1, seed=1
        )
        for name, case in OPTION_CASES.items()
    },
    "everything": Case(
        1, 2, 1, 7, 2, (2, 1), (1, 2), padding="holes", globals_="some", global_rows=True, dropout_p=0.1, seed=1
    ),
}


def each(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Parametrise ``case`` with readable ids."""
    return pytest.mark.parametrize("case", list(cases.values()), ids=list(cases))


@st.composite
def random_cases(draw: st.DrawFn, *, max_len: int = 200, **fixed: object) -> Case:
    """Any options at all; lengths crowd around the ends of blocks of 96 and the primes."""
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    heads = key_heads * group
    lengths = st.integers(1, max_len) | st.sampled_from([n for n in (1, 2, 31, 95, 96, 97, 127, 191, 193) if n <= max_len])
    side = st.integers(0, 6) | st.sampled_from([16, 40, 96, 199, 300])
    dilations = st.integers(1, 4) | st.tuples(*[st.integers(1, 3)] * heads)
    is_causal = draw(st.booleans())
    options: dict[str, object] = {
        "batch": draw(st.integers(1, 3)),
        "heads": heads,
        "key_heads": key_heads,
        "seq_len": draw(lengths),
        "head_dim": draw(st.sampled_from([1, 3, 4, 8])),
        "window": draw(side | st.tuples(side, side)),
        "dilation": draw(st.just(1) | dilations),
        "is_causal": is_causal,
        "padding": draw(st.sampled_from(PADDINGS)),
        "globals_": draw(st.sampled_from(GLOBALS)),
        "global_rows": not is_causal and draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 1.0, 0.3, 0.0, -0.5])),
        "dropout_p": draw(st.sampled_from([0.0, 0.0, 0.3])),
        "tokens_first": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }
    return Case(**{**options, **fixed})


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Uninitialised memory is full of NaN: what a kernel forgets to write, or reads before writing, then shows."""
    # The compiler writes down torch's functions when it is first imported, and has to meet the real ones.
    importlib.import_module("torch._dynamo")
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, _poison(getattr(owner, name)))
        yield


def _poison(allocate):
    def poisoned(*args: object, **options: object) -> Tensor:
        tensor = allocate(*args, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() and tensor.device.type == "cpu" else tensor

    return poisoned


through = pytest.mark.parametrize("through_lse", [True, False], ids=["through_lse", "through_out_alone"])


def check_against_reference(case: Case) -> None:
    """By the fused kernel where it serves, and by blocks, as on every device that is no CPU."""
    inputs = case.inputs()
    # Only without a gradient of lse does the fused kernel go backward.
    for through_lse in (True, False):
        expected = case.results(inputs, "reference", through_lse=through_lse)
        assert_same(case.results(inputs, "torch", through_lse=through_lse), expected)
        with by_blocks():
            assert_same(case.results(inputs, "torch", through_lse=through_lse), expected)


def by_blocks() -> AbstractContextManager:
    """What the fused kernel would compute of windows goes through blocks of queries instead."""
    return mock.patch.object(fused_window, "forward_applies", return_value=False)
