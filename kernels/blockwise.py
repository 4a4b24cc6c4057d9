"""The PyTorch backend: exact attention block by block, linear in memory, forward and backward, on any device.

A sample is cut into *strands*: sets of heads with one dilation d, and for each of them the d residue classes of the tokens.
Inside a strand the window is contiguous, so each block of queries meets one slice of keys; the global keys that lie outside
the window of a query join the same softmax as a second set of keys. Nothing is padded, and blocks are views; what is copied
is what has to change its type, masked rows, and the global keys. On a CPU, without dropout, PyTorch's fused attention walks
over the blocks (:mod:`fused_window`), and over those of windows that leave out nothing (:mod:`fused_dense`).

Padding at the ends only shortens the strands; padding inside becomes a bias. Counts, spans and masks are read on
the host, which is free on a CPU and synchronises many times a call elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longformer_triton.kernels.dropout import Dropout
from longformer_triton.kernels.layout import QKV, empty_rows
from longformer_triton.kernels.pattern import AttentionPattern
from longformer_triton.kernels.precision import accumulation_dtype
from longformer_triton.kernels.torch_impl import fused_dense, fused_window, global_rows
from longformer_triton.kernels.torch_impl.global_rows import rows_backward, rows_forward
from longformer_triton.kernels.torch_impl.samples import Accumulator, Sample, read_samples
from longformer_triton.kernels.torch_impl.strands import Blocks, strands
from longformer_triton.kernels.torch_impl.tiles import NO_PROBABILITY, Needs, backward_tile, forward_tile
from longformer_triton.kernels.workspace import Workspace

__all__ = ["attention_backward", "attention_forward", "rows_backward", "rows_forward"]


def _dead_rows(pattern: AttentionPattern, sample: Sample, with_rows: bool) -> Tensor | None:
    """(seq_len,) bool, True where the window's output is discarded: masked tokens, and global ones with rows of their own."""
    if with_rows and pattern.global_mask is not None:
        dead = pattern.global_mask[sample.number]
        return dead if sample.hole is None else dead | sample.hole
    return sample.hole


def attention_forward(
    local_qkv: QKV, global_qkv: QKV | None, pattern: AttentionPattern, scale: float, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of operator ``attention``; ``global_qkv`` are the projections of global tokens, where they have some."""
    query, key, value = local_qkv
    out = empty_rows(query)
    lse = query.new_empty(query.shape[:3], dtype=accumulation_dtype(query.dtype))
    dense = dropout is None and fused_dense.applies(pattern, query)
    if dense:
        fused_dense.forward(query, key, value, pattern, scale, out, lse)
    workspace = Workspace()
    for sample in read_samples(pattern):
        sample_out, sample_lse = out[sample.number], lse[sample.number]
        dead = _dead_rows(pattern, sample, global_qkv is not None)
        for strand in [] if dense else strands(pattern, sample, query.shape[1], key.shape[1]):
            blocks = Blocks(local_qkv, pattern, sample, strand, dead, dropout, workspace)
            strand_out, strand_lse = (
                sample_out[strand.query_heads, strand.tokens],
                sample_lse[strand.query_heads, strand.tokens],
            )
            if fused_window.forward_applies(query, dropout):
                fused_window.forward(blocks, scale, strand_out, strand_lse)
            else:
                _strand_forward(blocks, scale, strand_out, strand_lse)
            del blocks
        for unseen in _unseen(sample, pattern.seq_len):
            sample_out[:, unseen] = 0
            sample_lse[:, unseen] = -torch.inf
        for block in [] if global_qkv is None else global_rows.blocks(global_qkv, sample, dropout):
            rows_out, rows_lse, _ = forward_tile(block.query, [block.keys], scale, workspace)
            sample_out[:, block.position] = block.unfolded(rows_out).to(out.dtype)
            sample_lse[:, block.position] = block.unfolded(rows_lse)
    return out, lse


def _strand_forward(blocks: Blocks, scale: float, out: Tensor, lse: Tensor) -> None:
    """Fill one strand's out [heads, tokens, channels] and lse [heads, tokens]."""
    for rows, _, key_sets in blocks:
        out[:, rows], lse[:, rows], _ = forward_tile(blocks.rows_of(blocks.query, rows), key_sets, scale, blocks.workspace)


def attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    local_qkv: QKV,
    global_qkv: QKV | None,
    pattern: AttentionPattern,
    scale: float,
    dropout: Dropout | None,
    needs: list[bool],
    grads: list[Tensor],
) -> None:
    """Gradients of operator ``attention``, written into ``grads`` where needed: the window's three, then the rows' three."""
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    window_needs, row_needs = Needs(*needs[:3]), Needs(*needs[3:])
    dense = dropout is None and grad_lse is None and fused_dense.applies(pattern, local_qkv[0])
    if dense and any(window_needs):
        _dense_backward(grad_out, out, lse, local_qkv, global_qkv is not None, pattern, scale, window_needs, grads[:3])
    workspace = Workspace()
    for sample in read_samples(pattern):
        number = sample.number
        sample_grad_lse = None if grad_lse is None else grad_lse[number]
        if not dense and any(window_needs):
            sums = Accumulator(local_qkv, grads[:3], window_needs, number)
            dead = _dead_rows(pattern, sample, global_qkv is not None)
            for strand in strands(pattern, sample, local_qkv[0].shape[1], local_qkv[1].shape[1]):
                blocks = Blocks(local_qkv, pattern, sample, strand, dead, dropout, workspace)
                _strand_backward(blocks, grad_out[number], sample_grad_lse, out[number], lse[number], scale, sums)
                # Before the next are made: in half precision, these are a sample's states in float32.
                del blocks
            sums.store()
            del sums
        if global_qkv is not None and any(row_needs):
            sums = Accumulator(global_qkv, grads[3:], row_needs, number)
            for block in global_rows.blocks(global_qkv, sample, dropout):
                index = (slice(None), block.position)
                given = (grad_out[number][index], None if sample_grad_lse is None else sample_grad_lse[index], None)
                saved = (out[number][index], lse[number][index], None)
                global_rows.backward_block(block, given, saved, scale, sums, workspace)
            sums.store()
            del sums


def _dense_backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    local_qkv: QKV,
    with_rows: bool,
    pattern: AttentionPattern,
    scale: float,
    needs: Needs,
    grads: list[Tensor],
) -> None:
    """The window's gradients by the fused kernel, with the rows silenced whose window output was discarded."""
    query, key, value = local_qkv
    live = pattern.key_mask
    if with_rows and pattern.global_mask is not None:
        live = ~pattern.global_mask if live is None else live & ~pattern.global_mask
    if live is not None and not bool(live.all()):
        discarded = ~live[:, None, :]
        lse = lse.masked_fill(discarded, NO_PROBABILITY)
        grad_out, out, query = (states.masked_fill(discarded[..., None], 0) for states in (grad_out, out, query))
    fused_dense.backward(grad_out, out, lse, query, key, value, pattern, scale, needs, grads)


def _unseen(sample: Sample, seq_len: int) -> list[slice | Tensor]:
    """Index expressions of the masked rows of a sample."""
    unseen: list[slice | Tensor] = [slice(0, sample.first), slice(sample.last, seq_len)]
    return unseen if sample.hole is None else [*unseen, sample.hole]


def _strand_backward(
    blocks: Blocks,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    sums: Accumulator,
) -> None:
    """Add the gradients of one strand; the states are those of one sample, (heads, seq_len, ...)."""
    strand, positions = blocks.strand, blocks.sample.global_position
    heads, key_heads, tokens = strand.query_heads, strand.key_heads, strand.tokens
    grad_out, out, lse = (states[heads, tokens] for states in (grad_out, out, lse))
    if fused_window.backward_applies(blocks, grad_lse, sums.needs):
        fused_window.backward(blocks, grad_out, out, lse, scale, sums)
        return
    for rows, keys, key_sets in blocks:
        grad_rows = blocks.rows_of(grad_out, rows)
        delta = (grad_rows * blocks.rows_of(out, rows)).sum(-1)
        if grad_lse is not None:
            delta -= grad_lse[heads, tokens][:, rows]
            if blocks.dead is not None:
                delta.masked_fill_(blocks.dead[rows], 0)
        states = (blocks.rows_of(blocks.query, rows), grad_rows, blocks.lse_of(lse, rows), delta)
        grad_query, grad_sets = backward_tile(*states, key_sets, scale, sums.needs, blocks.workspace)
        sums.add(0, heads, strand.places(rows), grad_query)
        places: list[slice | Tensor] = [strand.places(keys), positions]
        for where, (grad_key, grad_value) in zip(places, grad_sets, strict=False):
            sums.add(1, key_heads, where, grad_key)
            sums.add(2, key_heads, where, grad_value)
