"""Where windows leave out nothing, PyTorch's fused kernels compute the window's forward: there alone, with the same numbers.

No GPU is here, so stand-ins take the place of PyTorch's three operators. Each of them asks the real one, over tensors without
storage, whether it takes the call and what shapes come of it.
"""

import dataclasses
import types

import pytest
import torch
from attention_cases import Case, assert_close_to_float64, assert_same, each, naive_results
from torch import Tensor
from torch.nn.attention import SDPBackend

from longformer_triton.kernels import ops
from longformer_triton.kernels.triton_impl import fused_dense
from longformer_triton.kernels.triton_impl.steps import Launch

ATEN = torch.ops.aten
LENGTH = 24


def exact_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(out, lse) by the textbook in float64, rounded once."""
    key, value = (states.double().repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    scores = scale * query.double() @ key.mT
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ value).to(query.dtype), scores.logsumexp(-1).float()


def without_storage(*tensors: Tensor) -> list[Tensor]:
    return [torch.empty_strided(states.shape, states.stride(), dtype=states.dtype, device="meta") for states in tensors]


class Operators:
    """PyTorch's operators on a GPU where its attention chooses ``choice``."""

    def __init__(self, choice: SDPBackend, *, tokens_first_lse: bool = False) -> None:
        self.choice, self.tokens_first_lse, self.calls, self.out = choice, tokens_first_lse, [], None

    def _fused_sdp_choice(self, query, key, value, *arguments, **options):
        ATEN._fused_sdp_choice(*without_storage(query, key, value), *arguments, **options)
        assert options["enable_gqa"] == (query.shape[1] != key.shape[1])
        if self.choice is None:
            raise RuntimeError("No available kernel. Aborting execution.")
        return self.choice.value

    def _scaled_dot_product_flash_attention(self, query, key, value, *, is_causal, scale):
        """As FlashAttention-2: out is (batch, seq_len, heads, head_dim) in memory."""
        real = ATEN._scaled_dot_product_flash_attention(*without_storage(query, key, value), is_causal=is_causal, scale=scale)
        out, lse = exact_attention(query, key, value, is_causal, scale)
        return self._answer("flash", out.transpose(1, 2).contiguous().transpose(1, 2), lse, real)

    def _scaled_dot_product_cudnn_attention(self, query, key, value, **options):
        """As cuDNN: out is like query in memory."""
        assert options["compute_log_sumexp"]
        real = ATEN._scaled_dot_product_cudnn_attention(*without_storage(query, key, value), **options)
        out, lse = exact_attention(query, key, value, options["is_causal"], options["scale"])
        out, lse = torch.empty_like(query).copy_(out), lse[..., None]
        if self.tokens_first_lse:
            lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
        return self._answer("cudnn", out, lse, real)

    def _answer(self, name, out, lse, real):
        for got, want in zip((out, lse), real, strict=False):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
        self.calls.append(name)
        self.out = out
        return out, lse, *[None] * (len(real) - 2)


KERNELS = {
    "flash": lambda: Operators(SDPBackend.FLASH_ATTENTION),
    "cudnn": lambda: Operators(SDPBackend.CUDNN_ATTENTION),
    "cudnn_avoiding_recompilation": lambda: Operators(SDPBackend.CUDNN_ATTENTION, tokens_first_lse=True),
}
EACH_KERNEL = pytest.mark.parametrize("kernel", list(KERNELS))


@pytest.fixture
def stand_in(monkeypatch):
    """A function that puts stand-ins in the place of PyTorch's operators."""

    def put(operators: Operators) -> Operators:
        monkeypatch.setattr(fused_dense, "_operators", lambda query: operators)
        return operators

    return put


def covering_case(**options) -> Case:
    return Case(**{"seq_len": LENGTH, "head_dim": 64, "window": LENGTH - 1, **options})


COVERED = {
    "just_covering": covering_case(),
    "wider": covering_case(window=(LENGTH, 10 * LENGTH), tokens_first=True),
    "causal": covering_case(is_causal=True),
    "causal_with_a_window_to_the_left": covering_case(window=(LENGTH - 1, 0), is_causal=True, tokens_first=True),
    "causal_by_its_window_alone": covering_case(window=(LENGTH - 1, 0)),
    "one_token": covering_case(seq_len=1, window=0),
    "one_dilation_a_head": covering_case(dilation=(1, 1)),
    "grouped_heads": covering_case(heads=4, key_heads=2),
    "grouped_heads_causal": covering_case(heads=4, key_heads=1, is_causal=True, tokens_first=True),
    "prefix_global": covering_case(globals_="first"),
    "scattered_globals": covering_case(globals_="some"),
    "scattered_globals_causal": covering_case(globals_="some", is_causal=True),
    "all_global": covering_case(globals_="all"),
    "prefix_row": covering_case(globals_="first", global_rows=True),
    "scattered_rows": covering_case(batch=3, heads=4, key_heads=2, globals_="differing", global_rows=True, tokens_first=True),
    "all_rows": covering_case(globals_="all", global_rows=True),
    "no_rows": covering_case(globals_="none", global_rows=True),
    "given_scale": covering_case(scale=0.3, head_dim=24),
}
UNCOVERED = {
    "padding": covering_case(padding="right"),
    "nothing_but_real_tokens_in_a_mask": covering_case(padding="ones"),
    "dropout": covering_case(dropout_p=0.3),
    "dilation": covering_case(dilation=2),
    "dilation_in_one_head": covering_case(dilation=(1, 2)),
    "negative_scale": covering_case(scale=-0.4),
    "zero_scale": covering_case(scale=0.0),
    "left_one_short": covering_case(window=(LENGTH - 2, LENGTH - 1)),
    "right_one_short": covering_case(window=(LENGTH - 1, LENGTH - 2)),
    "causal_one_short": covering_case(window=(LENGTH - 2, 0), is_causal=True),
    "globals_after_a_window_to_the_left": covering_case(window=(LENGTH - 1, 0), globals_="some"),
    "head_dim_20": covering_case(head_dim=20),
}


class MaskedCase(Case):
    """Cases with the padding "ones" have a mask of ones: whether it marks any padding is not known without looking at it."""

    def attention_mask(self):
        return torch.ones(self.batch, self.seq_len) if self.padding == "ones" else super().attention_mask()


@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
@each(COVERED)
def test_results_are_those_of_the_reference(case, kernel, stand_in):
    """With the gradients, which our kernels compute from PyTorch's out and lse."""
    operators, inputs = stand_in(KERNELS[kernel]()), case.inputs(torch.float16)
    got = case.results(inputs, "triton")
    assert operators.calls == [kernel]
    exact = case.results([tensor.detach().double().requires_grad_() for tensor in inputs], "reference")
    for name, same in naive_results(case, inputs).items():
        assert_close_to_float64(got[name], same, exact[name], name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("just_covering", []), ("prefix_row", ["global_rows_forward", "global_rows_combine"])],
    ids=["window", "rows"],
)
def test_the_window_kernel_does_not_run_as_well(name, expected, stand_in, monkeypatch):
    stand_in(Operators(SDPBackend.FLASH_ATTENTION))
    launched, run = [], Launch.run

    def record(self):
        launched.append(self.kernel.fn.__name__)
        run(self)

    monkeypatch.setattr(Launch, "run", record)
    forward_bits(COVERED[name], torch.float16)
    assert launched == expected


def forward_bits(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    return dict(zip(("out", "lse"), case.run(case.inputs(dtype, requires_grad=False), "triton"), strict=True))


@each(UNCOVERED)
def test_what_does_not_cover_or_is_not_plain_runs_our_kernel(case, stand_in):
    """With the same bits as where PyTorch has no such kernels."""
    case = MaskedCase(**dataclasses.asdict(case))
    operators = stand_in(Operators(SDPBackend.FLASH_ATTENTION))
    got = forward_bits(case, torch.float16)
    assert operators.calls == []
    stand_in(None)
    assert_same(got, forward_bits(case, torch.float16), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_other_precisions_run_our_kernel(dtype, stand_in):
    operators, case = stand_in(Operators(SDPBackend.FLASH_ATTENTION)), COVERED["just_covering"]
    got = forward_bits(case, dtype)
    assert operators.calls == []
    stand_in(None)
    assert_same(got, forward_bits(case, dtype), 0)


@pytest.mark.parametrize("choice", ["MATH", "EFFICIENT_ATTENTION", "OVERRIDEABLE", "ERROR", "raises"])
def test_other_choices_of_pytorch_run_our_kernel(choice, stand_in):
    """It raises where its switches forbid every kernel that would do."""
    operators = stand_in(Operators(None if choice == "raises" else SDPBackend.__members__[choice]))
    case = COVERED["prefix_row"]
    got = forward_bits(case, torch.float16)
    assert operators.calls == []
    stand_in(None)
    assert_same(got, forward_bits(case, torch.float16), 0)


def states(*, batch=2, heads=2, length=LENGTH, head_dim=16, dtype=torch.float16, layout="heads_first"):
    """query, key and value that models have: heads first, tokens first, or as views of one tensor of all three."""
    if layout == "packed":
        return [x.transpose(1, 2) for x in torch.randn(batch, length, 3, heads, head_dim, dtype=dtype).unbind(2)]
    tensors = [torch.randn(batch, length, heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(3)]
    return [tensor.contiguous() for tensor in tensors] if layout == "heads_first" else tensors


def forward(window, pattern=None):
    return fused_dense.forward(tuple(window), pattern or Case(seq_len=window[0].shape[2], window=LENGTH).pattern(), 0.25, None)


@EACH_KERNEL
def test_bfloat16(kernel, stand_in):
    """Which the interpreter does not run, so without what surrounds it."""
    stand_in(KERNELS[kernel]())
    window = states(dtype=torch.bfloat16)
    (out, lse), (want_out, want_lse) = forward(window), exact_attention(*window, False, 0.25)
    torch.testing.assert_close(out, want_out, rtol=0, atol=0)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=0)


def by_two_bytes(tensor: Tensor) -> Tensor:
    """The same numbers, two bytes away from a multiple of 16."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return room.as_strided(tensor.shape, tensor.stride(), room.storage_offset()).copy_(tensor)


def test_a_head_dim_that_is_no_multiple_of_8_runs_our_kernel_though_its_rows_are_aligned(stand_in):
    """Of 24 channels in memory, 20 count."""
    operators, window = stand_in(Operators(SDPBackend.FLASH_ATTENTION)), states(head_dim=24)
    assert forward(window) is not None
    assert forward([tensor[..., :20] for tensor in window]) is None
    assert operators.calls == ["flash"]


@pytest.mark.parametrize("slot", range(3), ids=["query", "key", "value"])
def test_tensors_that_are_not_aligned_run_our_kernel(slot, stand_in):
    operators, window = stand_in(Operators(SDPBackend.FLASH_ATTENTION)), states()
    assert forward(window) is not None
    window[slot] = by_two_bytes(window[slot])
    assert forward(window) is None
    assert operators.calls == ["flash"]


@pytest.mark.parametrize(
    ("layout", "shape", "copied"),
    [
        ("heads_first", {}, True),
        ("tokens_first", {}, False),
        ("packed", {}, False),
        ("packed", {"batch": 1}, False),
        ("heads_first", {"heads": 1}, False),
        ("heads_first", {"length": 1}, False),
    ],
    ids=["heads_first", "tokens_first", "packed", "packed_one_sample", "one_head", "one_token"],
)
@EACH_KERNEL
def test_strides_are_those_that_the_operator_promises(kernel, layout, shape, copied, stand_in):
    """FlashAttention's out is copied where query has heads first in memory; nothing else is."""
    operators, window = stand_in(KERNELS[kernel]()), states(layout=layout, **shape)
    out, lse = forward(window)
    assert (out.data_ptr() != operators.out.data_ptr()) == (copied and kernel == "flash")
    torch.testing.assert_close(out, operators.out, rtol=0, atol=0)
    promised = torch.empty_like(window[0])
    assert all(a == b or length == 1 for a, b, length in zip(out.stride(), promised.stride(), out.shape, strict=True))
    assert lse.shape == out.shape[:3]
    assert lse.dtype == torch.float32
    assert lse.is_contiguous()


@EACH_KERNEL
@pytest.mark.parametrize("tokens_first", [False, True], ids=["heads_first", "tokens_first"])
def test_results_may_be_changed_in_place(kernel, tokens_first, stand_in):
    """As those of our kernel may."""
    operators = stand_in(KERNELS[kernel]())
    case = covering_case(tokens_first=tokens_first)
    out, lse = case.run(case.inputs(torch.float16), "triton")
    assert operators.calls
    for result in (out, lse):
        assert result.requires_grad
        expected = 2 * result.detach()
        torch.testing.assert_close(result.mul_(2), expected, rtol=0, atol=0)


@EACH_KERNEL
@pytest.mark.parametrize("layout", ["heads_first", "tokens_first", "packed"])
def test_the_fake_operator_tells_the_truth(layout, kernel, stand_in):
    operators, pattern = stand_in(KERNELS[kernel]()), COVERED["just_covering"].pattern()
    inputs = (*states(layout=layout), None, None, None)
    arguments = (*inputs, *ops.pattern_arguments(pattern), 0.25, None, 0, "triton")
    torch.library.opcheck(ops.attention, arguments, test_utils=("test_schema", "test_faketensor"))
    assert operators.calls


def test_only_on_nvidia(monkeypatch):
    on_cpu, on_gpu = types.SimpleNamespace(is_cuda=False), types.SimpleNamespace(is_cuda=True)
    assert fused_dense._operators(on_cpu) is None
    assert fused_dense._operators(on_gpu) is torch.ops.aten
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert fused_dense._operators(on_gpu) is None
