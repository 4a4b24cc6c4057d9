"""Every refusal of window attention and of patterns: the exception's type, the argument's name, and the way out."""

import logging

import numpy
import pytest
import torch
from refused_calls import (
    META,
    absorbed_call,
    fail_when_work_begins,
    maps_call,
    marks,
    masks_call,
    pattern,
    rows_call,
    states,
    window_call,
)
from torch.fx.experimental.proxy_tensor import make_fx

from longformer_triton.kernels import AttentionPattern, available_backends, backends, sliding_window_attention


@pytest.fixture
def _nothing_runs(monkeypatch):
    fail_when_work_begins(monkeypatch)


# id: (function, changed arguments, exception, regular expression that the message must match)
REFUSALS = {
    # query, key, value
    "query_not_a_tensor": (window_call, {"query": [1.0]}, TypeError, r"^query: got list, expected a tensor of shape \(batch"),
    "query_three_dimensions": (window_call, {"query": states(2, 6, 3)}, ValueError, r"^query: got shape \(2, 6, 3\).*seq_len"),
    "value_five_dimensions": (window_call, {"value": states(1, 2, 4, 6, 3)}, ValueError, r"^value: got shape .*scaled_dot"),
    "query_integer": (window_call, {"query": states(dtype=torch.int64)}, TypeError, r"^query: got dtype torch.int64.*float16"),
    "query_complex": (window_call, {"query": states(dtype=torch.complex64)}, TypeError, r"^query: got dtype.*float64"),
    "key_other_dtype": (window_call, {"key": states(dtype=torch.float64)}, TypeError, r"^key: got dtype.*like query: cast"),
    "value_other_device": (window_call, {"value": states(**META)}, ValueError, r"^value: got a tensor on meta.*cpu.*move"),
    "key_other_batch": (window_call, {"key": states(1, 4, 6, 3)}, ValueError, r"^key: got shape \(1, 4, 6, 3\), expected \(2,"),
    "key_other_length": (window_call, {"key": states(2, 4, 7, 3)}, ValueError, r"^key: got shape .*expected \(2, 4, 6, 3\)"),
    "key_other_head_dim": (window_call, {"key": states(2, 4, 6, 8)}, ValueError, r"^key: got shape .*expected \(2, 4, 6, 3\)"),
    "value_unlike_key": (window_call, {"value": states(2, 2, 6, 3)}, ValueError, r"^value: got shape .*the shape of key"),
    "heads_do_not_divide": (
        window_call,
        {"key": states(2, 3, 6, 3), "value": states(2, 3, 6, 3)},
        ValueError,
        r"^key: got 3 heads for 4 query heads, expected a divisor of 4",
    ),
    "no_tokens": (window_call, dict.fromkeys(("query", "key", "value"), states(2, 4, 0, 3)), ValueError, r"at least one head"),
    "no_key_heads": (window_call, dict.fromkeys(("key", "value"), states(2, 0, 6, 3)), ValueError, r"^key: got .*at least one"),
    "no_heads": (window_call, dict.fromkeys(("query", "key", "value"), states(2, 0, 6, 3)), ValueError, r"at least one head"),
    "no_channels": (window_call, dict.fromkeys(("query", "key", "value"), states(2, 4, 6, 0)), ValueError, r"one channel"),
    # window, dilation, scale
    "window_missing": (window_call, {"window": None}, ValueError, r"^window: got None without a pattern.*pattern=\.\.\."),
    "window_negative": (window_call, {"window": (2, -1)}, ValueError, r"^window: got \(2, -1\).*is_causal=True or \(left, 0\)"),
    "window_minus_one": (window_call, {"window": -1}, ValueError, r"^window: got -1.*pass the sequence length"),
    "window_float": (window_call, {"window": 2.0}, TypeError, r"^window: got 2.0, expected an int.*attention_window // 2"),
    "window_bool": (window_call, {"window": True}, TypeError, r"^window: got True"),
    "window_triple": (window_call, {"window": (1, 2, 3)}, TypeError, r"^window: got \(1, 2, 3\).*pair"),
    "window_string": (window_call, {"window": "12"}, TypeError, r"^window: got '12'"),
    "window_tensor": (window_call, {"window": torch.tensor([1, 2])}, TypeError, r"^window: got a tensor of shape \(2,\)"),
    "dilation_zero": (window_call, {"dilation": 0}, ValueError, r"^dilation: got 0, expected values >= 1"),
    "dilation_float": (window_call, {"dilation": 1.5}, TypeError, r"^dilation: got 1.5, expected an int or a sequence"),
    "dilation_empty": (window_call, {"dilation": []}, TypeError, r"^dilation: got \[\]"),
    "dilation_string": (window_call, {"dilation": "1111"}, TypeError, r"^dilation: got '1111'"),
    "dilation_one_short": (window_call, {"dilation": [1, 2, 1]}, ValueError, r"^dilation: got 3 values.*1 or one .* 4 query"),
    "dilation_with_a_zero": (window_call, {"dilation": [1, 2, 0, 1]}, ValueError, r"^dilation: .*>= 1"),
    "scale_tensor": (window_call, {"scale": torch.tensor(1.0)}, TypeError, r"^scale: got a tensor.*a Python number"),
    "scale_bool": (window_call, {"scale": True}, TypeError, r"^scale: got True"),
    "scale_nan": (window_call, {"scale": float("nan")}, ValueError, r"^scale: got nan, expected a finite number"),
    "scale_beyond_floats": (window_call, {"scale": 10**400}, ValueError, r"^scale: got 1000.*expected a finite number"),
    "scale_infinite": (window_call, {"scale": float("inf")}, ValueError, r"^scale: got inf"),
    # masks
    "mask_not_a_tensor": (window_call, {"attention_mask": [[1] * 6] * 2}, TypeError, r"^attention_mask: got list.*a tensor"),
    "mask_with_query_dimension": (
        window_call,
        {"attention_mask": torch.ones(2, 6, 6)},
        ValueError,
        r"^attention_mask: got shape \(2, 6, 6\), expected \(batch, seq_len\).*query dimension are not supported",
    ),
    "mask_sparse": (
        window_call,
        {"attention_mask": torch.ones(2, 6).to_sparse()},
        TypeError,
        r"^attention_mask: got a tensor of layout torch.sparse_coo, expected torch.strided",
    ),
    "mask_nested": (
        masks_call,
        {"global_attention_mask": torch.nested.nested_tensor([torch.ones(6), torch.ones(5)])},
        TypeError,
        r"^global_attention_mask: got a nested tensor, expected torch.strided",
    ),
    "mask_complex": (
        window_call,
        {"global_mask": torch.ones(2, 6, dtype=torch.complex64)},
        TypeError,
        r"^global_mask: got dtype",
    ),
    "mask_other_shape": (
        window_call,
        {"attention_mask": torch.ones(2, 5)},
        ValueError,
        r"^attention_mask: got shape \(2, 5\).*\(2, 6\)",
    ),
    "mask_other_device": (window_call, {"global_mask": torch.ones(2, 6, **META)}, ValueError, r"^global_mask: .*meta.*move it"),
    "mask_of_2": (
        window_call,
        {"attention_mask": torch.tensor([[2, 1, 1, 1, 1, 0]] * 2)},
        ValueError,
        r"^attention_mask: got the value 2, .* AttentionPattern.from_masks takes 2 for a global token",
    ),
    "global_mask_of_2": (
        window_call,
        {"global_mask": torch.tensor([[2, 1, 1, 1, 1, 0]] * 2)},
        ValueError,
        r"^global_mask: got the value 2, .*\(1 = global token, 0 = not\). `mask != 0` or `mask == 1`",
    ),
    "query_nested": (
        window_call,
        {"query": torch.nested.nested_tensor([torch.ones(2, 6, 3), torch.ones(2, 5, 3)])},
        TypeError,
        r"^query: got a nested tensor, expected torch.strided",
    ),
    "mask_additive": (
        window_call,
        {"attention_mask": torch.tensor([[0.0, 0, 0, 0, 0, -10000.0]] * 2)},
        ValueError,
        r"^attention_mask: got the value -10000.0, expected only \[0, 1\].*`mask == 0`",
    ),
    "mask_two_where_globals_have_their_own": (
        window_call,
        {"attention_mask": torch.full((2, 6), 2)},
        ValueError,
        r"^attention_mask: got the value 2, expected only \[0, 1\]",
    ),
    "global_mask_two": (
        window_call,
        {"global_mask": 2 * marks()},
        ValueError,
        r"^global_mask: got the value 2.*1 = global token",
    ),
    "mask_nan": (
        window_call,
        {"attention_mask": torch.full((2, 6), torch.nan)},
        ValueError,
        r"^attention_mask: got the value nan",
    ),
    "from_masks_three": (
        masks_call,
        {"attention_mask": 3 * torch.ones(1, 4)},
        ValueError,
        r"^attention_mask: .*\[0, 1, 2\].*2 = real",
    ),
    "from_masks_global_two": (
        masks_call,
        {"global_attention_mask": torch.tensor([[0, 2]])},
        ValueError,
        r"^global_attention_mask: got the value 2, expected only \[0, 1\] \(1 = global token",
    ),
    "from_masks_nothing": (masks_call, {}, ValueError, r"^shape: got None without a mask.*give a mask or the shape"),
    "from_masks_shape_not_a_pair": (masks_call, {"shape": (1, 2, 3)}, TypeError, r"^shape: got \(1, 2, 3\), expected a pair"),
    "from_masks_shape_of_floats": (masks_call, {"shape": (1, 2.0)}, TypeError, r"^shape: got"),
    "from_masks_no_tokens": (masks_call, {"shape": (1, 0)}, ValueError, r"^shape: got \(1, 0\).*seq_len >= 1"),
    "from_masks_negative_batch": (masks_call, {"shape": (-1, 4)}, ValueError, r"^shape: got \(-1, 4\).*batch >= 0"),
    "from_masks_shapes_differ": (
        masks_call,
        {"attention_mask": torch.ones(2, 6), "global_attention_mask": torch.ones(2, 5)},
        ValueError,
        r"^global_attention_mask: got shape \(2, 5\), expected \(batch, seq_len\) = \(2, 6\)",
    ),
    "from_masks_devices_differ": (
        masks_call,
        {"attention_mask": torch.ones(2, 6), "global_attention_mask": torch.ones(2, 6, **META)},
        ValueError,
        r"^global_attention_mask: got a tensor on meta.*move one",
    ),
    "max_globals_negative": (
        masks_call,
        {"shape": (1, 4), "max_globals": -1},
        ValueError,
        r"^max_globals: got -1.*None or an int",
    ),
    "is_causal_text": (window_call, {"is_causal": "no"}, TypeError, r"^is_causal: got 'no', expected True or False"),
    "is_causal_number": (masks_call, {"shape": (1, 4), "is_causal": 1}, TypeError, r"^is_causal: got 1"),
    "device_unknown": (masks_call, {"shape": (1, 4), "device": "foo"}, ValueError, r"^device: got 'foo', expected"),
    "device_elsewhere": (
        masks_call,
        {"attention_mask": torch.ones(1, 4), "device": "meta"},
        ValueError,
        r"^device: got 'meta' and masks on cpu",
    ),
    "max_globals_float": (masks_call, {"shape": (1, 4), "max_globals": 1.0}, TypeError, r"^max_globals: got 1.0"),
    # pattern
    "pattern_and_window": (window_call, {"pattern": pattern(), "window": 1}, ValueError, r"^pattern: got one together.*either"),
    "pattern_and_mask": (
        window_call,
        {"pattern": pattern(), "global_mask": marks()},
        ValueError,
        r"^pattern: got one together",
    ),
    "pattern_and_causal": (window_call, {"pattern": pattern(), "is_causal": True}, ValueError, r"^pattern: got one together"),
    "pattern_and_dilation": (window_call, {"pattern": pattern(), "dilation": 2}, ValueError, r"^pattern: got one together"),
    "pattern_and_dilation_tensor": (
        window_call,
        {"pattern": pattern(), "dilation": torch.tensor([1, 2])},
        TypeError,
        r"^dilation: got a tensor of shape \(2,\), expected an int or a sequence",
    ),
    "query_sparse": (window_call, {"query": torch.zeros(2, 4, 6, 8).to_sparse()}, TypeError, r"^query: got a tensor of layout"),
    "scale_huge": (window_call, {"scale": -1e25}, ValueError, r"^scale: got -1e\+25, expected a finite number up to 1e\+20"),
    "rows_without_channels": (
        absorbed_call,
        {"query_global": torch.zeros(2, 4, 1, 0)},
        ValueError,
        r"^query_global: got shape \(2, 4, 1, 0\), expected at least one head and one channel",
    ),
    "validate_text": (masks_call, {"shape": (1, 4), "validate": "no"}, TypeError, r"^validate: got 'no', expected None, True"),
    "pattern_not_one": (window_call, {"pattern": "local"}, TypeError, r"^pattern: got str, expected an AttentionPattern \("),
    "pattern_other_length": (
        window_call,
        {"pattern": pattern(global_attention_mask=None, shape=(2, 7))},
        ValueError,
        r"^pattern: got one for \(batch, seq_len\) = \(2, 7\), expected \(2, 6\) like query: build",
    ),
    "pattern_other_device": (
        window_call,
        {"pattern": pattern(global_attention_mask=None, shape=(2, 6), device="meta")},
        ValueError,
        r"^pattern: got one on meta, expected cpu like query: build it",
    ),
    "pattern_other_heads": (
        window_call,
        {"pattern": pattern(dilation=[1, 2])},
        ValueError,
        r"^dilation: got 2 values.* 4 query",
    ),
    # dropout
    "dropout_one": (window_call, {"dropout_p": 1.0}, ValueError, r"^dropout_p: got 1.0.*largest usable value is 0.99609375"),
    "dropout_nearly_one": (window_call, {"dropout_p": 0.999}, ValueError, r"^dropout_p: .*largest usable value is 0.99609375"),
    "dropout_tiny": (
        window_call,
        {"dropout_p": 0.001},
        ValueError,
        r"^dropout_p: .*nearest usable values are 0 and 0.00390625",
    ),
    "dropout_negative": (window_call, {"dropout_p": -0.1}, ValueError, r"^dropout_p: got -0.1, expected 0 <= dropout_p < 1"),
    "dropout_above_one": (window_call, {"dropout_p": 1.5}, ValueError, r"^dropout_p: got 1.5"),
    "dropout_nan": (window_call, {"dropout_p": float("nan")}, ValueError, r"^dropout_p: got nan"),
    "dropout_tensor": (window_call, {"dropout_p": torch.tensor(0.1)}, TypeError, r"^dropout_p: got a tensor.*Python number"),
    "dropout_bool": (window_call, {"dropout_p": True}, TypeError, r"^dropout_p: got True"),
    "seed_int": (window_call, {"dropout_p": 0.1, "dropout_seed": 5}, TypeError, r"^dropout_seed: got 5.*torch.tensor\(1234\)"),
    "seed_int32": (
        window_call,
        {"dropout_p": 0.1, "dropout_seed": torch.tensor(5, dtype=torch.int32)},
        TypeError,
        r"^dropout_seed: got a tensor of shape \(\) of dtype torch.int32, expected an int64",
    ),
    "seed_vector": (
        window_call,
        {"dropout_seed": torch.zeros(1, dtype=torch.int64)},
        TypeError,
        r"^dropout_seed: got .*\(1,\)",
    ),
    "seed_other_device": (
        window_call,
        {"dropout_p": 0.1, "dropout_seed": torch.zeros((), dtype=torch.int64, **META)},
        ValueError,
        r"^dropout_seed: got a tensor on meta, expected cpu",
    ),
    # backend
    "backend_unknown": (window_call, {"backend": "cuda"}, ValueError, r"^backend: got 'cuda'.*'triton', 'torch', 'reference'"),
    "backend_not_a_name": (window_call, {"backend": 1}, ValueError, r"^backend: got 1"),
    "backend_without_a_gpu": (
        window_call,
        {"backend": "triton"},
        NotImplementedError,
        r"^backend: .*triton.*Triton drives GPUs",
    ),
    "rows_backend_without_a_gpu": (rows_call, {"backend": "triton"}, NotImplementedError, r"^backend: .*triton"),
}


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize(("function", "changes", "exception", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(function, changes, exception, message):
    with pytest.raises(exception, match=rf"(?s){message}"):
        function(**changes)


@pytest.mark.parametrize("function", [window_call, rows_call, absorbed_call, maps_call], ids=lambda call: call.__name__)
def test_the_unchanged_calls_are_accepted(function):
    """What the refusals above change one thing in."""
    function()


@pytest.mark.parametrize(
    ("states", "message"),
    [(torch.ones(2, 6), "features"), (torch.ones(2, 5, 3), "seq_len 6"), (torch.ones(3, 6, 3), "batch 2")],
    ids=["two_dimensions", "other_length", "other_batch"],
)
def test_gather_global_refuses(states, message):
    with pytest.raises(ValueError, match=rf"^states: got shape.*{message}"):
        pattern().gather_global(states)


def test_gather_global_refuses_another_device():
    with pytest.raises(ValueError, match=r"^states: got a tensor on meta, expected cpu, where the pattern is"):
        pattern().gather_global(torch.ones(2, 6, 3, **META))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_values_are_not_read_while_tracing(mode):
    def attend(states, mask):
        pattern = AttentionPattern.from_masks(mask, 1 - mask, window=1, max_globals=2)
        return sliding_window_attention(states, states, states, pattern=pattern)

    states, mask = torch.randn(1, 2, 5, 3), torch.tensor([[1, 1, 1, 0, 0]])
    graph = make_fx(attend, tracing_mode=mode)(states, mask)
    assert torch.equal(graph(states, mask), attend(states, mask))


def test_values_are_checked_on_request_and_can_be_left_out():
    """On the CPU the check is free and on; ``validate=False`` turns it off: any other number is then a real token."""
    odd = torch.tensor([[3, 1, 0]])
    for validate in (None, True):
        with pytest.raises(ValueError, match="attention_mask"):
            masks_call(attention_mask=odd, validate=validate)
    assert masks_call(attention_mask=odd, validate=False).key_mask.tolist() == [[True, True, False]]


def test_available_backends_say_why_not():
    on_cpu = available_backends("cpu")
    assert list(on_cpu) == ["triton", "torch", "reference"]
    assert on_cpu["torch"] is None
    assert on_cpu["reference"] is None
    assert "GPU" in on_cpu["triton"]
    assert available_backends(torch.device("cpu")) == on_cpu


def test_available_backends_of_a_device_that_is_not_here():
    reasons = available_backends("xpu:9")
    assert list(reasons) == ["triton", "torch", "reference"]
    assert all("PyTorch sees" in reason and "xpu" in reason for reason in reasons.values())
    with pytest.raises(ValueError, match=r"device: got 'foo', expected .*cuda"):
        available_backends("foo")


def test_dropout_of_zero_ignores_nothing_but_the_seed_value():
    """A seed without dropout is allowed: one training loop can pass it to evaluation too."""
    assert torch.equal(window_call(dropout_seed=torch.tensor(3)), window_call())


def test_numbers_of_numpy_are_numbers():
    expected = window_call(scale=0.5, dropout_p=0.25, dropout_seed=torch.tensor(3))
    got = window_call(scale=numpy.float32(0.5), dropout_p=numpy.float32(0.25), dropout_seed=torch.tensor(3))
    assert torch.equal(got, expected)


def test_arrays_of_numpy_are_sequences():
    got = pattern(window=numpy.array([2, 3]), dilation=numpy.array([1, 2, 1, 1]), is_causal=numpy.bool_(True))
    assert (got.window, got.dilation, got.is_causal) == ((2, 3), (1, 2, 1, 1), True)
    assert got.is_causal is True
    few, _ = maps_call(pattern=got, heads=numpy.array([1, -1]), rows=numpy.array([0]))
    assert torch.equal(few, maps_call(pattern=got, heads=[1, 3], rows=[0])[0])
    for wrong in (numpy.array([1.0, 2.0]), numpy.array([[1, 2]]), numpy.array([])):
        with pytest.raises(TypeError, match=r"^dilation: got"):
            pattern(dilation=wrong)


@pytest.mark.parametrize(("device", "level"), [("cpu", logging.INFO), ("cuda:0", logging.WARNING)])
def test_the_slow_backend_is_told_of_once(device, level, caplog):
    """On a GPU, where whoever did not ask for it may not expect it."""
    caplog.set_level(logging.INFO, "longformer_triton")
    backends.tell_torch_is_used.cache_clear()
    for _ in range(2):
        backends.tell_torch_is_used(torch.device(device), "a reason")
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith(f"PyTorch backend in use on {device}")
    assert record.getMessage().endswith("a reason")


def test_nothing_is_slow_on_meta_which_computes_nothing(caplog):
    caplog.set_level(logging.INFO, "longformer_triton")
    backends.tell_torch_is_used.cache_clear()
    window_call(**dict.fromkeys(("query", "key", "value"), states(**META)))
    assert not caplog.records
