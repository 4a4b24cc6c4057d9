"""What a layer, the embeddings and a head hold in memory, term by term: the table behind :mod:`longformer_triton.model.memory`.

Every term has a name and a number of bytes, and follows from reading the code it speaks of; bytes are written as

    tokens * numbers a token * bytes a number

where tokens = batch * seq_len. *Saved* terms live from the forward pass to the backward pass, *workspace* terms for a moment.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from longformer_triton.model.feed_forward import stretch_tokens
from longformer_triton.model.memory_place import Place

if TYPE_CHECKING:
    from longformer_triton.model.config import LongformerConfig

Terms = Counter[str]

ARCHITECTURES = (
    "LongformerModel",
    "LongformerForMaskedLM",
    "LongformerForSequenceClassification",
    "LongformerForMultipleChoice",
    "LongformerForTokenClassification",
    "LongformerForQuestionAnswering",
)
# The PyTorch backend works on this many queries at a time, and holds several numbers for each of their scores: the score, what
# stands beside it for a moment, and with dropout its random words (torch_impl/strands.py, tiles.py, dropout.py). How many was
# measured, and depends little on sizes.
_BLOCK_ROWS = 96
_BLOCK_SCORES = {"forward": 2.5, "backward": 4.0}
_BLOCK_DROPOUT = {"forward": 2.75, "backward": 3.5}
# Dropout's factors of global keys are made for so many scores at once, of 64-bit random words.
_FACTORS, _FACTOR_BYTES = 1 << 20, 64
# What PyTorch's fused attention does without dropout: numbers at a time, queries a chunk, and queries at a time where the text
# begins and ends (torch_impl/fused_window.py).
_FUSED_NUMBERS, _FUSED_CHUNK, _FUSED_END = 1 << 20, 32, 192
# Numbers for each score of the rows of global tokens, in both backends, and the most scores that they hold: of a sample, or of
# the batch (torch_impl/global_rows.py, triton_impl/absorbed_rows.py).
_ROW_SCORES = {"cpu": {"forward": 1, "backward": 2}, "cuda": {"forward": 3, "backward": 6}}
_ROW_DROPOUT = {"forward": 1.5, "backward": 2}
_MOST_ROW_SCORES = {"cpu": 1 << 21, "cuda": 1 << 26}
# Bytes of an entry of dropout's mask (model/residual.py; PyTorch's own on GPUs).
_MASK_ITEM = 1


@dataclasses.dataclass(frozen=True)
class Layer:
    """The sizes of one layer and of its input."""

    place: Place
    batch: int
    seq_len: int
    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    window: int  # both sides together
    num_globals: int
    is_absorbed: bool  # whether global rows go without projecting every token
    hidden_dropout: bool
    attention_dropout: bool
    is_fused: bool  # whether the feed-forward part computes its activation again in backward
    stretch: int  # tokens that it widens at a time

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    def states(self, channels: int, item: int | None = None) -> int:
        """Bytes of (batch, seq_len, channels)."""
        return self.batch * self.seq_len * channels * (self.place.item if item is None else item)

    def sample(self, channels: int) -> int:
        """Bytes of (seq_len, channels) in the type of sums: the PyTorch backend takes samples one by one."""
        return self.seq_len * channels * self.place.sum_item

    @property
    def is_dense(self) -> bool:
        """Whether PyTorch's fused attention runs: every token sees every other (kernels/torch_impl/fused_dense.py)."""
        return self.place.device == "cpu" and not self.attention_dropout and self.window // 2 >= self.seq_len - 1


def layers_of(
    config: LongformerConfig, batch: int, seq_len: int, place: Place, *, training: bool, num_globals: int
) -> list[Layer]:
    """The layers of a model. They differ in their windows, and in their heads where some were pruned."""
    tokens, setting = batch * seq_len, config.absorb_global_projections
    is_fused = isinstance(config.hidden_act, str)
    stretch = stretch_tokens(place.device, config.intermediate_size * place.item)
    return [
        Layer(
            place=place,
            batch=batch,
            seq_len=seq_len,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            window=window,
            num_globals=num_globals,
            is_absorbed=num_globals * (heads - 1) < config.hidden_size if setting == "auto" else bool(setting),
            hidden_dropout=training and config.hidden_dropout_prob > 0,
            attention_dropout=training and config.attention_probs_dropout_prob > 0,
            is_fused=is_fused,
            stretch=min(tokens, stretch) if is_fused else tokens,
        )
        for heads, window in zip(_heads(config), config.windows(), strict=True)
    ]


def _heads(config: LongformerConfig) -> list[int]:
    """The heads of each layer."""
    pruned = config.pruned_heads
    return [config.num_attention_heads - len(pruned.get(number, ())) for number in range(config.num_hidden_layers)]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many numbers each part of a model has; tied ones count in the embeddings."""

    embeddings: int
    attention: list[int]  # of each layer
    feed_forward: int  # of any layer
    head: int

    @property
    def total(self) -> int:
        """Of all parts."""
        return self.embeddings + sum(self.attention) + len(self.attention) * self.feed_forward + self.head


def parameters(config: LongformerConfig, positions: int, architecture: str) -> Parameters:
    """The parameters of a model whose position table has ``positions`` rows."""
    hidden, intermediate, labels = config.hidden_size, config.intermediate_size, config.num_labels
    norm, square = 2 * hidden, hidden * hidden + hidden
    widths = [heads * (hidden // config.num_attention_heads) for heads in _heads(config)]
    decoder = config.vocab_size + (0 if config.tie_word_embeddings else config.vocab_size * hidden)
    classifier = hidden * labels + labels
    head = {
        "LongformerModel": square,
        "LongformerForMaskedLM": square + norm + decoder,
        "LongformerForSequenceClassification": square + classifier,
        "LongformerForMultipleChoice": square + hidden + 1,
        "LongformerForTokenClassification": classifier,
        "LongformerForQuestionAnswering": classifier,
    }
    return Parameters(
        embeddings=(config.vocab_size + positions + config.type_vocab_size) * hidden + norm,
        attention=[6 * (hidden * width + width) + width * hidden + hidden + norm for width in widths],
        feed_forward=2 * hidden * intermediate + intermediate + hidden + norm,
        head=head[architecture],
    )


def saved_by_embeddings(layer: Layer) -> Terms:
    """Kept by the embeddings in front of a layer (model/embeddings.py)."""
    return Terms(
        {
            "inputs of layer norms": layer.states(layer.hidden),
            "masks of dropout": layer.hidden_dropout * layer.states(layer.hidden, _MASK_ITEM),
        }
    )


def layer_input(layer: Layer) -> Terms:
    """All that gradient checkpointing keeps of a layer."""
    return Terms({"inputs of layers": layer.states(layer.hidden)})


def saved_by_attention(layer: Layer) -> Terms:
    """Kept by the attention operators, besides the layer's input (kernels/ops.py)."""
    return Terms(
        {
            "query, key, value": layer.states(3 * layer.width),
            "attention": layer.states(layer.width) + layer.states(layer.heads, layer.place.sum_item),
            **_saved_by_global_rows(layer),
        }
    )


def _saved_by_global_rows(layer: Layer) -> Terms:
    rows = layer.batch * layer.num_globals
    if rows == 0:
        return Terms()
    if not layer.is_absorbed:
        return Terms({"global projections": layer.states(2 * layer.width) + rows * layer.width * layer.place.item})
    # The query and its rows of hidden states, and all heads' absorbed queries and contexts, which are as wide as the model
    numbers = rows * (layer.width + layer.hidden + 2 * layer.heads * layer.hidden)
    return Terms({"global rows": numbers * layer.place.item})


def saved_after_attention(layer: Layer) -> Terms:
    """Kept by the projection after attention, its residual and its norm (model/attention.py)."""
    # Absorbed rows are put into a copy, since the operator keeps what it gave.
    is_copied = layer.num_globals > 0 and layer.is_absorbed
    return Terms(
        {
            "attention with global rows": is_copied * layer.states(layer.width),
            "masks of dropout": layer.hidden_dropout * layer.states(layer.hidden, _MASK_ITEM),
            "inputs of layer norms": layer.states(layer.hidden),
        }
    )


def saved_by_feed_forward(layer: Layer) -> Terms:
    """Kept by the feed-forward part: its input, and what goes into the activation (model/feed_forward.py)."""
    return Terms(
        {
            "inputs of feed-forward": layer.states(layer.hidden),
            "inputs of activations": layer.states(layer.intermediate),
            "outputs of activations": 0 if layer.is_fused else layer.states(layer.intermediate),
        }
    )


def saved_after_feed_forward(layer: Layer) -> Terms:
    """Kept by the residual and the norm after the feed-forward part."""
    return Terms(
        {
            "masks of dropout": layer.hidden_dropout * layer.states(layer.hidden, _MASK_ITEM),
            "inputs of layer norms": layer.states(layer.hidden),
        }
    )


def saved_by_layer(layer: Layer) -> Terms:
    """All that one layer keeps for backward, its input included."""
    return (
        layer_input(layer)
        + saved_by_attention(layer)
        + saved_after_attention(layer)
        + saved_by_feed_forward(layer)
        + saved_after_feed_forward(layer)
    )


def feed_forward_workspace(layer: Layer, direction: str, *, is_kept: bool) -> Terms:
    """While a feed-forward part runs; ``is_kept`` says whether what goes into the activation is counted as saved."""
    a_stretch, weight = layer.stretch * layer.intermediate * layer.place.item, layer.intermediate * layer.hidden
    packed = layer.place.packed(layer.stretch, weight)
    if direction == "forward":
        terms = Terms({"output of feed-forward": layer.states(layer.hidden), "weights in another order": packed})
        terms["stretches of feed-forward"] = (1 if is_kept else 2) * a_stretch
        # While the first product is made, neither what the activation gives nor the second product is there yet.
        later = a_stretch + layer.stretch * layer.hidden * layer.place.item
        widening = layer.place.product_sums(layer.stretch * layer.intermediate) - later
        terms["sums of products"] = max(0, widening, layer.place.product_sums(layer.stretch * layer.hidden))
        return terms
    # What the stretch before left is there until this one has it, too.
    others = layer.batch * layer.seq_len - layer.stretch
    rest = min(layer.stretch, others) * layer.intermediate * layer.place.item
    # Of the output (beside the residual's where dropout tells them apart), and of the input
    gradients = layer.states(layer.hidden) * (3 if layer.hidden_dropout else 2)
    terms = Terms({"gradients of states": gradients, "stretches of feed-forward": max(2 * a_stretch, a_stretch + 2 * rest)})
    terms["weights in another order"] = 2 * packed
    terms["sums of products"] = layer.place.product_sums(max(layer.stretch * layer.intermediate, weight))
    if layer.place.is_widened:
        # The gradient of one, and from the second stretch on the sums of both
        terms["sums of feed-forward weights"] = weight * ((2 * layer.place.sum_item if others else 0) + layer.place.item)
    return terms


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
        # PyTorch's fused operator allocates its own results, which are then copied.
        terms["results of fused attention"] = layer.states(layer.width)
    elif layer.is_dense:
        # In float32 at least; where that is wider, with query, key, value, the output and its gradient
        states = 8 if layer.place.is_widened else 3
        terms["results of fused attention"] = layer.states(states * layer.width, layer.place.sum_item)
    elif direction == "forward" and not layer.attention_dropout:
        terms["calls of fused attention"] = _fused_window(layer)
    else:
        terms["blocks of attention"] = _window_blocks(layer, direction)
        if layer.place.is_widened:
            # Keys and values, and backward the sums of three gradients
            terms["a sample in float32"] = layer.sample((2 if direction == "forward" else 5) * layer.width)
    return terms


def _fused_window(layer: Layer) -> int:
    """Bytes that PyTorch's fused attention needs for a part of a window, or the global keys that join it afterwards."""
    tokens, item, sum_item, width = layer.seq_len, layer.place.item, layer.place.sum_item, layer.width
    side, stretch = min(layer.window // 2, tokens), max(1, _FUSED_NUMBERS // width)
    rows = min(tokens, max(_FUSED_CHUNK, min(_FUSED_END, _FUSED_NUMBERS // min(tokens, 2 * side + 1))))
    keys = min(tokens, 2 * side + (_FUSED_CHUNK if tokens > 2 * side else rows))
    mask, of_end = rows * (2 * side + rows) * sum_item, rows * (width * item + keys * sum_item)
    call = max(of_end, min(max(0, tokens - 2 * side), stretch) * width * item)
    if layer.num_globals and layer.place.is_widened:
        # Queries and outputs in float32, and sums
        call = max(call, min(tokens, stretch) * (2 * width + 4 * layer.heads) * sum_item)
    return mask + call


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


def head_states(architecture: str, layer: Layer, vocab_size: int, *, training: bool) -> tuple[Terms, Terms, Terms]:
    """(saved, forward workspace, backward workspace) of what comes after the last layer, and of the loss."""
    states = Terms({"last hidden state": layer.states(layer.hidden)})
    if architecture != "LongformerForMaskedLM":
        return states, Terms(), Terms({"gradients of states": layer.states(layer.hidden)})
    words = layer.states(vocab_size)
    packed = layer.place.packed(layer.batch * layer.seq_len, vocab_size * layer.hidden)
    forward = Terms({"scores of words": words, "weights in another order": packed})
    sums = layer.place.product_sums(layer.batch * layer.seq_len * vocab_size)
    if not training:
        forward += Terms({"states of the head": layer.states(layer.hidden), "sums of products": sums})
        return states, forward, Terms()
    # The log-probabilities come after the product.
    forward["sums of products"] = max(0, sums - words)
    saved = states + Terms({"states of the head": layer.states(3 * layer.hidden), "log-probabilities of words": words})
    return saved, forward, Terms({"gradients of scores of words": 2 * words})
