"""What a model holds from moment to moment, through a forward pass or a step of training, in terms of :mod:`memory_terms`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from longformer_triton.model import memory_terms as terms
from longformer_triton.model.linear import MANY_TOKENS
from longformer_triton.model.memory_attention import attention_workspaces
from longformer_triton.model.memory_terms import Layer, Parameters, Terms

FORWARD, BACKWARD, STEP = "forward", "backward", "optimizer step"
PHASES = (FORWARD, BACKWARD, STEP)


@dataclasses.dataclass(frozen=True)
class Moment:
    """One moment: what is held besides weights and the optimiser's state, in bytes."""

    phase: str  # forward, backward or optimizer step
    where: str  # in the model
    gradients: int  # of parameters
    saved: Terms
    transient: Terms

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.gradients + self.saved.total() + self.transient.total()


@dataclasses.dataclass(frozen=True)
class Model:
    """What both walks need: the layers, the parameters of each part, and the head."""

    layers: list[Layer]
    parameters: Parameters
    architecture: str
    vocab_size: int
    num_positions: int
    is_tied: bool  # whether the head's decoder is the table of words


def inference(model: Model) -> Iterator[Moment]:
    """A forward pass without a graph: nothing is saved."""
    for number, layer in enumerate(model.layers):
        yield from _passing(layer, number, Terms())
    saved, transient, _ = terms.head_states(model.architecture, model.layers[-1], model.vocab_size, training=False)
    yield Moment(FORWARD, "head", 0, Terms(), saved + transient)


def _passing(layer: Layer, number: int, saved: Terms) -> Iterator[Moment]:
    """The forward pass of a layer that keeps nothing but its input; ``saved`` is what was kept before, or nothing."""
    # The embeddings' output stays there while the encoder runs, and a layer's input while the layer does.
    states = layer.states(layer.hidden)
    held = Terms({"hidden states": states if saved else states * min(number + 1, 2)})
    inside = held + terms.saved_by_attention(layer)
    for part, workspace in attention_workspaces(layer, FORWARD).items():
        if part == "global rows" and layer.is_absorbed:
            del inside["query, key, value"]  # freed before
        yield Moment(FORWARD, f"layer {number + 1}, {part}", 0, saved, inside + workspace)
    if layer.num_globals and layer.is_absorbed:
        # Two, since nothing is written in place
        copies = Terms({"attention with global rows": layer.states(2 * layer.width)})
        yield Moment(FORWARD, f"layer {number + 1}, global rows", 0, saved, inside + copies)
    held["hidden states"] += states
    transient = held + terms.feed_forward_workspace(layer, FORWARD, is_kept=False)
    yield Moment(FORWARD, f"layer {number + 1}, feed-forward", 0, saved, transient)
    held["hidden states"] += 2 * states
    yield Moment(FORWARD, f"layer {number + 1}, norm", 0, saved, held)


def training(model: Model, *, checkpointing: bool, keeps_gradients: bool) -> Iterator[Moment]:
    """Forward and backward. Gradients of parameters appear, part by part, as what was saved is freed."""
    first, last, parts = model.layers[0], model.layers[-1], model.parameters
    item = first.place.item
    kept = parts.total * item if keeps_gradients else 0
    # What was saved before each layer, and at the end before the head
    before = [terms.saved_by_embeddings(first)]
    for number, layer in enumerate(model.layers):
        saved = before[-1]
        for moment in (_passing if checkpointing else _keeping)(layer, number, saved):
            yield dataclasses.replace(moment, gradients=kept)
        before.append(saved + (terms.layer_input(layer) if checkpointing else terms.saved_by_layer(layer)))

    saved, forward, backward = terms.head_states(model.architecture, last, model.vocab_size, training=True)
    yield Moment(FORWARD, "head", kept, before[-1] + saved, forward)
    yield Moment(BACKWARD, "head", kept, before[-1] + saved, backward)
    table = model.vocab_size * first.hidden * item
    if model.architecture == "LongformerForMaskedLM":
        yield _decoder_backward(model, before[-1], kept + table)
    made = parts.head * item + (table if model.is_tied else 0)

    for number in reversed(range(len(model.layers))):
        layer = model.layers[number]
        # Where gradients are kept, new ones live until they are added.
        new = {"feed-forward": parts.feed_forward * item, "attention": parts.attention[number] * item}
        made += new["feed-forward"]
        yield dataclasses.replace(
            _feed_forward_backward(layer, number, before[number]), gradients=kept + new["feed-forward"] if kept else made
        )
        made += new["attention"]
        for moment in _attention_backward(layer, number, before[number]):
            yield dataclasses.replace(moment, gradients=kept + new["attention"] if kept else made)

    # A tied table gets one gradient from the head and one from here, which are then added: into a third, where PyTorch's linear
    # layer left the first one transposed.
    is_transposed = not first.place.packed(first.batch * first.seq_len, model.vocab_size * first.hidden)
    extra = (2 if model.is_tied and is_transposed else 1 if kept or model.is_tied else 0) * table
    states = Terms({"gradients of states": first.states(first.hidden)})
    yield Moment(BACKWARD, "embeddings", parts.total * item + extra, Terms(), states)


def _decoder_backward(model: Model, saved: Terms, gradients: int) -> Moment:
    """When the gradient of the decoder's weight is put together (model/linear.py), one table of three that takes."""
    last = model.layers[-1]
    tokens, numbers = last.batch * last.seq_len, model.vocab_size * last.hidden
    states = Terms({"last hidden state": last.states(last.hidden), "states of the head": last.states(3 * last.hidden)})
    workspace = Terms({"gradients of scores of words": last.states(model.vocab_size)})
    workspace["sums of products"] = last.place.product_sums(numbers)
    if tokens >= MANY_TOKENS:
        workspace["weights in another order"] = 2 * last.place.packed(tokens, numbers)
    return Moment(BACKWARD, "head", gradients, saved + states, workspace)


def _keeping(layer: Layer, number: int, saved: Terms) -> Iterator[Moment]:
    """The forward pass of a layer that keeps all it needs for backward."""
    attended = saved + terms.layer_input(layer) + terms.saved_by_attention(layer)
    for part, workspace in attention_workspaces(layer, FORWARD).items():
        yield Moment(FORWARD, f"layer {number + 1}, {part}", 0, attended, workspace)
    widened = attended + terms.saved_after_attention(layer) + terms.saved_by_feed_forward(layer)
    transient = terms.feed_forward_workspace(layer, FORWARD, is_kept=True)
    yield Moment(FORWARD, f"layer {number + 1}, feed-forward", 0, widened, transient)


def _feed_forward_backward(layer: Layer, number: int, saved: Terms) -> Moment:
    """The backward pass of the feed-forward part of a layer, all of whose activations are there."""
    attended = saved + terms.layer_input(layer) + terms.saved_by_attention(layer)
    widened = attended + terms.saved_after_attention(layer) + terms.saved_by_feed_forward(layer)
    transient = terms.feed_forward_workspace(layer, BACKWARD, is_kept=True)
    return Moment(BACKWARD, f"layer {number + 1}, feed-forward", 0, widened, transient)


def _attention_backward(layer: Layer, number: int, saved: Terms) -> Iterator[Moment]:
    """The same of attention, when all that came after it is done and freed."""
    attended = saved + terms.layer_input(layer) + terms.saved_by_attention(layer)
    # The residual's gradient, and the attention's
    arriving = Terms({"gradients of states": layer.states(layer.hidden + layer.width)})
    for part, workspace in attention_workspaces(layer, BACKWARD).items():
        yield Moment(BACKWARD, f"layer {number + 1}, {part}", 0, attended, arriving + workspace)
