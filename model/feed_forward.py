"""The feed-forward half of a layer, a stretch of tokens at a time, keeping nothing that is quick to compute again.

    out = f(x W1^T + b1) W2^T + b2        with f the activation, applied to each number by itself

Autograd would keep both x W1^T + b1 and f of it, usually each four times as wide as x, and backward would make two more of that
size. Here the first alone is kept, backward computes the activation again, and everything else of that width exists for one
stretch of tokens at a time. Numbers are those of the two layers called one after the other, but for the order of sums: of the
weights' gradients, and inside the products of stretches of different lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, relu, silu

from longformer_triton.kernels.precision import accumulation_dtype, has_autocast
from longformer_triton.model.linear import dense, dense_gradients

Activation = Callable[[Tensor], Tensor]

# Bytes of a stretch as wide as the intermediate layer. On CPUs, glibc returns blocks of 32 MiB and more to the system at once,
# and fetching them again costs page faults (bench/LOG.md, "feed-forward"). GPUs want products large enough to fill them.
_STRETCH_BYTES = {"cpu": 24 * 2**20}
_STRETCH_BYTES_ELSEWHERE = 256 * 2**20


def gelu_new(states: Tensor) -> Tensor:
    """GELU by its approximation with tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2)."""
    return gelu(states, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu, "relu": relu, "silu": silu, "gelu_new": gelu_new,
    # Other names of the same functions
    "swish": silu, "gelu_fast": gelu_new, "gelu_pytorch_tanh": gelu_new,
}  # fmt: skip
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
    if has_autocast(kind) and torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
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
    for start in range(0, max(1, states.shape[0]), tokens):
        yield slice(start, start + tokens)


def _forward(states: Tensor, parameters: Sequence[Tensor], activation: str, widened: list[Tensor] | None) -> Tensor:
    """The formula; what goes into the activation, stretch by stretch, is added to ``widened`` if that is given."""
    wide_weight, wide_bias, narrow_weight, narrow_bias = parameters
    flat = states.reshape(-1, states.shape[-1])
    outs = []
    for tokens in _stretches(flat, wide_weight.shape[0]):
        stretch = dense(flat[tokens], wide_weight, wide_bias)
        if widened is not None:
            widened.append(stretch)
        outs.append(dense(ACTIVATIONS[activation](stretch), narrow_weight, narrow_bias))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out.view(*states.shape[:-1], out.shape[-1])


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """The sum of a gradient over stretches, in the accumulation type; None where nobody needs it."""
    if part is None:
        return None
    return part.to(accumulation_dtype(part.dtype)) if total is None else total.add_(part)


class _FeedForward(torch.autograd.Function):
    """:func:`_forward` with a backward that computes the activation again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, *arguments: Any) -> Tensor:
        *parameters, activation = arguments
        wide_weight, _, narrow_weight, _ = parameters
        widened: list[Tensor] = []
        out = _forward(states, parameters, activation, widened)
        ctx.save_for_backward(states, wide_weight, narrow_weight, *widened)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        states, wide_weight, narrow_weight, *widened = ctx.saved_tensors
        needs_states, needs_wide, needs_wide_bias, needs_narrow, needs_narrow_bias, _ = ctx.needs_input_grad
        needs_widened = needs_states or needs_wide or needs_wide_bias
        flat, grad_flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (states, grad_out))
        grad_states = torch.empty_like(flat) if needs_states else None
        sums: list[Tensor | None] = [None, None, None, None]
        for tokens, stretch in zip(_stretches(flat, wide_weight.shape[0]), widened, strict=True):
            # Its size is all that a frozen weight wants of what it was multiplied with.
            activated = ACTIVATIONS[ctx.activation](stretch) if needs_narrow else stretch
            grad_widened, *of_narrow = dense_gradients(
                grad_flat[tokens], activated, narrow_weight, (needs_widened, needs_narrow, needs_narrow_bias)
            )
            del activated
            of_wide: Sequence[Tensor | None] = (None, None)
            if grad_widened is not None:
                grad_widened = _GRADIENTS[ctx.activation](grad_widened, stretch)
                of_states, *of_wide = dense_gradients(
                    grad_widened, flat[tokens], wide_weight, (needs_states, needs_wide, needs_wide_bias)
                )
                if grad_states is not None and of_states is not None:
                    grad_states[tokens] = of_states
            sums = [_plus(total, part) for total, part in zip(sums, (*of_wide, *of_narrow), strict=True)]
        return (
            None if grad_states is None else grad_states.view(states.shape),
            *(None if total is None else total.to(states.dtype) for total in sums),
            None,
        )
