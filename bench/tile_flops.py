"""Operations of the tiles that the Triton kernels walk through: what they ask of a GPU's matrix units.

A tile of M queries and N keys takes 2 M N BLOCK_D operations a matrix product, however few of its pairs are visible; BLOCK_D is
head_dim, padded as the kernels pad it. Over time that is the tile-granular rate, and tells how busy the matrix units were; the
useful rate (``cases.useful_flops``) tells with how much that counts.

A tile has two products forward, for scores and out. Backward it has seven: dq has a kernel of its own with three (scores, dp,
dq), and dk with dv one with four (scores, dp, dk, dv). Global tokens come sixteen at a time: as columns for every tile of
queries, as rows against all keys.
"""

from __future__ import annotations

import collections

from longformer_triton.bench.cases import TRAINING, Inputs
from longformer_triton.bench.compiled import PRODUCTS, launches_over
from longformer_triton.kernels.layout import QKV, ceil_div
from longformer_triton.kernels.triton_impl.primitives import tile_phases_of
from longformer_triton.kernels.triton_impl.steps import Launch
from longformer_triton.kernels.triton_impl.tuning import Target


def tile_flops(inputs: Inputs, target: Target) -> int | None:
    """Operations of one call of a cell, or None where PyTorch may compute the forward, as it may for covering windows."""
    case, pattern = inputs.case, inputs.pattern()
    if pattern.covering is not None:
        return None
    # Without data: what is counted does not depend on it, and a cell may have left no memory for a second set of results.
    query, key, value = (inputs.heads_of(name).detach().to("meta") for name in ("query", "key", "value"))
    global_qkv: QKV | None = None
    if case.has_global_rows:
        query_global, key_global, value_global = (
            inputs.heads_of(f"{name}_global").detach() for name in ("query", "key", "value")
        )
        global_qkv = pattern.gather_global(query_global).to("meta"), key_global.to("meta"), value_global.to("meta")
    launches = launches_over(
        (query, key, value),
        global_qkv,
        pattern.to("meta"),
        target,
        dropout=case.dropout > 0,
        training=case.direction == TRAINING,
    )
    return sum(_launch_flops(launch, case.real_len) for launch in launches)


def _launch_flops(launch: Launch, real_len: int) -> int:
    name = launch.kernel.__name__
    if name not in PRODUCTS:
        return 0
    return 2 * launch.arguments["BLOCK_D"] * PRODUCTS[name] * _pairs(launch, real_len)


def _pairs(launch: Launch, real_len: int) -> int:
    """Pairs (query, key) of all tiles of a launch."""
    name, given, programs = launch.kernel.__name__, launch.arguments, launch.programs
    block_m, block_n = launch.config.block_m, launch.config.block_n
    # Global tokens, in whole tiles of them.
    columns = ceil_div(given["num_globals"], given["BLOCK_G"]) * given["BLOCK_G"] if "num_globals" in given else 0
    if name == "window_grad_key_value":
        align = 4 if given["DESCRIPTORS"] else 1
        return _window_pairs(launch, block_n, block_m, given["right"], given["left"], align, real_len)
    if name in ("window_forward", "window_grad_query"):
        align = 64 if given["DROPOUT"] else 1
        in_window = _window_pairs(launch, block_m, block_n, given["left"], given["right"], align, real_len)
        return in_window + programs * block_m * columns
    if name == "global_rows_grad_key_value":
        return programs * block_n * given["group"] * columns
    # The splits of the rows and columns of global tokens share the text among them.
    other = block_m if name == "global_columns_grad_key_value" else block_n
    return programs // given["splits"] * given["BLOCK_G"] * ceil_div(real_len, other) * other


def _window_pairs(launch: Launch, block: int, other_block: int, before: int, after: int, align: int, real_len: int) -> int:
    """Pairs of all tiles of ``block`` steps that a launch owns, with the tiles of ``other_block`` steps that they meet."""
    dilation = launch.arguments["dilation"]
    strand_tiles = ceil_div(ceil_div(launch.arguments["seq_len"], dilation), block)
    heads = launch.programs // (dilation * strand_tiles)
    lengths = collections.Counter(ceil_div(max(real_len - residue, 0), dilation) for residue in range(dilation))
    tiles = 0
    for length, strands in lengths.items():
        for start in range(0, strand_tiles * block, block):
            _, bounds = tile_phases_of(start, block, other_block, before, after, 0, length, False, align)
            tiles += strands * bounds[-1]
    return heads * tiles * block * other_block
