"""What the operators of attention hold while they run, term by term, as in :mod:`longformer_triton.model.memory_terms`."""

from __future__ import annotations

import math

import torch

from longformer_triton.model.memory_terms import Layer, Terms

# The PyTorch backend works on this many queries at a time, and holds several numbers for each of their scores: the score, what
# stands beside it for a moment, and with dropout its random words (torch_impl/strands.py, tiles.py, dropout.py). How many was
# measured, and depends little on sizes.
_BLOCK_ROWS = 96
_BLOCK_SCORES = {"forward": 2.5, "backward": 4.0}
_BLOCK_DROPOUT = {"forward": 2.75, "backward": 3.5}
# Dropout's factors of global keys are made for so many scores at once, of 64-bit random words.
_FACTORS, _FACTOR_BYTES = 1 << 20, 64
# What PyTorch's fused attention does without dropout: numbers at a time, queries a chunk, and queries at a time backward and
# where the text begins and ends (torch_impl/fused_window.py).
_FUSED_NUMBERS, _FUSED_CHUNK, _FUSED_ROWS = 1 << 20, 32, 192
# The queries and keys whose scores each thread of it holds at once, backward.
_FUSED_SCORES = 64, 512
# Numbers for each score of the rows of global tokens, in both backends, and the most scores that they hold: of a sample, or of
# the batch (torch_impl/global_rows.py, triton_impl/absorbed_rows.py).
_ROW_SCORES = {"cpu": {"forward": 1, "backward": 2}, "cuda": {"forward": 3, "backward": 6}}
_ROW_DROPOUT = {"forward": 1.5, "backward": 2}
_MOST_ROW_SCORES = {"cpu": 1 << 21, "cuda": 1 << 26}


def _window_blocks(layer: Layer, direction: str) -> int:
    """Bytes that the PyTorch backend needs for one block of queries and the keys that they see."""
    keys, rows = min(layer.seq_len, layer.window + _BLOCK_ROWS), min(layer.seq_len, _BLOCK_ROWS)
    numbers = _BLOCK_SCORES[direction] * rows * keys
    if direction == "backward":
        numbers += 2 * keys * layer.head_dim  # gradients of keys and values, before they are added up
    block = int(layer.heads * numbers) * layer.place.sum_item
    if not layer.attention_dropout:
        return block
    of_globals = layer.heads * layer.num_globals
    factors = of_globals * min(layer.seq_len, max(rows, _FACTORS // max(1, of_globals)))
    dropout = int(layer.heads * rows * keys * _BLOCK_DROPOUT[direction]) * layer.place.sum_item
    return block + max(dropout, _FACTOR_BYTES * factors)


def _row_scores(layer: Layer, direction: str) -> int:
    """Bytes of the scores of global rows."""
    device = layer.place.device
    a_row = layer.heads * layer.seq_len * (1 if device == "cpu" else layer.batch)
    scores = min(a_row * layer.num_globals, max(a_row, _MOST_ROW_SCORES[device]))
    numbers = _ROW_SCORES[device][direction] + layer.attention_dropout * _ROW_DROPOUT[direction]
    return int(scores * numbers) * layer.place.sum_item


def _results(layer: Layer, direction: str) -> Terms:
    """What the operator of attention allocates for its results, those of the forward pass being counted as saved."""
    if direction == "forward":
        return Terms()
    terms = Terms({"gradients of query, key, value": layer.states(3 * layer.width)})
    if layer.num_globals and not layer.is_absorbed:
        terms["gradients of global projections"] = layer.states(2 * layer.width)
    return terms


def _window_workspace(layer: Layer, direction: str) -> Terms:
    """While the windowed part of the operator of attention runs."""
    terms = _results(layer, direction)
    if layer.place.device == "cuda":
        if direction == "backward":
            # delta and lse_log2 of every row (kernels/triton_impl/launch.py)
            terms["sums of attention"] = layer.states(2 * layer.heads, layer.place.sum_item)
    elif layer.is_dense and direction == "forward":
        # PyTorch's fused operator allocates its own results, which are then copied, and perhaps queries times the scale.
        terms["results of fused attention"] = layer.states((1 + _scales_queries(layer, direction)) * layer.width)
    elif layer.is_dense:
        # In float32 at least; where that is wider, with query, key, value, the output and its gradient
        states = (8 if layer.place.is_widened else 3) + _scales_queries(layer, direction)
        terms["results of fused attention"] = layer.states(states * layer.width, layer.place.sum_item)
    elif direction == "forward" and not layer.attention_dropout:
        terms["calls of fused attention"] = _fused_forward(layer)
    else:
        if layer.attention_dropout or layer.heads < torch.get_num_threads():
            terms["blocks of attention"] = _window_blocks(layer, direction)
        else:
            terms["calls of fused attention"] = _fused_backward(layer)
        if layer.place.is_widened:
            # Keys and values, and backward the sums of three gradients
            terms["a sample in float32"] = layer.sample((2 if direction == "forward" else 5) * layer.width)
    return terms


def _scales_queries(layer: Layer, direction: str) -> bool:
    """Whether PyTorch's fused attention gets a copy of the queries, times the scale (kernels/torch_impl/fused.py)."""
    return math.frexp(layer.head_dim**-0.5)[0] != 0.5 and (direction == "backward" or not layer.place.is_widened)


def _fused_forward(layer: Layer) -> int:
    """Bytes that PyTorch's fused attention needs for a part of a window, or the global keys that join it afterwards."""
    tokens, item, sum_item, width = layer.seq_len, layer.place.item, layer.place.sum_item, layer.width
    side, stretch = min(layer.window // 2, tokens), max(1, _FUSED_NUMBERS // width)
    rows = min(tokens, _FUSED_ROWS)
    keys = min(tokens, 2 * side + (_FUSED_CHUNK if tokens > 2 * side else rows))
    mask, of_end = rows * (2 * side + rows) * sum_item, rows * (width * item + keys * sum_item)
    call = max(of_end, min(abs(tokens - 2 * side), stretch) * width * item)
    call *= 2 if _scales_queries(layer, "forward") else 1
    if layer.num_globals and layer.place.is_widened:
        # Queries and outputs in float32, and sums
        call = max(call, min(tokens, stretch) * (2 * width + 4 * layer.heads) * sum_item)
    return mask + call


def _fused_backward(layer: Layer) -> int:
    """Bytes that PyTorch's fused attention needs for the gradients of some queries, and of their keys and values."""
    tokens, width = layer.seq_len, layer.width
    side, rows = min(layer.window // 2, tokens), min(tokens, _FUSED_ROWS)
    keys, middle = min(tokens, 2 * side + rows), 2 * side + 1 - tokens
    # Gradients and scaled queries, and in half precision three states in float32
    states = 1 + _scales_queries(layer, "backward") + 3 * layer.place.is_widened
    # The mask of a call is a copy out of that of all.
    call = states * rows * width + 2 * keys * width + rows * keys
    if middle >= _FUSED_ROWS:
        call = max(call, states * min(middle, _FUSED_NUMBERS // width) * width + 2 * tokens * width)
    # Of each thread, probabilities and their gradients
    scores = torch.get_num_threads() * 2 * _FUSED_SCORES[0] * min(keys, _FUSED_SCORES[1])
    return (rows * (2 * side + rows) + call + scores) * layer.place.sum_item


def _projected_rows_workspace(layer: Layer, direction: str) -> Terms:
    """While the same operator runs the rows of global tokens, for which every token was projected."""
    terms = _results(layer, direction)
    if layer.place.device == "cuda":
        # Partial sums are small: their number is bounded by the programs of a launch.
        return terms
    terms["scores of global rows"] = _row_scores(layer, direction)
    if direction == "backward":
        terms["sums of global rows"] = layer.sample(2 * layer.width)
    if layer.place.is_widened:
        # Keys and values of both kinds, and backward the sums of two gradients
        terms["a sample in float32"] = layer.sample((4 if direction == "forward" else 6) * layer.width)
    return terms


def _absorbed_rows_workspace(layer: Layer, direction: str) -> Terms:
    """While the operator of absorbed global rows runs, whose keys and values are the hidden states."""
    terms = Terms({"scores of global rows": _row_scores(layer, direction)})
    # The PyTorch backend takes samples one by one; the other takes all at once, and adds up products made apart.
    a_state = layer.sample(layer.hidden)
    if layer.place.device == "cuda":
        a_state = layer.states(layer.hidden, layer.place.sum_item)
    if layer.place.is_widened:
        terms["states in float32"] = 2 * a_state
    if direction == "backward":
        terms["gradients of states for global rows"] = layer.states(2 * layer.hidden)
        terms["sums of global rows"] = 2 * a_state
        if layer.place.device == "cuda":
            terms["sums of global rows"] += a_state
        elif layer.place.is_widened:
            terms["sums of global rows"] += 2 * a_state
    return terms


def attention_workspaces(layer: Layer, direction: str) -> dict[str, Terms]:
    """The parts of attention that run one after the other, and the workspace of each."""
    parts = {"attention": _window_workspace(layer, direction)}
    if layer.num_globals:
        rows = _absorbed_rows_workspace if layer.is_absorbed else _projected_rows_workspace
        parts["global rows"] = rows(layer, direction)
    return parts
