"""The torch.library contracts of attention: schema, fake kernel and autograd; the backends are reached from here, lazily.

Two operators, each with its backward as an operator of its own, so that ``torch.compile``, ``torch.export`` and activation
checkpointing see opaque nodes with known shapes:

* ``longformer_triton::attention``: windows and global keys, and with the three global projections the rows of global queries;
* ``longformer_triton::global_rows``: full attention of a few rows alone, for absorbed global projections.

Saved for backward are the inputs and results, with the pattern's tensors: nothing quadratic, and nothing per window.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer_triton.kernels import checks
from longformer_triton.kernels.backends import AUTOMATIC, BOTH_WAYS, tell_torch_is_used
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV, empty_rows
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype

# Where each backend has attention_forward, attention_backward and rows_forward, rows_backward.
_BACKEND_MODULES = {
    "torch": "longformer_triton.kernels.blockwise",
    "triton": "longformer_triton.kernels.triton_impl.launch",
}

# What every operator takes after its inputs, in the order of `_OperatorOptions`.
_PATTERN = (
    "Tensor? key_mask, Tensor? key_flags, Tensor? key_span, Tensor? global_mask, Tensor global_index, Tensor global_count, "
    "SymInt left, SymInt right, SymInt[] dilation, bool is_causal"
)
_OPTIONS = "float scale, Tensor? dropout_seed, int dropout_threshold, str backend"
_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? query_global, Tensor? key_global, Tensor? value_global"
_ROWS = "Tensor query, Tensor key, Tensor value"
_NUM_INPUTS, _NUM_ROWS = 6, 3


class _OperatorOptions(NamedTuple):
    """A pattern spelt out, and the options."""

    key_mask: Tensor | None
    key_flags: Tensor | None
    key_span: Tensor | None
    global_mask: Tensor | None
    global_index: Tensor
    global_count: Tensor
    left: int
    right: int
    dilation: Sequence[int]
    is_causal: bool
    scale: float
    dropout_seed: Tensor | None
    dropout_threshold: int
    backend: str

    def pattern(self, seq_len: int) -> AttentionPattern:
        """The pattern again."""
        return AttentionPattern(
            window=(self.left, self.right),
            dilation=self.dilation[0] if len(self.dilation) == 1 else tuple(self.dilation),
            is_causal=self.is_causal,
            batch=self.global_index.shape[0],
            seq_len=seq_len,
            key_mask=self.key_mask,
            key_flags=self.key_flags,
            key_span=self.key_span,
            global_mask=self.global_mask,
            global_index=self.global_index,
            global_count=self.global_count,
        )


def backend_module(name: str, local_qkv: QKV | None, pattern: AttentionPattern, *, dropout: bool) -> Any:
    """The module of a backend: forward and backward of both operators, as plain functions.

    Args:
        name: of a backend, AUTOMATIC or BOTH_WAYS.
        local_qkv: query, key and value of ``attention``; None for ``global_rows``, whose products need no configuration.
        pattern, dropout: what the kernels would have to serve.

    Raises:
        NotImplementedError: the kernels have no configuration, and were asked for BOTH_WAYS, or a CUDA graph is being captured.
    """
    if name in (AUTOMATIC, BOTH_WAYS):
        reason = None
        if local_qkv is not None:
            problem = importlib.import_module("longformer_triton.kernels.triton_impl.problem")
            reason = problem.why_not_served(local_qkv, pattern, dropout=dropout)
        if reason is None:
            name = "triton"
        elif name == BOTH_WAYS:
            tuning = importlib.import_module("longformer_triton.kernels.triton_impl.tuning")
            raise tuning.NotServedError(reason)
        elif pattern.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise NotImplementedError(
                f"backend: {reason}, so the PyTorch backend would compute this. It reads values back, which a CUDA graph "
                "cannot hold: leave the call out of what is captured."
            )
        else:
            name = "torch"
            tell_torch_is_used(pattern.device, reason)
    return importlib.import_module(_BACKEND_MODULES[name])


def pattern_arguments(pattern: AttentionPattern) -> tuple[Any, ...]:
    """A pattern spelt out in the order of the operators' schemas."""
    return (
        pattern.key_mask,
        pattern.key_flags,
        pattern.key_span,
        pattern.global_mask,
        pattern.global_index,
        pattern.global_count,
        *pattern.window,
        list(pattern.dilations),
        pattern.is_causal,
    )


def _unpack(
    local_qkv: QKV | None, seq_len: int, arguments: tuple[Any, ...]
) -> tuple[Any, AttentionPattern, float, Dropout | None]:
    """(backend module, pattern, scale, dropout) from what follows an operator's inputs; ``local_qkv`` as in backend_module."""
    options = _OperatorOptions(*arguments)
    pattern, seed = options.pattern(seq_len), options.dropout_seed
    module = backend_module(options.backend, local_qkv, pattern, dropout=seed is not None)
    return module, pattern, options.scale, None if seed is None else Dropout(seed, options.dropout_threshold)


def _rows_of(inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The three global projections of ``attention``, or None where it has none."""
    return None if inputs[3] is None else inputs[3:]


def _empty_gradients(inputs: tuple[Tensor | None, ...], needs: list[bool]) -> list[Tensor]:
    """Uninitialised gradients; an empty tensor stands for one that is not needed, since operators cannot return None."""
    like = next(tensor for tensor in inputs if tensor is not None)
    return [
        empty_rows(tensor) if needed and tensor is not None else like.new_empty(0)
        for tensor, needed in zip(inputs, needs, strict=True)
    ]


@torch.library.custom_op(
    "longformer_triton::attention", mutates_args=(), schema=f"({_INPUTS}, {_PATTERN}, {_OPTIONS}) -> (Tensor, Tensor)"
)
def attention(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(out, lse) of windowed attention with global keys, and of global rows where their projections are given."""
    inputs, rest = arguments[:_NUM_INPUTS], arguments[_NUM_INPUTS:]
    module, pattern, scale, dropout = _unpack(inputs[:3], inputs[0].shape[2], rest)
    return module.attention_forward(inputs[:3], _rows_of(inputs), pattern, scale, dropout)


@attention.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    query = arguments[0]
    return empty_rows(query), query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))


@torch.library.custom_op(
    "longformer_triton::attention_backward",
    mutates_args=(),
    schema=(
        "(Tensor? grad_out, Tensor? grad_lse, Tensor out, Tensor lse, bool[] needs, "
        f"{_INPUTS}, {_PATTERN}, {_OPTIONS}) -> Tensor[]"
    ),
)
def attention_backward(
    grad_out: Tensor | None, grad_lse: Tensor | None, out: Tensor, lse: Tensor, needs: list[bool], *arguments: Any
) -> list[Tensor]:
    """Gradients of the six inputs of ``attention``; empty tensors where not needed."""
    inputs, rest = arguments[:_NUM_INPUTS], arguments[_NUM_INPUTS:]
    module, pattern, scale, dropout = _unpack(inputs[:3], inputs[0].shape[2], rest)
    grads = _empty_gradients(inputs, needs)
    module.attention_backward(grad_out, grad_lse, out, lse, inputs[:3], _rows_of(inputs), pattern, scale, dropout, needs, grads)
    return grads


@attention_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    needs, inputs = arguments[4], arguments[5 : 5 + _NUM_INPUTS]
    return _empty_gradients(inputs, needs)


@torch.library.custom_op(
    "longformer_triton::global_rows", mutates_args=(), schema=f"({_ROWS}, {_PATTERN}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
def global_rows(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Full attention of the rows at ``global_index``.

    Takes query (batch, heads, G, channels) and key, value (batch, key_heads, seq_len, channels), any number of channels;
    returns context (batch, heads, G, channels), lse and kept (batch, heads, G), the sum of the probabilities after dropout.
    """
    inputs, rest = arguments[:_NUM_ROWS], arguments[_NUM_ROWS:]
    module, pattern, scale, dropout = _unpack(None, inputs[1].shape[2], rest)
    return module.rows_forward(inputs, pattern, scale, dropout)


@global_rows.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query = arguments[0]
    small = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    return torch.empty_like(query), small, torch.empty_like(small)


@torch.library.custom_op(
    "longformer_triton::global_rows_backward",
    mutates_args=(),
    schema=(
        "(Tensor? grad_context, Tensor? grad_lse, Tensor? grad_kept, Tensor context, Tensor lse, Tensor kept, bool[] needs, "
        f"{_ROWS}, {_PATTERN}, {_OPTIONS}) -> Tensor[]"
    ),
)
def global_rows_backward(
    grad_context: Tensor | None,
    grad_lse: Tensor | None,
    grad_kept: Tensor | None,
    context: Tensor,
    lse: Tensor,
    kept: Tensor,
    needs: list[bool],
    *arguments: Any,
) -> list[Tensor]:
    """Gradients of the three inputs of ``global_rows``; empty tensors where not needed."""
    inputs, rest = arguments[:_NUM_ROWS], arguments[_NUM_ROWS:]
    module, pattern, scale, dropout = _unpack(None, inputs[1].shape[2], rest)
    grads = _empty_gradients(inputs, needs)
    module.rows_backward(
        (grad_context, grad_lse, grad_kept), (context, lse, kept), inputs, pattern, scale, dropout, needs, grads
    )
    return grads


@global_rows_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    needs, inputs = arguments[6], arguments[7 : 7 + _NUM_ROWS]
    return _empty_gradients(inputs, needs)


class _OnlyOnce(torch.autograd.Function):
    """Gradients as they are, tied to what they depend on: differentiated again, they say that this cannot be done."""

    @staticmethod
    def forward(_: Any, num_grads: int, *grads_and_inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad.view_as(grad) for grad in grads_and_inputs[:num_grads])

    @staticmethod
    def backward(*_: Any) -> Any:
        raise NotImplementedError(
            "backend: its gradients were differentiated again, which the operators of 'triton' and 'torch' cannot: pass "
            "backend='reference', which can."
        )


def _make_autograd(num_inputs: int, backward_op: Any) -> tuple[Any, Any]:
    """(setup_context, backward) for an operator whose first ``num_inputs`` arguments are differentiable."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        # None for an output that nobody used (lse, mostly) lets the backward skip it instead of adding zeros.
        ctx.set_materialize_grads(False)
        ctx.tensor_slots = [slot for slot, value in enumerate(inputs) if isinstance(value, Tensor)]
        ctx.plain = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*output, *(inputs[slot] for slot in ctx.tensor_slots))
        ctx.num_outputs = len(output)

    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:num_inputs])
        if all(grad is None for grad in grad_outputs) or not any(needs):
            return (None,) * len(ctx.plain)
        saved = ctx.saved_tensors
        arguments = list(ctx.plain)
        for slot, tensor in zip(ctx.tensor_slots, saved[ctx.num_outputs :], strict=True):
            arguments[slot] = tensor
        with torch.no_grad():
            grads = backward_op(*grad_outputs, *saved[: ctx.num_outputs], needs, *arguments)
        if torch.is_grad_enabled():  # create_graph=True
            grads = _OnlyOnce.apply(num_inputs, *grads, *(tensor for tensor in saved if tensor.requires_grad))
        given = [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]
        return (*given, *(None,) * (len(ctx.plain) - num_inputs))

    return setup_context, backward


def _function_of(operator: Any, setup_context: Any, backward: Any) -> type[torch.autograd.Function]:
    """An operator and its gradients without a dispatcher between them."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            output = operator(*arguments)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
            return backward(ctx, *grad_outputs)

    return Function


# By operator, what calls it in eager mode where gradients are wanted.
_functions: dict[Any, type[torch.autograd.Function]] = {}

for _operator, _count, _backward_operator in (
    (attention, _NUM_INPUTS, attention_backward),
    (global_rows, _NUM_ROWS, global_rows_backward),
):
    _setup, _backward = _make_autograd(_count, _backward_operator)
    _operator.register_autograd(_backward, setup_context=_setup)
    _functions[_operator] = _function_of(_operator, _setup, _backward)


def call(operator: Any, *arguments: Any) -> tuple[Tensor, ...]:
    """``attention`` or ``global_rows``, differentiable.

    What ``register_autograd`` makes of an operator looks up the default of each of its twenty arguments, in a list of as many
    that is made anew each time: 130 us of a call, as long as a few kernels take. Where a graph is made, or inside torch.vmap,
    an operator is what is understood.
    """
    is_eager = not checks.is_tracing() and not checks.is_transformed()
    return (_functions[operator].apply if is_eager and torch.is_grad_enabled() else operator)(*arguments)
