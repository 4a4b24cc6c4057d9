"""Every refusal of global rows, absorbed projections and attention maps."""

import pytest
import torch
from refused_calls import absorbed_call, fail_when_work_begins, maps_call, pattern, rows_call, states


@pytest.fixture
def _nothing_runs(monkeypatch):
    fail_when_work_begins(monkeypatch)


# id: (function, changed arguments, exception, regular expression that the message must match)
REFUSALS = {
    # global rows
    "rows_causal": (
        rows_call,
        {"pattern": pattern(is_causal=True)},
        ValueError,
        r"^pattern: got a causal.*sliding_window_attention",
    ),
    "rows_pattern_missing": (rows_call, {"pattern": None}, TypeError, r"^pattern: got NoneType, expected an AttentionPattern"),
    "rows_other_count": (
        rows_call,
        {"query_global": states(2, 4, 3, 3)},
        ValueError,
        r"^query_global: got shape \(2, 4, 3, 3\).*G = 2.*pattern.gather_global",
    ),
    "rows_full_length": (rows_call, {"query_global": states()}, ValueError, r"^query_global: .*pattern.gather_global\(x\)"),
    "rows_other_heads": (
        rows_call,
        {"query_global": states(2, 2, 2, 3)},
        ValueError,
        r"^query_global: .*\(batch, heads, G, head_dim\)",
    ),
    "rows_other_dtype": (rows_call, {"key_global": states(dtype=torch.float16)}, TypeError, r"^key_global: got dtype.*cast"),
    "rows_key_length": (rows_call, {"key_global": states(2, 4, 2, 3)}, ValueError, r"^key_global: got shape \(2, 4, 2, 3\)"),
    "rows_value_shape": (
        rows_call,
        {"value_global": states(2, 2, 6, 3)},
        ValueError,
        r"^value_global: .*the shape of key_global",
    ),
    "rows_heads_do_not_divide": (
        rows_call,
        {"key_global": states(2, 3, 6, 3), "value_global": states(2, 3, 6, 3)},
        ValueError,
        r"^key_global: got 3 heads for 4 query heads",
    ),
    "rows_not_a_tensor": (rows_call, {"value_global": None}, TypeError, r"^value_global: got NoneType"),
    # absorbed projections
    "absorbed_states_not_a_tensor": (absorbed_call, {"hidden_states": None}, TypeError, r"^hidden_states: got NoneType"),
    "absorbed_states_split": (
        absorbed_call,
        {"hidden_states": states()},
        ValueError,
        r"^hidden_states: .*expected \(batch, seq_len, hidden_size\)",
    ),
    "absorbed_query_flat": (
        absorbed_call,
        {"query_global": states(2, 2, 12)},
        ValueError,
        r"^query_global: .*expected \(batch, heads, G, head_dim\)",
    ),
    "absorbed_causal": (absorbed_call, {"pattern": pattern(is_causal=True)}, ValueError, r"^pattern: got a causal one"),
    "absorbed_other_count": (absorbed_call, {"query_global": states(2, 4, 1, 3)}, ValueError, r"^query_global: .*G = 2"),
    "absorbed_weight_transposed": (
        absorbed_call,
        {"key_weight": states(5, 12)},
        ValueError,
        r"^key_weight: .*\(12, 5\), that is",
    ),
    "absorbed_weight_missing": (
        absorbed_call,
        {"value_weight": None},
        TypeError,
        r"^value_weight: got NoneType, expected a tensor",
    ),
    "absorbed_weight_dtype": (
        absorbed_call,
        {"value_weight": states(12, 5).half()},
        TypeError,
        r"^value_weight: got dtype.*cast",
    ),
    "absorbed_bias_shape": (
        absorbed_call,
        {"value_bias": states(4, 3)},
        ValueError,
        r"^value_bias: got shape \(4, 3\), expected \(12,\)",
    ),
    "absorbed_pattern_length": (
        absorbed_call,
        {"hidden_states": states(2, 7, 5)},
        ValueError,
        r"^pattern: got one for .*\(2, 7\)",
    ),
    # maps
    "maps_one_of_two": (
        maps_call,
        {"query_global": states(2, 4, 2, 3)},
        ValueError,
        r"^query_global: got one of.*both or neither",
    ),
    "maps_head_out_of_range": (maps_call, {"heads": [4]}, ValueError, r"^heads: got \[4\], expected indices from -4 to 3"),
    "maps_row_out_of_range": (maps_call, {"rows": [0, -7]}, ValueError, r"^rows: got \[0, -7\], expected indices from -6 to 5"),
    "maps_heads_not_ints": (
        maps_call,
        {"heads": [0.5]},
        TypeError,
        r"^heads: got \[0.5\], expected None or a sequence of ints",
    ),
    "maps_heads_one_number": (maps_call, {"heads": 1}, TypeError, r"^heads: got 1, expected None or a sequence"),
    "maps_causal_rows": (
        maps_call,
        {"pattern": pattern(is_causal=True), "query_global": states(2, 4, 2, 3), "key_global": states()},
        ValueError,
        r"^pattern: got a causal one",
    ),
}


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize(("function", "changes", "exception", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(function, changes, exception, message):
    with pytest.raises(exception, match=rf"(?s){message}"):
        function(**changes)
