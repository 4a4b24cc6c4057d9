"""The public functions: what they mean, which inputs they take, which backend computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from longformer_triton.kernels import backends, checks, devices, ops, probabilities, reference
from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import without_autocast


def available_backends(device: torch.device | str) -> dict[str, str | None]:
    """Which backends run on a device.

    Args:
        device: a torch.device or its name, here or not.

    Returns:
        {name: None if it runs there, else the reason why not}, best first.

    Raises:
        ValueError: no device has that name.
    """
    place = devices.as_device(device)
    absent = backends.why_absent(place)
    return {name: absent or backends.why_not(name, place) for name in backends.BACKENDS}


@overload
def sliding_window_attention(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | tuple[int, int] | None = ..., is_causal: bool = ...,
    dilation: int | Sequence[int] = ..., attention_mask: Tensor | None = ..., global_mask: Tensor | None = ...,
    pattern: AttentionPattern | None = ..., scale: float | None = ..., dropout_p: float = ...,
    dropout_seed: Tensor | None = ..., return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip


@overload
def sliding_window_attention(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | tuple[int, int] | None = ..., is_causal: bool = ...,
    dilation: int | Sequence[int] = ..., attention_mask: Tensor | None = ..., global_mask: Tensor | None = ...,
    pattern: AttentionPattern | None = ..., scale: float | None = ..., dropout_p: float = ...,
    dropout_seed: Tensor | None = ..., return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def sliding_window_attention(
    query: Tensor, key: Tensor, value: Tensor, *, window: int | tuple[int, int] | None = ..., is_causal: bool = ...,
    dilation: int | Sequence[int] = ..., attention_mask: Tensor | None = ..., global_mask: Tensor | None = ...,
    pattern: AttentionPattern | None = ..., scale: float | None = ..., dropout_p: float = ...,
    dropout_seed: Tensor | None = ..., return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | tuple[int, int] | None = None,
    dilation: int | Sequence[int] = 1,
    is_causal: bool = False,
    attention_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    pattern: AttentionPattern | None = None,
    scale: float | None = None,
    dropout_p: float = 0,  # a float here makes torch.compile(dynamic=True) begin twice
    dropout_seed: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention in which each query sees a window of keys and all global keys.

    Query i sees key j when j = i + m * dilation with -left <= m <= right, or when j is global; with ``is_causal`` only if
    j <= i as well; never when i or j is masked. Rows of global tokens are ordinary rows here (see
    :func:`longformer_attention`). Source: Beltagy, Peters, Cohan 2020, arXiv 2004.05150, section 3.

    Args:
        query: (batch, heads, seq_len, head_dim), float16, bfloat16, float32 or float64.
        key: (batch, key_heads, seq_len, head_dim); key_heads divides heads (grouped-query attention).
        value: the shape of ``key``.
        window: (left, right) in steps, both inclusive; an int w means (w, w). Hugging Face's attention_window is 2 w.
        dilation: distance between neighbouring keys of a window; an int, or one for each query head.
        is_causal: forbid keys after the query; global keys before it stay visible (attention sinks).
        attention_mask: (batch, seq_len), 1 = real token, 0 = padding; None: all real.
        global_mask: (batch, seq_len), 1 = a key that every query sees; None: none.
        pattern: an :class:`AttentionPattern` instead of window, dilation, is_causal and masks; build it once for many layers.
        scale: factor on the scores; None is head_dim ** -0.5.
        dropout_p: probability of dropping an attention probability, rounded to a multiple of 1/256.
        dropout_seed: int64 tensor of shape (); the mask is a function of it. None draws one from torch's generator.
        return_lse: also return the log-sum-exp of the scores, natural log, differentiable.
        backend: "triton", "torch", "reference", or None for the best that runs on the tensors' device. "triton" wants
            neighbouring channels (a last stride of 1) and a scale of 0 or 1e-20 to 1e8, whatever its sign.

    Returns:
        out, the shape and dtype of ``query``; with ``return_lse`` also lse (batch, heads, seq_len), float32 (float64 for
        float64 inputs). A masked query gives 0 and -inf, with zero gradients.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it, what was given and what is expected.
        NotImplementedError: the backend asked for cannot run, with the reason.
    """
    checks.attention_inputs(query, key, value)
    batch, heads, seq_len, head_dim = query.shape
    if pattern is None:
        pattern = _pattern_from_masks(query, window, dilation, is_causal, attention_mask, global_mask)
    elif is_causal or checks.dilation(dilation) != 1 or any(one is not None for one in (window, attention_mask, global_mask)):
        raise ValueError(
            "pattern: got one together with window, dilation, is_causal or masks, expected either: the pattern holds them all."
        )
    checks.pattern_fits(pattern, batch, heads, seq_len, query.device)
    factor = checks.scale(scale, head_dim)
    dropout = _dropout(dropout_p, dropout_seed, query.device)
    chosen = _choose(backend, (query, key, value), head_dim)
    if chosen == "reference":
        out, lse = reference.attention(query, key, value, pattern, factor, dropout)
    else:
        out, lse = ops.call(ops.attention, query, key, value, None, None, None, *_arguments(pattern, factor, dropout, chosen))
    return (out, lse) if return_lse else out


@overload
def longformer_attention(
    query: Tensor, key: Tensor, value: Tensor, query_global: Tensor, key_global: Tensor, value_global: Tensor,
    pattern: AttentionPattern, *, scale: float | None = ..., dropout_p: float = ..., dropout_seed: Tensor | None = ...,
    return_lse: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip


@overload
def longformer_attention(
    query: Tensor, key: Tensor, value: Tensor, query_global: Tensor, key_global: Tensor, value_global: Tensor,
    pattern: AttentionPattern, *, scale: float | None = ..., dropout_p: float = ..., dropout_seed: Tensor | None = ...,
    return_lse: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@overload
def longformer_attention(
    query: Tensor, key: Tensor, value: Tensor, query_global: Tensor, key_global: Tensor, value_global: Tensor,
    pattern: AttentionPattern, *, scale: float | None = ..., dropout_p: float = ..., dropout_seed: Tensor | None = ...,
    return_lse: bool, backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip


def longformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_global: Tensor,
    key_global: Tensor,
    value_global: Tensor,
    pattern: AttentionPattern,
    *,
    scale: float | None = None,
    dropout_p: float = 0,
    dropout_seed: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Longformer's attention: windows and global keys, and full attention with projections of its own in global rows.

    The rows of global tokens are softmax(scale * query_global key_global^T) value_global over all real keys; what the window
    would give there is discarded and its gradient is zero. Source: arXiv 2004.05150, section 3.1, "Linear Projections for
    Global Attention".

    Args:
        query, key, value: as in :func:`sliding_window_attention`. The rows of ``query`` at global tokens count for nothing, but
            have to be finite (docs/limits.md, "NaN").
        query_global: (batch, heads, G, head_dim), the rows at ``pattern.global_index``: ``pattern.gather_global(x)``. Rows at
            -1 are ignored, NaN included, and get zero gradient. Of the dtype of ``query``, as the following.
        key_global, value_global: (batch, key_heads, seq_len, head_dim); key_heads need not be those of ``key``.
        pattern: an :class:`AttentionPattern` that is not causal.
        scale, dropout_p, dropout_seed, return_lse, backend: as in :func:`sliding_window_attention`.

    Returns:
        out and, with ``return_lse``, lse, as in :func:`sliding_window_attention`; in global rows the lse of their own scores.

    Raises:
        TypeError, ValueError, NotImplementedError: as in :func:`sliding_window_attention`; ValueError for a causal pattern.
    """
    checks.attention_inputs(query, key, value)
    batch, heads, seq_len, head_dim = query.shape
    checks.pattern_fits(pattern, batch, heads, seq_len, query.device)
    checks.global_inputs(query, query_global, key_global, value_global, pattern)
    factor = checks.scale(scale, head_dim)
    dropout = _dropout(dropout_p, dropout_seed, query.device)
    inputs = (query, key, value, query_global, key_global, value_global)
    chosen = _choose(backend, inputs, head_dim)
    if chosen == "reference":
        out, lse = reference.longformer_attention(inputs, pattern, factor, dropout)
    else:
        out, lse = ops.call(ops.attention, *inputs, *_arguments(pattern, factor, dropout, chosen))
    return (out, lse) if return_lse else out


def absorbed_global_attention(
    hidden_states: Tensor,
    query_global: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor | None,
    pattern: AttentionPattern,
    *,
    scale: float | None = None,
    dropout_p: float = 0,
    dropout_seed: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The rows of global tokens without projecting every token to ``key_global`` and ``value_global``.

    The projections move to the other side: score = (W_k^T q) . x, where the key bias cancels in the softmax, and
    output = W_v (sum_j p_j x_j) + b_v sum_j p_j. Cheaper than :func:`longformer_attention`'s rows while
    G * (heads - 1) < hidden_size; the numbers are the same, dropout and all gradients included.

    Args:
        hidden_states: (batch, seq_len, hidden_size), float16, bfloat16, float32 or float64; all tensors have one dtype.
        query_global: (batch, heads, G, head_dim), as in :func:`longformer_attention`.
        key_weight, value_weight: (heads * head_dim, hidden_size), as in ``torch.nn.Linear``.
        value_bias: (heads * head_dim,) or None.
        pattern: an :class:`AttentionPattern` that is not causal.
        scale, dropout_p, dropout_seed, backend: as in :func:`sliding_window_attention`.

    Returns:
        (batch, heads, G, head_dim), the rows at ``pattern.global_index``; zero at -1.

    Raises:
        TypeError, ValueError, NotImplementedError: as in :func:`longformer_attention`.
    """
    checks.absorbed_inputs(hidden_states, query_global, key_weight, value_weight, value_bias, pattern)
    heads, head_dim = query_global.shape[1], query_global.shape[3]
    factor = checks.scale(scale, head_dim)
    dropout = _dropout(dropout_p, dropout_seed, query_global.device)
    weights = (key_weight, value_weight) if value_bias is None else (key_weight, value_weight, value_bias)
    chosen = _choose(backend, (query_global, hidden_states, *weights), None)
    # Rows at -1 may hold NaN, here and in the gradient of out, which must not reach the gradients of the weights.
    is_row = (pattern.global_index >= 0)[:, None, :, None]
    rows = torch.where(is_row, query_global, query_global.new_zeros(()))
    with without_autocast(query_global.device):
        key_weight, value_weight = (weight.view(heads, head_dim, -1) for weight in (key_weight, value_weight))
        if chosen == "reference":
            states = hidden_states
            if pattern.key_mask is not None:
                states = states.masked_fill(~pattern.key_mask[..., None], 0.0)
            key, value = (torch.einsum("bne,hde->bhnd", states, weight) for weight in (key_weight, value_weight))
            context, _, kept = reference.global_rows(rows, key, value, pattern, factor, dropout)
        else:
            absorbed, states = torch.einsum("bhgd,hde->bhge", rows, key_weight), hidden_states[:, None]
            arguments = _arguments(pattern, factor, dropout, chosen)
            context, _, kept = ops.call(ops.global_rows, absorbed, states, states, *arguments)
            context = torch.einsum("bhge,hde->bhgd", context, value_weight)
        if value_bias is not None:
            context = context + kept[..., None].to(context.dtype) * value_bias.view(heads, 1, head_dim)
    return torch.where(is_row, context, context.new_zeros(())).to(query_global.dtype)


def attention_probabilities(
    query: Tensor,
    key: Tensor,
    pattern: AttentionPattern,
    *,
    query_global: Tensor | None = None,
    key_global: Tensor | None = None,
    scale: float | None = None,
    heads: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention maps before dropout, in Hugging Face's compact layout for ``attentions`` and ``global_attentions``.

    Args:
        query, key: as in :func:`sliding_window_attention`.
        pattern: an :class:`AttentionPattern`.
        query_global, key_global: as in :func:`longformer_attention`; both or neither. Given, rows of global tokens are zero in
            the local map, since their probabilities stand in the global one; omitted, they are the ordinary rows that
            :func:`sliding_window_attention` computes.
        scale: as in :func:`sliding_window_attention`.
        heads: which query heads; None: all.
        rows: which query positions of the local map; None: all.

    Returns:
        local, (batch, len(heads), len(rows), G + left + 1 + right): first the global keys in the order of
        ``pattern.global_index``, then the window, the token itself at column G + left; zero where a window column falls on a
        global token (its probability stands in the first G columns), on padding or outside the text.
        global, (batch, len(heads), seq_len, G): how much each global token attends to each token; None without
        ``query_global`` or without any global token (where their number is not read, in a traced graph or with
        ``max_globals``, a map of as many columns as there is room for). Both in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as in :func:`longformer_attention`; a window so far beyond the text that its map would be
            gigabytes of zeros.
    """
    checks.attention_inputs(query, key, key)
    batch, num_heads, seq_len, head_dim = query.shape
    checks.pattern_fits(pattern, batch, num_heads, seq_len, query.device)
    if (query_global is None) != (key_global is None):
        raise ValueError("query_global: got one of query_global and key_global, expected both or neither.")
    chosen_heads = checks.selection("heads", heads, num_heads)
    chosen_rows = None if rows is None else checks.selection("rows", rows, seq_len)
    factor = checks.scale(scale, head_dim)
    with_rows = query_global is not None and key_global is not None
    if with_rows:
        checks.global_inputs(query, query_global, key_global, key_global, pattern)
    local = probabilities.local_map(query, key, pattern, factor, chosen_heads, chosen_rows, with_rows)
    # While tracing the number of global tokens may be unknown; the map then has that many columns, none being one of them.
    none_is_global = pattern.global_mask is None or (not checks.is_tracing() and pattern.global_index.shape[1] == 0)
    if query_global is None or key_global is None or none_is_global:
        return local, None
    return local, probabilities.global_map(query_global, key_global, pattern, factor, chosen_heads)


def _pattern_from_masks(
    query: Tensor,
    window: int | tuple[int, int] | None,
    dilation: int | Sequence[int],
    is_causal: bool,
    attention_mask: Tensor | None,
    global_mask: Tensor | None,
) -> AttentionPattern:
    if window is None:
        raise ValueError("window: got None without a pattern, expected one of them: window=(left, right) or pattern=...")
    for name, mask in (("attention_mask", attention_mask), ("global_mask", global_mask)):
        if mask is None:
            continue
        checks.mask(name, mask)
        checks.same_shape(name, mask, (query.shape[0], query.shape[2]), "query's (batch, seq_len)")
        if mask.device != query.device:
            raise ValueError(f"{name}: got a tensor on {mask.device}, expected {query.device} like query: move it.")
        if checks.should_validate(None, mask.device):
            checks.mask_values(name, mask, highest=1)
    return AttentionPattern.from_masks(
        None if attention_mask is None else attention_mask != 0,
        None if global_mask is None else global_mask != 0,
        shape=(query.shape[0], query.shape[2]),
        device=query.device,
        window=window,
        dilation=dilation,
        is_causal=is_causal,
    )


def _dropout(dropout_p: float, seed: Tensor | None, device: torch.device) -> Dropout | None:
    """The dropout of one call; its seed is drawn here, outside the operators, so that checkpointing replays it."""
    threshold = checks.dropout_threshold(dropout_p)
    if seed is not None:
        checks.dropout_seed(seed, device)
    if threshold == 0:
        return None
    if seed is None:
        seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    return Dropout(seed, threshold)


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None


def _is_in_functional_grad() -> bool:
    """Whether torch.func.grad, vjp or a function made of them is around the call."""
    functorch = torch._C._functorch
    return any(level.key() == functorch.TransformType.Grad for level in functorch.get_interpreter_stack() or ())


def _choose(requested: str | None, inputs: tuple[Tensor, ...], head_dim: int | None) -> str:
    """The backend that runs, by the operators' names; logs once when that is not a GPU kernel.

    Only here is it known whether gradients are wanted: inside an operator none are.
    """
    query = inputs[0]
    chosen = backends.choose(requested, query.device, query.dtype, head_dim)
    # An operator without a rule for forward mode would drop the tangents without a word.
    has_tangents = not torch.compiler.is_compiling() and any(map(_has_tangent, inputs))
    if has_tangents and chosen != "reference":
        raise NotImplementedError(
            f"backend: got {requested!r} and a tensor with a tangent (torch.func.jvp, torch.autograd.forward_ad), which no "
            "operator here carries on: differentiate backward, or pass backend='reference', which does."
        )
    if chosen != "reference" and not torch.compiler.is_compiling() and _is_in_functional_grad():
        raise NotImplementedError(
            f"backend: got {requested!r} inside torch.func.grad or vjp, which take no operator that computes its gradients "
            "itself: differentiate by torch.autograd.grad or backward(), or pass backend='reference'."
        )
    if chosen == "triton" and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return backends.BOTH_WAYS
    if requested is None and chosen == "torch" and not torch.compiler.is_compiling():
        backends.tell_torch_is_used(query.device, backends.why_not("triton", query.device, query.dtype, head_dim))
    return chosen


def _arguments(pattern: AttentionPattern, scale: float, dropout: Dropout | None, backend: str) -> tuple[object, ...]:
    """Everything after the tensors in the schemas of ``ops``."""
    seed, threshold = (None, 0) if dropout is None else (dropout.seed, dropout.threshold)
    return (*ops.pattern_arguments(pattern), scale, seed, threshold, backend)
