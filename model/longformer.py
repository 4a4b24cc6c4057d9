"""The encoder with its embeddings and its pooler: masks in, hidden states out."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from longformer_triton.kernels import AttentionPattern, checks
from longformer_triton.model import inputs, settings
from longformer_triton.model.base import LongformerPreTrainedModel
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.embeddings import LongformerEmbeddings
from longformer_triton.model.encoder import LongformerEncoder
from longformer_triton.model.outputs import LongformerBaseModelOutputWithPooling

_log = logging.getLogger(__name__)
_told: set[str] = set()
_MANY_GLOBALS = 0.25
_LARGE_MAPS_GIB = 1.0


def _tell_once(kind: str, message: str, *values: object) -> None:
    if kind not in _told:
        _told.add(kind)
        _log.warning(message, *values)


class LongformerPooler(nn.Module):
    """The first token through a dense layer and tanh."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, seq_len, hidden_size) -> (batch, hidden_size)."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class LongformerModel(LongformerPreTrainedModel):
    """Longformer without a task: hidden states of long texts (Beltagy, Peters, Cohan 2020, arXiv 2004.05150).

    Texts of any length are computed as they are: nothing is padded to the window.

    Args:
        config: a :class:`LongformerConfig`.
        add_pooling_layer: whether to have ``pooler_output``.

    Example:
        >>> import torch
        >>> from longformer_triton import LongformerConfig, LongformerModel
        >>> sizes = dict(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        >>> model = LongformerModel(LongformerConfig(**sizes, max_position_embeddings=1026, attention_window=64)).eval()
        >>> input_ids = torch.randint(3, 100, (1, 1000))
        >>> attention_mask = torch.ones(input_ids.shape, dtype=torch.long)  # local attention
        >>> global_attention_mask = torch.zeros(input_ids.shape, dtype=torch.long)
        >>> global_attention_mask[:, [1, 4, 21]] = 1  # global attention of three tokens
        >>> outputs = model(input_ids, attention_mask=attention_mask, global_attention_mask=global_attention_mask)
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([1, 1000, 16]), torch.Size([1, 16]))
    """

    def __init__(self, config: LongformerConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = LongformerEmbeddings(config)
        self.encoder = LongformerEncoder(config)
        # What else modules know of the configuration, heads add: see settings.check_unchanged.
        self.built_in = settings.built_in(config)
        self.pooler = LongformerPooler(config) if add_pooling_layer else None
        self.post_init()

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
    ) -> LongformerBaseModelOutputWithPooling | tuple[Tensor | tuple[Tensor, ...] | None, ...]:
        """Encode a batch of texts.

        Args:
            input_ids: (batch, seq_len) of integers; or give ``inputs_embeds``.
            attention_mask: (batch, seq_len), 1 = real token, 0 = padding, 2 = real and global; None: all real.
            global_attention_mask: (batch, seq_len), 1 = global token; None: none but those of ``attention_mask``.
            head_mask: (num_attention_heads,) for every layer alike, or (num_hidden_layers, num_attention_heads): factors on
                the attention probabilities of each head.
            token_type_ids: (batch, seq_len); None: all 0.
            position_ids: (batch, seq_len); None: counted over real tokens from pad_token_id + 1.
            inputs_embeds: (batch, seq_len, hidden_size) instead of ``input_ids``.
            output_attentions, output_hidden_states, return_dict: None takes the configuration's.

        Returns:
            :class:`LongformerBaseModelOutputWithPooling`, or with ``return_dict=False`` a tuple: last hidden states, pooled
            output (None without a pooling layer), then what was asked for.

        Raises:
            ValueError, TypeError: an argument does not fit; a text is longer than the position table.
        """
        config = self.config
        settings.check_read(config)
        settings.check_unchanged(config, self.built_in)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        given = inputs.tokens(input_ids, inputs_embeds, config.hidden_size)
        shape = (given.shape[0], given.shape[1])
        inputs.same_device(given.device, attention_mask=attention_mask, global_attention_mask=global_attention_mask)
        head_mask = inputs.head_mask(head_mask, config.num_hidden_layers, config.num_attention_heads)
        # First of all that computes, since it refuses texts that are too long.
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        pattern = AttentionPattern.from_masks(
            attention_mask,
            global_attention_mask,
            shape=shape,
            device=given.device,
            window=config.windows()[0] // 2,
            max_globals=config.max_globals,
        )
        if not checks.is_tracing():
            self._advise(input_ids, attention_mask, pattern, output_attentions)
        encoded = self.encoder(hidden_states, pattern, head_mask, output_attentions, output_hidden_states)
        last = encoded.last_hidden_state
        pooled = None if self.pooler is None else self.pooler(last)
        if not return_dict:
            return (last, pooled, *encoded.to_tuple()[1:])
        return LongformerBaseModelOutputWithPooling(
            last, pooled, encoded.hidden_states, encoded.attentions, encoded.global_attentions
        )

    def _advise(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, pattern: AttentionPattern, output_attentions: bool
    ) -> None:
        """Say once what is allowed and yet hardly meant; values are read only where that waits for nothing."""
        width = pattern.global_index.shape[1]
        if output_attentions:
            columns = sum(window + 1 + 2 * width for window in self.config.windows())
            gib = pattern.batch * self.config.num_attention_heads * pattern.seq_len * columns * 4 / 2**30
            if gib > _LARGE_MAPS_GIB:
                _tell_once("maps", "output_attentions: the attention maps of this batch take %.1f GiB", gib)
        if pattern.batch == 0:
            return
        is_cpu, many = pattern.device.type == "cpu", max(1, _MANY_GLOBALS * pattern.seq_len)
        # There is room for as many as there are, unless the configuration gave it.
        count = 0
        if width > many and (is_cpu or self.config.max_globals is None):
            count = int(pattern.global_count.max()) if is_cpu else width
        if count > many:
            _tell_once(
                "globals",
                "global_attention_mask: %d of %d tokens are global; above a quarter the cost grows like that of full attention",
                count, pattern.seq_len,
            )  # fmt: skip
        if not is_cpu:
            return
        if attention_mask is None and input_ids is not None and bool((input_ids[:, -1] == self.config.pad_token_id).any()):
            _tell_once(
                "padding",
                "attention_mask: none given, though input_ids end in padding (pad_token_id %d), which is now attended to",
                self.config.pad_token_id,
            )
