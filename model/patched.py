"""transformers' Longformer and LED encoder on this package's attention: a subclass for each module that changes.

A patched module is the same object with another class, and nothing else: parameters, buffers, hooks and ``vars`` stay, deep
copies compute with their own weights, and checkpoints are what they were. A pickle names the class, so it needs this package to
load: unpatch before one that should not. The classes carry the names of the originals, by which transformers and accelerate
know modules, and are called as the originals are.

The masks of a batch become one :class:`AttentionPattern` a forward pass. It goes through transformers' own layers as their
``attention_mask``, which they hand on unread, down to the attention: nothing is cached, so nothing can be stale. Texts are not
padded to the window, and no mask of N x N elements is made.

Importing this module imports transformers; :mod:`longformer_triton.model.patching` does so once there is a model of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.led import modeling_led
from transformers.models.longformer import modeling_longformer

from longformer_triton.kernels import AttentionPattern
from longformer_triton.kernels.layout import ceil_div
from longformer_triton.model import inputs
from longformer_triton.model.attention import AttentionComputation
from longformer_triton.model.linear import apply_linear
from longformer_triton.model.residual import add_projected

_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# Before, LED's encoder draws a random number for each layer, whether it may be dropped or not.
_DRAWS_ONLY_TO_DROP = (5, 23)
_TAKES_HEAD_MASKS = "layer_head_mask" in inspect.signature(modeling_longformer.LongformerSelfAttention.forward).parameters


def _called_as(original: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a method the signature of ``original``, whose order of arguments depends on the version of transformers.

    Keywords that are not in it are an error, or ignored where ``original`` ignores them.
    """
    parameters = list(inspect.signature(original).parameters.values())[1:]
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    takes_any = len(names) < len(parameters)

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if takes_any:
                kwargs = {name: value for name, value in kwargs.items() if name in names}
            return method(self, **dict(zip(names[: len(args)], args, strict=True)), **kwargs)

        return forward

    return decorate


class Patched:
    """Base of the classes of patched modules."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """A new module made from the class of a patched one is as transformers makes it: patching is for instances."""
        super().__init__(*args, **kwargs)
        self.__class__ = self.original()  # type: ignore[assignment]

    @classmethod
    def original(cls) -> type[nn.Module]:
        """The class of transformers that this one stands in for."""
        return cls.__bases__[-1]


def _as_pattern(
    attention_mask: Tensor | None, global_attention_mask: Tensor | None, tokens: Tensor, config: Any
) -> AttentionPattern:
    """The pattern of masks of 0 and 1 (or 2), for a batch like ``tokens`` (batch, seq_len, ...); the window is each layer's."""
    return AttentionPattern.from_masks(
        attention_mask,
        global_attention_mask,
        shape=(tokens.shape[0], tokens.shape[1]),
        device=tokens.device,
        window=0,
        max_globals=getattr(config, "max_globals", None),
    )


def _padded_length(seq_len: int, config: Any) -> int:
    """What transformers would pad a text of this length to."""
    windows = config.attention_window
    window = windows if isinstance(windows, int) else max(windows)
    return ceil_div(seq_len, window) * window


class _SelfAttention(Patched, AttentionComputation):
    """Windowed attention with global tokens, with the inputs and outputs of transformers' modules."""

    # As in transformers: an optimizer passes over projections that nothing went through.
    fills_unused_gradients = False
    one_sided_attn_window_size: int

    @_called_as(modeling_longformer.LongformerSelfAttention.forward)
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: AttentionPattern | Tensor,
        layer_head_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        """As the original's, but for texts of any length, and with a pattern, or the original's masks.

        Args:
            hidden_states: (batch, seq_len, hidden_size).
            attention_mask: a pattern, which makes other masks unnecessary; or (batch, seq_len), negative at padding.
            layer_head_mask: (heads,), factors on the probabilities.
            is_index_masked, is_index_global_attn: (batch, seq_len) bool; the second counts where ``is_global_attn`` is true.
            output_attentions: whether to return the maps.

        Returns:
            (batch, seq_len, hidden_size), then the maps (batch, seq_len, heads, G + window + 1) and, with global tokens,
            (batch, heads, G, padded length).
        """
        if isinstance(attention_mask, AttentionPattern):
            # The layers of a model may be spread over several devices.
            pattern = attention_mask.to(hidden_states.device)
        else:
            masked = attention_mask < 0 if is_index_masked is None else is_index_masked
            marked = is_index_global_attn if is_global_attn else None
            pattern = _as_pattern(~masked, marked, hidden_states, self.config)
        pattern = pattern.with_window(self.one_sided_attn_window_size)
        context, maps = self.attend(hidden_states, pattern, layer_head_mask, output_attentions)
        if maps is None:
            return (context,)
        local, of_globals = maps
        local = local.transpose(1, 2).to(context.dtype)
        if of_globals is None:
            return context, local
        return context, local, self._filled(of_globals, pattern, layer_head_mask).to(context.dtype)

    def _filled(self, of_globals: Tensor, pattern: AttentionPattern, head_mask: Tensor | None) -> Tensor:
        """(batch, heads, seq_len, G) -> (batch, heads, G, padded length), with what transformers leaves in unused rows."""
        padded = _padded_length(pattern.seq_len, self.config)
        maps = nn.functional.pad(of_globals, (0, 0, 0, padded - pattern.seq_len)).transpose(2, 3)
        unused = maps.new_ones((1, 1, 1, 1)) if head_mask is None else head_mask.to(maps.dtype).view(1, -1, 1, 1)
        return torch.where(pattern.global_index[:, None, :, None] >= 0, maps, unused / padded)


def _run_layers(
    layers: Iterable[nn.Module],
    hidden_states: Tensor,
    pattern: AttentionPattern,
    head_mask: Tensor | None,
    output_attentions: bool,
    output_hidden_states: bool,
    dropped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run transformers' layers, all but those ``dropped``, and collect what was asked for, by the names of its outputs."""
    states, local_maps, global_maps = [hidden_states], [], []
    for number, layer in enumerate(layers):
        if not dropped():
            mask = None if head_mask is None else head_mask[number]
            options = {"layer_head_mask": mask} if _TAKES_HEAD_MASKS else {}
            hidden_states, *maps = layer(hidden_states, attention_mask=pattern, output_attentions=output_attentions, **options)
            local_maps += [maps[0].transpose(1, 2)] if maps else []
            global_maps += [maps[1].transpose(2, 3)] if len(maps) > 1 else []
        states.append(hidden_states)
    return {
        "last_hidden_state": hidden_states,
        "hidden_states": tuple(states) if output_hidden_states else None,
        "attentions": tuple(local_maps) if output_attentions else None,
        "global_attentions": tuple(global_maps) if output_attentions and pattern.global_mask is not None else None,
    }


def _chosen(config: Any, attentions: bool | None, hidden_states: bool | None, return_dict: bool | None) -> list[bool]:
    """What to return: as asked, else as the configuration says."""
    return_by_default = config.use_return_dict if _TAKES_HEAD_MASKS else config.return_dict
    defaults = (config.output_attentions, config.output_hidden_states, return_by_default)
    asked = (attentions, hidden_states, return_dict)
    return [default if value is None else value for value, default in zip(asked, defaults, strict=True)]


class LongformerSelfAttention(_SelfAttention, modeling_longformer.LongformerSelfAttention):
    """transformers' attention of Longformer, patched."""


class LEDEncoderSelfAttention(_SelfAttention, modeling_led.LEDEncoderSelfAttention):
    """transformers' attention of LED's encoder, patched."""


class _Output(Patched):
    """A projection with dropout, residual and layer norm, after attention or after the feed-forward part."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """As the original's."""
        return add_projected(self, hidden_states, input_tensor)


class LongformerSelfOutput(_Output, modeling_longformer.LongformerSelfOutput):
    """transformers' projection after attention, patched."""


class LongformerOutput(_Output, modeling_longformer.LongformerOutput):
    """transformers' narrowing half of the feed-forward part, patched."""


class LongformerIntermediate(Patched, modeling_longformer.LongformerIntermediate):
    """transformers' widening half of the feed-forward part, patched."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As the original's."""
        return self.intermediate_act_fn(apply_linear(self.dense, hidden_states))


class LongformerEncoder(Patched, modeling_longformer.LongformerEncoder):
    """transformers' layers of Longformer, patched: one pattern for all."""

    @_called_as(modeling_longformer.LongformerEncoder.forward)
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: AttentionPattern | Tensor | None = None,
        head_mask: Tensor | None = None,
        padding_len: int = 0,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """As the original's, with a pattern or the original's mask: negative at padding, positive at global tokens."""
        hidden_states = hidden_states[:, : hidden_states.shape[1] - padding_len]
        pattern = attention_mask
        if not isinstance(pattern, AttentionPattern):
            mask = None if pattern is None else pattern[:, : hidden_states.shape[1]]
            real, marked = (None, None) if mask is None else (mask >= 0, mask > 0)
            pattern = _as_pattern(real, marked, hidden_states, self.config)
        head_mask = inputs.head_mask(head_mask, len(self.layer), self.config.num_attention_heads)
        outputs = _run_layers(self.layer, hidden_states, pattern, head_mask, output_attentions, output_hidden_states)
        if not return_dict:
            return tuple(value for value in outputs.values() if value is not None)
        return modeling_longformer.LongformerBaseModelOutput(**outputs)


class LongformerModel(Patched, modeling_longformer.LongformerModel):
    """transformers' Longformer without a task, patched: nothing is padded."""

    @_called_as(modeling_longformer.LongformerModel.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As the original's."""
        config = self.config
        tokens = inputs.tokens(input_ids, inputs_embeds, config.hidden_size)
        maps, states, as_object = _chosen(config, output_attentions, output_hidden_states, return_dict)
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        encoded = self.encoder(
            self.embeddings(
                input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids, inputs_embeds=inputs_embeds
            ),
            attention_mask=_as_pattern(attention_mask, global_attention_mask, tokens, config),
            output_attentions=maps,
            output_hidden_states=states,
            return_dict=as_object,
            **({"head_mask": head_mask} if _TAKES_HEAD_MASKS else {}),
        )
        pooled = None if self.pooler is None else self.pooler(encoded[0])
        if not as_object:
            return (encoded[0], pooled, *encoded[1:])
        return modeling_longformer.LongformerBaseModelOutputWithPooling(pooler_output=pooled, **encoded)


class LEDEncoder(Patched, modeling_led.LEDEncoder):
    """transformers' encoder of LED, patched: nothing is padded, and one pattern serves all layers."""

    @_called_as(modeling_led.LEDEncoder.forward)
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As the original's."""
        config = self.config
        tokens = inputs.tokens(input_ids, inputs_embeds, config.d_model)
        maps, states, as_object = _chosen(config, output_attentions, output_hidden_states, return_dict)
        pattern = _as_pattern(attention_mask, global_attention_mask, tokens, config)
        head_mask = inputs.head_mask(head_mask, len(self.layers), config.num_attention_heads)
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        embedded = self.layernorm_embedding(embedded + self.embed_positions(tokens.shape[:2]))
        embedded = nn.functional.dropout(embedded, p=self.dropout, training=self.training)
        outputs = _run_layers(self.layers, embedded, pattern, head_mask, maps, states, self._drops_layer)
        if not as_object:
            return tuple(value for value in outputs.values() if value is not None)
        return modeling_led.LEDEncoderBaseModelOutput(**outputs)

    def _drops_layer(self) -> bool:
        """Whether the next layer is skipped (LayerDrop, arXiv 1909.11556), drawing from torch's generator as the original."""
        may_drop = self.training and self.layerdrop > 0
        if not may_drop and _VERSION >= _DRAWS_ONLY_TO_DROP:
            return False
        draw = torch.rand([])
        return may_drop and bool(draw < self.layerdrop)


FAMILIES = (modeling_longformer.LongformerPreTrainedModel, modeling_led.LEDPreTrainedModel)
ENCODERS = (modeling_longformer.LongformerEncoder, modeling_led.LEDEncoder)
CLASSES = (LongformerModel, LongformerEncoder, LongformerSelfAttention, LEDEncoder, LEDEncoderSelfAttention)
# They compute the same, faster on some processors; one that somebody has changed stays as it is.
FASTER = (LongformerSelfOutput, LongformerIntermediate, LongformerOutput)
# They stay as they are, and hand a pattern on to the attention as they would a mask.
PASSING = (
    modeling_longformer.LongformerLayer,
    modeling_longformer.LongformerAttention,
    modeling_led.LEDEncoderLayer,
    modeling_led.LEDEncoderAttention,
)
