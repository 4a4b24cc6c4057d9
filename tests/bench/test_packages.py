"""Packages that cannot run here are called as they are documented: stand-ins note what they get and compute it plainly."""

import sys
import types

import pytest
import torch
from torch.nn.attention import varlen

from longformer_triton.bench import measure as measure_module
from longformer_triton.bench.cases import FORWARD, TRAINING, Case
from longformer_triton.bench.check import WrongAnswerError
from longformer_triton.bench.measure import Cell
from longformer_triton.bench.peers import Varlen
from longformer_triton.bench.peers_packages import FlashAttention, Natten, Xformers

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def attend(query, key, value, visible):
    """(batch, seq_len, heads, head_dim) with a mask of (seq_len, seq_len)."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    group = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(group, 1) for states in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, visible)
    return out.transpose(1, 2)


def band(length, left, right, step=1):
    distance = torch.arange(length) - torch.arange(length)[:, None]
    return (distance >= -left * step) & (distance <= right * step) & (distance % step == 0)


@pytest.fixture
def stub(monkeypatch):
    """Put a stand-in for a package's function where the provider looks for it; returns the calls' options."""

    def install(provider, functions, extras=()):
        for path, attributes in (*functions.items(), *extras):
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                if name not in sys.modules:
                    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
            for name, value in attributes.items():
                monkeypatch.setattr(sys.modules[path], name, value, raising=False)
        monkeypatch.setattr(type(provider), "why_not_here", lambda self, case, device: None)
        monkeypatch.setitem(measure_module.PROVIDERS, provider.name, provider)

    return install


def case_of(provider, direction=FORWARD, **axes):
    return Case(provider, direction, **{"seq_len": 60, "window": 8, "heads": 4, "head_dim": 8, "batch": 2, **axes})


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize(
    ("axes", "window_size"),
    [({}, (4, 4)), ({"is_causal": 1}, (8, 0)), ({"key_heads": 2}, (4, 4))],
    ids=["two_sided", "causal", "grouped"],
)
def test_flash_attention(stub, axes, window_size, direction):
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        calls.append((dropout_p, causal, window_size))
        left, right = window_size
        return attend(q, k, v, band(q.shape[1], left, 0 if causal else right))

    calls = []
    stub(FlashAttention(), {"flash_attn": {"flash_attn_func": flash_attn_func}})
    assert Cell(case_of("flash-attn", direction, **axes), CPU).error < 1e-5
    assert calls[0] == (0.0, bool(axes.get("is_causal")), window_size)


def test_flash_attention_gets_dropout(stub):
    def flash_attn_func(q, k, v, dropout_p, window_size, causal):
        assert dropout_p == 0.3
        kept = torch.nn.functional.dropout(torch.ones(2, 4, 60, 60), dropout_p)
        scores = (q.transpose(1, 2) @ k.transpose(1, 2).transpose(-1, -2) * 8**-0.5).masked_fill(~band(60, 4, 4), -torch.inf)
        return (torch.softmax(scores, -1) * kept @ v.transpose(1, 2)).transpose(1, 2)

    stub(FlashAttention(), {"flash_attn": {"flash_attn_func": flash_attn_func}})
    Cell(case_of("flash-attn", dropout=30), CPU)


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
def test_xformers(stub, direction):
    class Bias:
        def __init__(self, window_left, window_right):
            self.visible = band(60, window_left, window_right)

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert p == 0.0
        return attend(query, key, value, attn_bias.visible)

    functions = {
        "xformers.ops": {"memory_efficient_attention": memory_efficient_attention},
        "xformers.ops.fmha.attn_bias": {"LocalAttentionFromBottomRightMask": Bias},
    }
    stub(Xformers(), functions)
    assert Cell(case_of("xformers", direction), CPU).error < 1e-5


def shifted(length, kernel, step):
    """NATTEN's windows: each sees ``kernel`` keys of its residue class, the nearest that there are."""
    visible = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        like = list(range(query % step, length, step))
        first = min(max(0, query // step - kernel // 2), len(like) - kernel)
        visible[query, like[first : first + kernel]] = True
    return visible


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize("axes", [{}, {"dilation": 2}, {"is_causal": 1}], ids=["plain", "dilated", "causal"])
def test_natten(stub, axes, direction):
    def na1d(query, key, value, kernel_size, dilation=1, is_causal=False, scale=None):
        assert kernel_size == 9
        length = query.shape[1]
        return attend(query, key, value, band(length, 8, 0) if is_causal else shifted(length, kernel_size, dilation))

    stub(Natten(), {"natten.functional": {"na1d": na1d}})
    assert Cell(case_of("natten", direction, **axes), CPU).error < 1e-5


def test_a_window_that_shifts_is_checked_between_the_ends(stub):
    stub(Natten(), {"natten.functional": {"na1d": lambda q, k, v, kernel_size, **_: attend(q, k, v, band(60, 4, 3))}})
    with pytest.raises(WrongAnswerError, match="output"):
        Cell(case_of("natten"), CPU)


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize("axes", [{}, {"padding": 30}, {"is_causal": 1, "key_heads": 2}], ids=["plain", "padding", "causal"])
@pytest.mark.parametrize("version", ["2.11", "2.12"])
def test_varlen(stub, monkeypatch, axes, direction, version):
    def attend_texts(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size):
        assert torch.equal(cu_seq_q, cu_seq_k)
        assert (cu_seq_q.dtype, max_q, max_k) == (torch.int32, int(cu_seq_q[1]), int(cu_seq_q[1]))
        texts = [slice(start, end) for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True)]
        parts = [attend(query[t][None], key[t][None], value[t][None], band(max_q, *window_size))[0] for t in texts]
        return torch.cat(parts)

    def of_2_11(*tensors_and_lengths, return_aux=None, scale=None, window_size=(-1, -1)):
        return attend_texts(*tensors_and_lengths, window_size)

    def of_2_12(*tensors_and_lengths, window_size=(-1, -1), enable_gqa=False):
        assert enable_gqa == ("key_heads" in axes)
        return attend_texts(*tensors_and_lengths, window_size)

    provider, case = Varlen(), case_of("varlen", direction, **axes)
    monkeypatch.setattr(varlen, "varlen_attn", of_2_11 if version == "2.11" else of_2_12)
    if version == "2.11" and "key_heads" in axes:
        assert "takes no grouped heads" in provider.why_not(case, torch.device("cuda"))
        return
    stub(provider, {})
    assert Cell(case, CPU).error < 1e-5


def test_a_graph_is_captured_after_a_warm_up_and_its_replays_are_checked(stub, monkeypatch):
    from longformer_triton.bench.providers import Ours

    events = []

    class Ours2(Ours):
        def prepare(self, inputs):
            run = super().prepare(inputs)
            return lambda: (events.append("call"), run())[1]

    class Context:
        def __init__(self, *_):
            pass

        def __enter__(self):
            events.append("enter")

        def __exit__(self, *_):
            events.append("exit")

        def wait_stream(self, _):
            pass

    class Graph:
        def replay(self):
            events.append("replay")

    monkeypatch.setattr(torch.cuda, "Stream", Context)
    monkeypatch.setattr(torch.cuda, "current_stream", Context)
    monkeypatch.setattr(torch.cuda, "stream", Context)
    monkeypatch.setattr(torch.cuda, "graph", Context)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    provider = Ours2("torch")
    stub(provider, {})
    cell = Cell(case_of("ours-torch", graph=1), CPU)
    assert events == ["call", "enter", "call", "call", "call", "exit", "enter", "call", "exit", "replay"]
    cell.time_once()
    assert events[-1] == "replay"
    assert events.count("call") == 5
