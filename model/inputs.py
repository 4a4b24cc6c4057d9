"""Refusing what a forward pass cannot take: by name, with what was given, what is expected, and what to do.

Shapes and dtypes are checked always; values in eager mode on the CPU alone, where looking at them waits for nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from longformer_triton.kernels import checks

_INDEX_DTYPES = (torch.int64, torch.int32)
_IGNORED = -100


def tokens(input_ids: Tensor | None, inputs_embeds: Tensor | None, hidden_size: int) -> Tensor:
    """Whichever of the two was given: (batch, seq_len) of ids, or (batch, seq_len, hidden_size) of embeddings.

    Raises:
        ValueError, TypeError: neither or both were, or it is not of that kind.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            f"input_ids: got {'neither' if input_ids is None else 'both'} of input_ids and inputs_embeds, expected one."
        )
    if input_ids is not None:
        tensor("input_ids", input_ids)
        if input_ids.dim() != 2 or input_ids.shape[1] < 1:
            raise ValueError(f"input_ids: got shape {tuple(input_ids.shape)}, expected (batch, seq_len), seq_len >= 1.")
        _index_dtype("input_ids", input_ids)
        return input_ids
    assert inputs_embeds is not None
    tensor("inputs_embeds", inputs_embeds)
    if inputs_embeds.dim() != 3 or inputs_embeds.shape[1] < 1 or inputs_embeds.shape[2] != hidden_size:
        raise ValueError(
            f"inputs_embeds: got shape {tuple(inputs_embeds.shape)}, expected (batch, seq_len, {hidden_size}), seq_len >= 1."
        )
    if not inputs_embeds.is_floating_point():
        raise TypeError(
            f"inputs_embeds: got dtype {inputs_embeds.dtype}, expected a floating-point dtype; ids go to input_ids."
        )
    return inputs_embeds


def indices(name: str, value: Tensor | None, shape: tuple[int, int], rows: int, field: str, remedy: str | None = None) -> None:
    """Refuse anything but indices of a table of ``rows`` rows, one for each token (or one row for all texts).

    Args:
        name: of the argument.
        value: what was given; None is fine.
        shape: (batch, seq_len).
        rows: of the table.
        field: of the configuration, that says how many rows there are.
        remedy: for values beyond them.
    """
    if value is None:
        return
    tensor(name, value)
    _index_dtype(name, value)
    if value.dim() != 2 or value.shape[1] != shape[1] or value.shape[0] not in (1, shape[0]):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected (batch, seq_len) = {tuple(shape)}.")
    _range(name, value, rows, f"{field} is {rows}" if remedy is None else f"{field} is {rows}; {remedy}")


def head_mask(value: Tensor | None, layers: int, heads: int) -> Tensor | None:
    """(num_hidden_layers, num_attention_heads) from that or from one row for all layers; None stays None."""
    if value is None:
        return None
    tensor("head_mask", value)
    if tuple(value.shape) not in ((heads,), (layers, heads)):
        raise ValueError(
            f"head_mask: got shape {tuple(value.shape)}, expected (num_attention_heads,) = ({heads},) "
            f"or (num_hidden_layers, num_attention_heads) = ({layers}, {heads})."
        )
    return value.expand(layers, heads)


def same_device(place: torch.device, **others: Tensor | None) -> None:
    """Refuse tensors that are elsewhere than the tokens."""
    for name, value in others.items():
        if isinstance(value, Tensor) and value.device != place:
            raise ValueError(f"{name}: got a tensor on {value.device}, expected {place}, where the input is: move one of them.")


def no_wider(name: str, value: Tensor, table: Tensor) -> None:
    """Refuse states of a wider dtype than the model's: its layer norms take no mixture."""
    if torch.promote_types(value.dtype, table.dtype) != table.dtype:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected the model's {table.dtype}: cast one of them.")


def classes(name: str, value: Tensor, shape: tuple[int, ...], count: int | None) -> Tensor:
    """The labels of ``shape`` as one dimension of int64; each below ``count`` if that is given, or -100: ignored.

    Raises:
        TypeError, ValueError: they are no integers, of another number, or out of range.
    """
    tensor(name, value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected integers, torch.int64.")
    if value.numel() != math.prod(shape):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(shape)}.")
    flat = value.flatten().long()
    if count is not None and checks.should_validate(None, flat.device):
        _range(name, flat[flat != _IGNORED], count, f"there are {count} classes; {_IGNORED} leaves a place out")
    return flat


def tensor(name: str, value: Any) -> None:
    """Refuse anything but a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor: torch.tensor(...) makes one.")


def _index_dtype(name: str, value: Tensor) -> None:
    if value.dtype not in _INDEX_DTYPES:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected integers, torch.int64 or torch.int32.")


def _range(name: str, value: Tensor, limit: int, why: str) -> None:
    if not checks.should_validate(None, value.device) or not value.numel():
        return
    lowest, highest = (int(bound) for bound in value.aminmax())
    if lowest < 0 or highest >= limit:
        raise ValueError(f"{name}: got {lowest if lowest < 0 else highest}, expected 0 to {limit - 1}: {why}.")
