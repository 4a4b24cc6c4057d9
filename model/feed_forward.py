"""The feed-forward half of a layer, a stretch of tokens at a time, keeping nothing that is quick to compute again.

    out = f(x W1^T + b1) W2^T + b2        with f the activation, applied to each number by itself

Autograd would keep both x W1^T + b1 and f of it, usually each four times as wide as x, and backward would make two more of that
size. Here the first alone is kept, backward computes the activation again, and everything else of that width exists for one
stretch of tokens at a time. Numbers are those of the two layers called one after the other, but for the order in which the
gradients of the weights are summed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, linear, relu, silu

from longformer_triton.kernels.precision import accumulation_dtype

Activation = Callable[[Tensor], Tensor]

# Bytes of a stretch as wide as the intermediate layer. On CPUs, glibc returns blocks of 32 MiB and more to the system at once,
# and fetching them again costs page faults (bench/LOG.md, "feed-forward"). GPUs want products large enough to fill them.
_STRETCH_BYTES = {"cpu": 24 * 2**20}
_STRETCH_BYTES_ELSEWHERE = 256 * 2**20


def gelu_new(states: Tensor) -> Tensor:
    """GELU by its approximation with tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2)."""
    return gelu(states, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {"gelu": gelu, "relu": relu, "silu": silu, "gelu_new": gelu_new}
# By name, the gradient of what went in from the gradient of what came out and from what went in.
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_new": functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "relu": lambda grad, states: torch.ops.aten.threshold_backward(grad, states, 0),
    "silu": torch.ops.aten.silu_backward,
}


def name_of(activation: Activation) -> str | None:
    """The name of one of :data:`ACTIVATIONS`; None for any other function, which may have parameters or mix numbers."""
    return next((name for name, known in ACTIVATIONS.items() if known is activation), None)


def feed_forward(states: Tensor, wide: nn.Linear, narrow: nn.Linear, activation: str) -> Tensor:
    """``narrow(activation(wide(states)))``, differentiable once.

    Args:
        states: (..., hidden_size).
        wide: to (..., intermediate_size), with a bias.
        narrow: back to (..., hidden_size), with a bias.
        activation: a name in :data:`ACTIVATIONS`.

    Returns:
        The shape of ``states``.
    """
    tensors: tuple[Tensor, ...] = (states, wide.weight, wide.bias, narrow.weight, narrow.bias)
    kind = states.device.type
    if torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
        tensors = tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _FeedForward.apply(*tensors, activation)
    return _forward(tensors[0], tensors[1:], activation, None)


def stretch_tokens(device_type: str, bytes_a_token: int) -> int:
    """How many tokens go together, at the intermediate layer's bytes for each."""
    return max(1, _STRETCH_BYTES.get(device_type, _STRETCH_BYTES_ELSEWHERE) // bytes_a_token)


def _stretches(states: Tensor, width: int) -> Iterator[slice]:
    """Slices of ``states`` (tokens, ...) that cover all of it, each of a bounded size at ``width`` numbers a token."""
    tokens = stretch_tokens(states.device.type, width * states.element_size())
    for start in range(0, states.shape[0], tokens):
        yield slice(start, start + tokens)


def _forward(states: Tensor, parameters: Sequence[Tensor], activation: str, widened: Tensor | None) -> Tensor:
    """The formula; what goes into the activation is written to ``widened`` (tokens, intermediate_size) if that is given."""
    wide_weight, wide_bias, narrow_weight, narrow_bias = parameters
    flat = states.reshape(-1, states.shape[-1])
    out = flat.new_empty(flat.shape[0], narrow_weight.shape[0])
    for tokens in _stretches(flat, wide_weight.shape[0]):
        if widened is None:
            stretch = linear(flat[tokens], wide_weight, wide_bias)
        else:
            stretch = torch.addmm(wide_bias, flat[tokens], wide_weight.t(), out=widened[tokens])
        torch.addmm(narrow_bias, ACTIVATIONS[activation](stretch), narrow_weight.t(), out=out[tokens])
    return out.view(*states.shape[:-1], -1)


def _sum_for(parameter: Tensor, needed: bool) -> Tensor | None:
    """Zeros to sum a gradient over stretches in, in the accumulation type; None if nobody needs it."""
    return torch.zeros_like(parameter, dtype=accumulation_dtype(parameter.dtype)) if needed else None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to a sum."""
    if total is None:
        return
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


class _FeedForward(torch.autograd.Function):
    """:func:`_forward` with a backward that computes the activation again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, *arguments: Any) -> Tensor:
        *parameters, activation = arguments
        wide_weight, wide_bias, narrow_weight, _ = parameters
        widened = states.new_empty(states.shape[:-1].numel(), wide_weight.shape[0])
        ctx.save_for_backward(states, wide_weight, wide_bias, narrow_weight, widened)
        ctx.activation = activation
        return _forward(states, parameters, activation, widened)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        states, wide_weight, wide_bias, narrow_weight, widened = ctx.saved_tensors
        needs_states, needs_wide, needs_wide_bias, needs_narrow, needs_narrow_bias, _ = ctx.needs_input_grad
        flat, grad_flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (states, grad_out))
        grad_states = torch.empty_like(flat) if needs_states else None
        grad_wide, grad_wide_bias = _sum_for(wide_weight, needs_wide), _sum_for(wide_bias, needs_wide_bias)
        grad_narrow = _sum_for(narrow_weight, needs_narrow)
        for tokens in _stretches(flat, wide_weight.shape[0]):
            if grad_narrow is not None:
                _add_product(grad_narrow, grad_flat[tokens].t(), ACTIVATIONS[ctx.activation](widened[tokens]))
            if not (needs_states or needs_wide or needs_wide_bias):
                continue
            grad_widened = _GRADIENTS[ctx.activation](grad_flat[tokens] @ narrow_weight, widened[tokens])
            _add_product(grad_wide, grad_widened.t(), flat[tokens])
            if grad_wide_bias is not None:
                grad_wide_bias.add_(grad_widened.sum(0))
            if grad_states is not None:
                torch.mm(grad_widened, wide_weight, out=grad_states[tokens])
        dtype = states.dtype
        return (
            None if grad_states is None else grad_states.view(states.shape),
            *(None if total is None else total.to(dtype) for total in (grad_wide, grad_wide_bias, grad_narrow)),
            grad_flat.sum(0) if needs_narrow_bias else None,
            None,
        )
