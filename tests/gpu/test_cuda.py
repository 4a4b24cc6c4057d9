"""What only a GPU can show: the shipped configurations run, repeat, need no synchronisation, and fit into a CUDA graph."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from longformer_triton.bench.kernel_checks import CHECKS, HEAD_DIMS, PRECISIONS, run_check
from longformer_triton.kernels import AttentionPattern, available_backends, longformer_attention, sliding_window_attention
from longformer_triton.kernels.backends import why_not

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(", ", "_").replace(" ", "_"))
def test_shipped_configurations(check, head_dim, precision):
    device = torch.device("cuda")
    reason = why_not("triton", device, PRECISIONS[precision].dtype, head_dim)
    if reason is not None:
        pytest.skip(reason)
    try:
        outcome = run_check(check, precision, head_dim, device)
    except NotImplementedError as refusal:
        pytest.skip(str(refusal))
    assert outcome.repeats
    assert outcome.error <= PRECISIONS[precision].tolerance


def test_triton_is_the_default():
    assert available_backends("cuda")["triton"] is None
    states = torch.randn(1, 2, 100, 64, device="cuda", dtype=torch.float16)
    default, asked = (sliding_window_attention(states, states, states, window=9, backend=name) for name in (None, "triton"))
    assert torch.equal(default, asked)


def _inputs(dtype=torch.float16, length=500):
    query, key, value, key_global, value_global = (
        torch.randn(2, 2, length, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(5)
    )
    marks = torch.zeros(2, length, device="cuda")
    marks[0, :3] = marks[1, 100] = 1
    return query, key, value, key_global, value_global, marks


def test_the_dropout_mask_is_that_of_the_pytorch_backend():
    zeros, ones = torch.zeros(1, 2, 300, 64, device="cuda"), torch.ones(1, 2, 300, 64, device="cuda")
    seed = torch.tensor(5, device="cuda")
    got, expected = (
        sliding_window_attention(zeros, zeros, ones, window=(70, 30), dropout_p=0.3, dropout_seed=seed, backend=backend)
        for backend in ("triton", "torch")
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("covers_all", [False, True], ids=["padding_and_dropout", "window_covers_all"])
def test_nothing_is_read_back(covers_all):
    query, key, value, key_global, value_global, marks = _inputs()
    mask, window, dropout_p = (None, 500, 0.0) if covers_all else (torch.ones(2, 500, device="cuda"), 50, 0.1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            pattern = AttentionPattern.from_masks(mask, marks, window=window, max_globals=4)
            rows = pattern.gather_global(query)
            out = longformer_attention(query, key, value, rows, key_global, value_global, pattern, dropout_p=dropout_p)
            out.float().square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("window", [50, 500], ids=["window", "window_covers_all"])
def test_a_cuda_graph_replays_with_other_numbers_and_masks(window):
    query, key, value, key_global, value_global, marks = _inputs()

    def forward():
        pattern = AttentionPattern.from_masks(None, marks, window=window, max_globals=4)
        return longformer_attention(
            query, key, value, pattern.gather_global(query), key_global, value_global, pattern, backend="triton"
        )

    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = forward()
        query.normal_()
        marks.zero_()
        marks[:, 200:203] = 1
        graph.replay()
        assert torch.equal(captured, forward())


def test_a_gradient_that_is_one_number_for_all():
    """As of a plain sum: the copy engine cannot address it, and it is laid out first."""
    states = [torch.randn(2, 300, 4, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
    results = []
    for backend, dtype in (("triton", torch.bfloat16), ("reference", torch.float64)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in states]
        out = sliding_window_attention(*leaves, window=(40, 25), backend=backend)
        results.append(torch.autograd.grad(out.sum(), leaves))
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 3e-2 * expected.abs().max().clamp_min(1)


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="needs two GPUs")
def test_kernels_run_where_their_tensors_are():
    """Current or not, and with programs for that device."""
    states = [torch.randn(1, 2, 300, 64, device="cuda:0", dtype=torch.float16) for _ in range(3)]
    results = []
    for device in ("cuda:0", "cuda:1"):
        leaves = [tensor.to(device).requires_grad_() for tensor in states]
        out = sliding_window_attention(*leaves, window=40, dropout_p=0.1, dropout_seed=torch.tensor(3, device=device))
        results.append([tensor.cpu() for tensor in (out, *torch.autograd.grad(out.square().sum(), leaves))])
    assert torch.cuda.current_device() == 0
    assert all(map(torch.equal, *results))


def _fused_attention_in(call):
    """(which of PyTorch's attention operators ran in a call, its result)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = call()
    names = {event.key for event in profile.key_averages()}
    return names & {"aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_cudnn_attention"}, result


@pytest.mark.skipif(torch.version.hip is not None, reason="PyTorch's kernels are taken on NVIDIA's GPUs")
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_a_window_that_covers_all_takes_pytorchs_kernel(is_causal):
    """The one that its own attention takes there, with the same bits; a window that does not cover takes none."""
    packed = torch.randn(2, 500, 3, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    states = [part.transpose(1, 2) for part in packed.unbind(2)]
    theirs, expected = _fused_attention_in(lambda: scaled_dot_product_attention(*states, is_causal=is_causal))
    assert len(theirs) == 1
    ours, out = _fused_attention_in(lambda: sliding_window_attention(*states, window=499, is_causal=is_causal))
    assert ours == theirs
    assert torch.equal(out, expected)
    assert not _fused_attention_in(lambda: sliding_window_attention(*states, window=498, is_causal=is_causal))[0]


def test_offsets_beyond_31_bits():
    """Two samples that lie more than 2**31 elements apart."""
    far = 2**31 + 64
    base = torch.empty(far + 400_000, dtype=torch.float16, device="cuda")
    states = [base.as_strided((2, 1, 1000, 64), (far, 64 * 1000, 64, 1), start) for start in (0, 64_000, 128_000)]
    for view in states:
        view.normal_()
    near = [view.clone() for view in states]
    far_out, near_out = (sliding_window_attention(*tensors, window=40, backend="triton") for tensors in (states, near))
    assert torch.equal(far_out, near_out)


def test_programs_are_kept_for_what_they_were_compiled_for():
    """One that loads 16 bytes at a time gets no address between them, one for strides of 16 no others, whatever ran before."""
    for begin, width in ((0, 64), (1, 80), (0, 83), (8, 80), (0, 64), (1, 80)):
        states = [torch.randn(1, 2, 300, width, device="cuda", dtype=torch.float16)[..., begin : begin + 64] for _ in range(3)]
        results = []
        for backend, dtype in (("triton", torch.float16), ("reference", torch.float64)):
            leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in states]
            out = sliding_window_attention(*leaves, window=(40, 25), backend=backend)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for got, expected in zip(*results, strict=True):
            assert (got - expected).abs().max() <= 1e-2 * expected.abs().max(), (begin, width)
