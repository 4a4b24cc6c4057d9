"""Refusals of arguments: which, what was given, what is expected, what to do. (Backends refuse what they cannot run.)

Checks of shapes, types and devices always run. Checks of values (:func:`mask_values`) read tensors, so they run only where that
costs no synchronisation; :func:`should_validate` decides.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from longformer_triton.kernels import devices

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Longer than any text. Windows and dilations beyond it mean the same, and their products would need more than 64 bits.
_FARTHEST = 2**31 - 1
# Backends mark masked scores with numbers of -1e30 or less.
_LARGEST_SCALE = 1e20


def _is_int(value: Any) -> bool:
    """NumPy's whole numbers, which loops over arrays give, are some too."""
    return isinstance(value, (int, torch.SymInt, numbers.Integral)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A whole number as Python's, or as the symbol that it is while tracing."""
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def _unpacked(value: Any) -> Any:
    """What NumPy has made, be it an array, as Python's; a tensor stays one."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, Tensor) else value


def _bounded(value: Any) -> Any:
    number = _plain(value)
    return min(number, _FARTHEST) if isinstance(number, int) else number


def _dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_nested:
        what = "a nested tensor" if value.is_nested else f"a tensor of layout {value.layout}"
        raise TypeError(f"{name}: got {what}, expected torch.strided: pass a dense or padded one.")


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def window(value: Any) -> tuple[int, int]:
    """(left, right) from an int or a pair; raises for anything else."""
    sides = (value, value) if _is_int(value) else _unpacked(value)
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(_is_int(side) for side in sides):
        raise TypeError(
            f"window: got {_describe(value)}, expected an int w (w keys each side) or a pair (left, right) of ints. "
            "Hugging Face's attention_window is the total of both sides: pass attention_window // 2."
        )
    left, right = sides
    if left < 0 or right < 0:
        raise ValueError(
            f"window: got {value!r}, expected sides >= 0. For an unlimited side pass the sequence length, "
            "for causal attention is_causal=True or (left, 0)."
        )
    return _bounded(left), _bounded(right)


def dilation(value: Any) -> int | tuple[int, ...]:
    """An int, or a tuple with one int for each query head; raises for anything else."""
    steps = (value,) if _is_int(value) else _unpacked(value)
    if not isinstance(steps, Sequence) or not steps or not all(_is_int(step) for step in steps):
        raise TypeError(f"dilation: got {_describe(value)}, expected an int or a sequence with one int for each query head.")
    if any(step < 1 for step in steps):
        raise ValueError(f"dilation: got {value!r}, expected values >= 1; 1 means no dilation.")
    bounded = tuple(map(_bounded, steps))
    return bounded[0] if _is_int(value) else bounded


def max_globals(value: Any) -> int | None:
    """None or a non-negative int; raises for anything else."""
    if value is not None and (not _is_int(value) or value < 0):
        error = ValueError if _is_int(value) else TypeError
        raise error(f"max_globals: got {value!r}, expected None or an int >= 0, the most global tokens of any sample.")
    return None if value is None else _plain(value)


def is_causal(value: Any) -> bool:
    """Refuse anything but True and False: text, even "False", would count as true."""
    value = _unpacked(value)
    if not isinstance(value, bool):
        raise TypeError(f"is_causal: got {_describe(value)}, expected True or False.")
    return value


def mask(name: str, value: Any) -> None:
    """Refuse anything but a dense (batch, seq_len) tensor of bool, integers or floats."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor of shape (batch, seq_len).")
    _dense(name, value)
    if value.dim() != 2:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected (batch, seq_len) with 1 for a real token. "
            "Masks with a query dimension are not supported: window, dilation, is_causal and global tokens say who sees whom."
        )
    if value.is_complex():
        raise TypeError(f"{name}: got dtype {value.dtype}, expected bool, an integer or a float type.")


def mask_shape(attention_mask: Any, global_attention_mask: Any, shape: Any, device: Any) -> tuple[int, int, torch.device]:
    """(batch, seq_len, device) on which the masks and ``shape`` agree."""
    given = {"attention_mask": attention_mask, "global_attention_mask": global_attention_mask}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        mask(name, value)
    if shape is not None and (not isinstance(shape, (tuple, list)) or len(shape) != 2 or not all(map(_is_int, shape))):
        raise TypeError(f"shape: got {shape!r}, expected a pair of ints (batch, seq_len).")
    if not given and shape is None:
        raise ValueError("shape: got None without a mask, expected (batch, seq_len): give a mask or the shape.")
    batch, seq_len = map(_plain, shape if shape is not None else next(iter(given.values())).shape)
    wanted = None if device is None else devices.as_device(device)
    place = next(iter(given.values())).device if given else wanted or torch.device("cpu")
    if not given and not is_tracing():
        devices.usable(place)
    if wanted is not None and not devices.is_at(wanted, place):
        raise ValueError(f"device: got {str(device)!r} and masks on {place}, expected one place: move the masks.")
    for name, value in given.items():
        if value.shape[0] != batch or value.shape[1] != seq_len:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected (batch, seq_len) = ({batch}, {seq_len}).")
        if value.device != place:
            raise ValueError(f"{name}: got a tensor on {value.device}, expected {place}, where the other mask is: move one.")
    if batch < 0 or seq_len < 1:
        raise ValueError(f"shape: got ({batch}, {seq_len}), expected batch >= 0 and seq_len >= 1.")
    return batch, seq_len, place


def is_tracing() -> bool:
    """Whether tensors may have no values to read: in torch.compile, torch.export, make_fx or among fake tensors."""
    kinds = torch._C._TorchDispatchModeKey
    return torch.compiler.is_compiling() or any(map(torch._C._get_dispatch_mode, (kinds.FAKE, kinds.PROXY)))


def is_transformed() -> bool:
    """Whether torch.vmap or a transform of torch.func is around the call, whose tensors may stand for several at once."""
    return torch._C._functorch.get_interpreter_stack() is not None


def should_validate(requested: bool | None, device: torch.device) -> bool:
    """Whether the values of tensors may be read: on request, or in eager mode on the CPU; never while tracing or in torch.vmap.

    Raises:
        TypeError: ``requested`` is neither None nor a bool.
    """
    if requested is not None and not isinstance(requested, bool):
        raise TypeError(f"validate: got {_describe(requested)}, expected None, True or False.")
    if is_tracing() or is_transformed():
        return False
    return device.type == "cpu" if requested is None else requested


def mask_values(name: str, value: Tensor | None, *, highest: int) -> None:
    """Refuse a mask with a value other than 0 .. ``highest``."""
    if value is None or value.dtype == torch.bool or value.numel() == 0:
        return
    allowed = torch.zeros_like(value, dtype=torch.bool)
    for number in range(highest + 1):
        allowed |= value == number
    if not bool(allowed.all()):
        wrong = value[~allowed][0].item()
        meaning = "1 = real token, 0 = padding" + (", 2 = real and global" if highest == 2 else "")
        if name.startswith("global"):
            meaning = "1 = global token, 0 = not"
        hint = "An additive mask (0 and large negative numbers) becomes one of these with `mask == 0`."
        if wrong > 0:
            hint = "`mask != 0` or `mask == 1` makes one of these, whichever is meant."
        if name == "attention_mask" and wrong == 2:
            hint = "AttentionPattern.from_masks takes 2 for a global token; here these are global_mask=(mask == 2)."
        raise ValueError(f"{name}: got the value {wrong}, expected only {list(range(highest + 1))} ({meaning}). {hint}")


def gatherable(name: str, value: Any, batch: int, seq_len: int, device: torch.device) -> None:
    """Refuse anything but (batch, ..., seq_len, features) on ``device``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor (batch, ..., seq_len, features).")
    if value.dim() < 3 or value.shape[0] != batch or value.shape[-2] != seq_len:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected (batch, ..., seq_len, features) with the pattern's "
            f"batch {batch} and seq_len {seq_len}."
        )
    if value.device != device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {device}, where the pattern is: move one.")


def states(name: str, value: Any) -> None:
    """Refuse anything but a (batch, heads, tokens, head_dim) tensor of a supported float type."""
    tokens = "G" if name == "query_global" else "seq_len"
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor of shape (batch, heads, {tokens}, head_dim).")
    _dense(name, value)
    if value.dim() != 4:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected (batch, heads, {tokens}, head_dim), the layout of "
            "torch.nn.functional.scaled_dot_product_attention."
        )
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected float16, bfloat16, float32 or float64.")


def same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse tensors of different dtype or device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected {other.dtype} like {other_name}: cast one of them.")
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device} like {other_name}: move one.")


def not_empty(name: str, value: Tensor, sizes: Iterable[int], of_each: str) -> None:
    """Refuse a tensor of which one of ``sizes`` is 0."""
    if any(size < 1 for size in sizes):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected at least one {of_each}.")


def same_shape(name: str, value: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Refuse a tensor whose shape is not ``expected``."""
    if value.dim() != len(expected) or any(got != want for got, want in zip(value.shape, expected, strict=True)):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(expected)}, that is {meaning}.")


def attention_inputs(query: Any, key: Any, value: Any) -> None:
    """Refuse query, key, value that do not fit together, grouped-query heads included."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        states(name, tensor)
    for name, tensor in (("key", key), ("value", value)):
        same_kind(name, tensor, "query", query)
    batch, heads, seq_len, head_dim = query.shape
    key_heads = key.shape[1]
    same_shape("key", key, (batch, key_heads, seq_len, head_dim), "query's batch, seq_len and head_dim")
    same_shape("value", value, (batch, key_heads, seq_len, head_dim), "the shape of key")
    for name, tensor in (("query", query), ("key", key)):
        not_empty(name, tensor, tensor.shape[1:], "head, one token and one channel")
    if heads % key_heads != 0:
        raise ValueError(
            f"key: got {key_heads} heads for {heads} query heads, expected a divisor of {heads}: in grouped-query "
            "attention each key head serves the same number of query heads."
        )


def pattern_fits(pattern: Any, batch: int, heads: int, seq_len: int, device: torch.device, like: str = "query") -> None:
    """Refuse a pattern that was made for another shape or device than the argument ``like``'s, or another number of heads."""
    if not hasattr(pattern, "global_index"):
        raise TypeError(f"pattern: got {type(pattern).__name__}, expected an AttentionPattern (AttentionPattern.from_masks).")
    if pattern.batch != batch or pattern.seq_len != seq_len:
        raise ValueError(
            f"pattern: got one for (batch, seq_len) = ({pattern.batch}, {pattern.seq_len}), expected ({batch}, {seq_len}) "
            f"like {like}: build the pattern from this batch's masks."
        )
    if pattern.device != device:
        raise ValueError(f"pattern: got one on {pattern.device}, expected {device} like {like}: build it from masks there.")
    if len(pattern.dilations) != 1 and len(pattern.dilations) != heads:
        raise ValueError(
            f"dilation: got {len(pattern.dilations)} values, expected 1 or one for each of the {heads} query heads."
        )


def global_inputs(query: Tensor, query_global: Any, key_global: Any, value_global: Any, pattern: Any) -> None:
    """Refuse global projections that do not fit the local ones or the pattern."""
    given = (("query_global", query_global), ("key_global", key_global), ("value_global", value_global))
    for name, tensor in given:
        states(name, tensor)
        same_kind(name, tensor, "query", query)
    global_queries("query_global", query_global, pattern)
    batch, heads, seq_len, head_dim = query.shape
    same_shape("query_global", query_global, (batch, heads, query_global.shape[2], head_dim), "(batch, heads, G, head_dim)")
    key_heads = key_global.shape[1]
    same_shape("key_global", key_global, (batch, key_heads, seq_len, head_dim), "(batch, heads, seq_len, head_dim)")
    same_shape("value_global", value_global, (batch, key_heads, seq_len, head_dim), "the shape of key_global")
    if key_heads < 1 or heads % key_heads != 0:
        raise ValueError(f"key_global: got {key_heads} heads for {heads} query heads, expected a divisor of {heads}.")
    not_causal(pattern)


def not_causal(pattern: Any) -> None:
    """Refuse a causal pattern where global rows are computed."""
    if pattern.is_causal:
        raise ValueError(
            "pattern: got a causal one, expected is_causal=False: rows of global tokens are bidirectional by nature. "
            "For causal attention with global keys (attention sinks) call sliding_window_attention."
        )


def global_queries(name: str, value: Tensor, pattern: Any) -> None:
    """Refuse (batch, heads, G, ...) whose G is not the pattern's."""
    width = pattern.global_index.shape[1]
    if value.shape[0] != pattern.batch or value.shape[2] != width:
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected (batch, heads, G, head_dim) with batch {pattern.batch} and "
            f"G = {width}, the width of pattern.global_index: pattern.gather_global(x) fetches these rows."
        )


def absorbed_inputs(
    hidden_states: Any, query_global: Any, key_weight: Any, value_weight: Any, value_bias: Any, pattern: Any
) -> None:
    """Refuse inputs of absorbed global attention that do not fit together."""
    if not isinstance(hidden_states, Tensor):
        kind = type(hidden_states).__name__
        raise TypeError(f"hidden_states: got {kind}, expected a tensor of shape (batch, seq_len, hidden_size).")
    if hidden_states.dim() != 3:
        raise ValueError(f"hidden_states: got shape {tuple(hidden_states.shape)}, expected (batch, seq_len, hidden_size).")
    states("query_global", query_global)
    same_kind("hidden_states", hidden_states, "query_global", query_global)
    not_empty("hidden_states", hidden_states, hidden_states.shape[1:], "token and one channel")
    not_empty("query_global", query_global, (query_global.shape[1], query_global.shape[3]), "head and one channel")
    batch, seq_len, hidden_size = hidden_states.shape
    pattern_fits(pattern, batch, query_global.shape[1], seq_len, query_global.device, "hidden_states")
    global_queries("query_global", query_global, pattern)
    not_causal(pattern)
    projected = query_global.shape[1] * query_global.shape[3]
    expected = {
        "key_weight": (key_weight, (projected, hidden_size), "(heads * head_dim, hidden_size)"),
        "value_weight": (value_weight, (projected, hidden_size), "(heads * head_dim, hidden_size)"),
        "value_bias": (value_bias, (projected,), "(heads * head_dim,)"),
    }
    for name, (tensor, shape, meaning) in expected.items():
        if tensor is None and name == "value_bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, expected a tensor of shape {meaning}.")
        same_kind(name, tensor, "query_global", query_global)
        same_shape(name, tensor, shape, meaning)


def scale(value: Any, head_dim: int) -> float:
    """The factor on the scores; None is head_dim ** -0.5."""
    if value is None:
        return head_dim**-0.5
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, numbers.Real)):
        raise TypeError(f"scale: got {_describe(value)}, expected None or a Python number.")
    try:
        factor = float(value)
    except OverflowError:  # a whole number beyond all floats
        factor = math.inf
    if not abs(factor) <= _LARGEST_SCALE:
        raise ValueError(
            f"scale: got {value!r}, expected a finite number up to {_LARGEST_SCALE:g}, beyond which masked scores would "
            "not stay below all others: multiply query by it."
        )
    return factor


def dropout_threshold(dropout_p: Any) -> int:
    """t = round(256 p), the number of byte values of 256 that drop a probability."""
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, (int, float, numbers.Real)):
        raise TypeError(f"dropout_p: got {_describe(dropout_p)}, expected a Python number, 0 <= dropout_p < 1.")
    dropout_p = dropout_p if isinstance(dropout_p, (int, float)) else float(dropout_p)
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p: got {dropout_p!r}, expected 0 <= dropout_p < 1.")
    threshold = round(256 * dropout_p)
    if threshold == 256:
        raise ValueError(f"dropout_p: got {dropout_p!r}, which drops everything; the largest usable value is {255 / 256}.")
    if threshold == 0 and dropout_p > 0:
        raise ValueError(
            f"dropout_p: got {dropout_p!r}, which rounds to none of 256; the nearest usable values are 0 and {1 / 256}."
        )
    return threshold


def dropout_seed(value: Any, device: torch.device) -> None:
    """Refuse anything but an int64 tensor of shape () on the right device."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.dim() != 0:
        got = f"{_describe(value)} of dtype {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(
            f"dropout_seed: got {got}, expected an int64 tensor of shape (): torch.tensor(1234), "
            "or None to draw one from torch's generator."
        )
    if value.device != device:
        raise ValueError(f"dropout_seed: got a tensor on {value.device}, expected {device} like query: move it.")


def selection(name: str, value: Sequence[int] | None, size: int) -> list[int]:
    """A list of indices below ``size``, negative ones counted from the end; None selects all."""
    if value is None:
        return list(range(size))
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (Sequence, range)) or not all(_is_int(item) for item in value):
        raise TypeError(f"{name}: got {_describe(value)}, expected None or a sequence of ints.")
    if any(not -size <= item < size for item in value):
        raise ValueError(f"{name}: got {list(value)}, expected indices from {-size} to {size - 1}.")
    return [item % size for item in value]
