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
