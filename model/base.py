"""What every model here can do besides its forward pass: load, save, resize, prune, count, checkpoint activations."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from longformer_triton.kernels.layout import ceil_div
from longformer_triton.model import loading, settings
from longformer_triton.model.atomic import write_together
from longformer_triton.model.config import LongformerConfig, check_config
from longformer_triton.model.files import CONFIG_NAME, as_path, check_writable, stale_weights, write_weights
from longformer_triton.model.initialization import initialise, resized_rows, tiled_positions
from longformer_triton.model.outputs import ModelOutput

if TYPE_CHECKING:
    from longformer_triton.model.longformer import LongformerModel

_Model = TypeVar("_Model", bound="LongformerPreTrainedModel")
_Output = TypeVar("_Output", bound=ModelOutput)


class LongformerPreTrainedModel(nn.Module):
    """Base of the encoder and of the heads, under the names that transformers uses.

    Args:
        config: the configuration, kept by reference. A later change of ``attention_window``, of what a forward pass returns,
            of special tokens but padding, ``chunk_size_feed_forward``, ``absorb_global_projections`` or ``max_globals`` takes
            effect; one of a field that modules take over, such as a dropout probability, is refused at the next forward pass,
            and so is a value that does not fit.

    Raises:
        TypeError, ValueError: ``config`` is no LongformerConfig, or does not fit.
    """

    config_class: ClassVar[type[LongformerConfig]] = LongformerConfig
    base_model_prefix: ClassVar[str] = "longformer"
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    # Names that weights files lack, since they are second names of tied parameters: transformers' Trainer asks on resuming.
    _keys_to_ignore_on_save: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        check_config(config)
        config.validate()
        config.attention_window = config.windows()
        self.config = config

    @property
    def base_model(self) -> LongformerModel:
        """The encoder inside, or the model itself if it is the encoder."""
        return cast("LongformerModel", getattr(self, self.base_model_prefix, self))

    @property
    def device(self) -> torch.device:
        """Where the parameters are (the first one)."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters (the first one)."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the parameters hold; tied ones count once."""
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if (parameter.requires_grad or not only_trainable) and not (exclude_embeddings and id(parameter) in tables)
        )

    def post_init(self) -> None:
        """Give parameters their initial values, and tie those that are one; called at the end of a constructor.

        The encoder inside a head has done so for its own.
        """
        done = f"{self.base_model_prefix}."
        names = (name for name, _ in self.named_parameters() if not name.startswith(done))
        initialise(self, names, self.config.initializer_range)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make parameters one that are meant to be; heads that have such say which."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the word embeddings; a table of another size changes the size of the vocabulary."""
        self.base_model.embeddings.word_embeddings = embeddings
        if embeddings.num_embeddings != self.config.vocab_size:
            self.config.vocab_size = embeddings.num_embeddings
            self._resize_output(embeddings.num_embeddings, None)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The layer from hidden states to the vocabulary; None in models without one."""
        return None

    def _returned(self, output: _Output, return_dict: bool | None) -> _Output | tuple[Any, ...]:
        """What a forward pass returns: ``output``, or its tuple where the argument or the configuration says so."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @overload
    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        output_loading_info: Literal[False] = ...,
        **options: Any,
    ) -> _Model: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[_Model], pretrained_model_name_or_path: str | Path, *, output_loading_info: Literal[True], **options: Any
    ) -> tuple[_Model, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        pretrained_model_name_or_path: str | Path,
        *,
        config: LongformerConfig | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **overrides: Any,
    ) -> Any:
        """Load a checkpoint directory, or a name on the hub, in evaluation mode.

        Parameters that the checkpoint does not have get initial values; global projections that it does not have (a RoBERTa's)
        begin as copies of the local ones, as in the paper. One warning lists what was new and what was not used.

        Args:
            pretrained_model_name_or_path: a directory with config.json and weights (model.safetensors, its shards, or
                pytorch_model.bin), or a name on the hub.
            config: instead of the directory's own; or where to read it.
            dtype: of the floating-point parameters; None is float32, "auto" what the checkpoint has. (Also ``torch_dtype``.)
            device: where to put the model; None is the CPU. (Also ``device_map``: a device, or "auto", a GPU if there is one.)
            ignore_mismatched_sizes: let parameters whose shape differs be new instead of raising.
            output_loading_info: also return {"missing_keys", "unexpected_keys", "mismatched_keys"}.
            overrides: fields of the configuration, arguments of the constructor (``add_pooling_layer``), or options of the
                hub (revision, token, cache_dir, local_files_only, force_download).

        Returns:
            The model, or (model, info).

        Raises:
            CheckpointError: a file is missing, damaged, no checkpoint of tensors, or has parameters of another shape.
            NotImplementedError: a RoBERTa that is a decoder or has relative positions, or an argument of transformers that asks
                for what is not here, such as a model spread over devices.
            ValueError, TypeError: the configuration or an argument does not fit.
        """
        model, report = loading.load(
            cls,
            pretrained_model_name_or_path,
            config,
            dtype,
            device,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            options=overrides,
        )
        return (model, report.as_info()) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        save_function: Any = None,  # noqa: ARG002 - accelerate passes one
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        **hub_options: Any,
    ) -> None:
        """Write config.json and the weights as safetensors, which transformers loads too.

        Old files are replaced as one: after a crash at any moment, :meth:`from_pretrained` finds all of the old checkpoint or
        all of the new.

        Args:
            save_directory: made if it is not there.
            is_main_process: False writes nothing; for all processes but one of distributed training.
            state_dict: instead of the model's own.
            save_function: accepted, as accelerate's examples pass one; the weights are written as always.
            max_shard_size: bytes, or a text such as "5GB"; larger weights are split into shards with an index.
            safe_serialization: True; PyTorch's pickles are read, never written.
            hub_options: transformers' (push_to_hub, variant, token ...), accepted where they ask for nothing.

        Raises:
            ValueError: ``save_directory`` is a file, ``safe_serialization`` False, ``max_shard_size`` no size, parameters
                are sharded (FSDP2) or on meta, or the configuration was changed and says of parameters what is not so.
            TypeError, NotImplementedError: ``save_directory`` is no path, ``state_dict`` no mapping of names to tensors, one of
                ``hub_options`` is none, or asks for something.
        """
        settings.check_hub_options(hub_options)
        if not safe_serialization:
            raise ValueError("safe_serialization: got False, expected True: weights are written as safetensors only.")
        if not is_main_process:
            return
        folder = as_path("save_directory", save_directory)
        tensors = self.state_dict() if state_dict is None else state_dict
        check_writable(tensors)
        files = self.writers(tensors, max_shard_size)
        write_together(folder, files, remove=stale_weights(folder, files))

    def writers(self, tensors: Mapping[str, Tensor], max_shard_size: int | str) -> dict[str, Callable[[Path], object]]:
        """{file: what writes it} of a checkpoint with ``tensors``; the configuration learns their dtype and this class.

        Raises:
            ValueError: the configuration says of parameters what is not so, or ``max_shard_size`` is no size.
        """
        settings.check_unchanged(self.config, self.base_model.built_in, of_parameters=True)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), self.dtype)
        config_text = self.config.to_json_string()
        return {**write_weights(tensors, max_shard_size), CONFIG_NAME: lambda path: path.write_text(config_text)}

    def set_attention_window(self, window: int | Iterable[int]) -> None:
        """Change the attention window of all layers (an int), or of each (a list); takes effect at the next forward pass.

        Raises:
            ValueError, TypeError: the windows do not fit.
        """
        if isinstance(window, Tensor):
            window = window.tolist()
        chosen = list(window) if isinstance(window, Iterable) else window
        self.config.attention_window = settings.windows(chosen, self.config.num_hidden_layers)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Keep only each layer's input for backward, and compute the rest again there, dropout included.

        Args:
            gradient_checkpointing_kwargs: for ``torch.utils.checkpoint.checkpoint``; the default is use_reentrant=False.
        """
        encoder = self.base_model.encoder
        encoder.gradient_checkpointing = True
        encoder.checkpointing_options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for backward again."""
        self.base_model.encoder.gradient_checkpointing = False

    def enable_input_require_grads(self) -> None:
        """Let the embeddings' output require a gradient, which reentrant checkpointing needs if the embeddings are frozen."""
        self._inputs_require_grads = self.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output.requires_grad_(True)  # noqa: ARG005 - the signature of a hook
        )

    def disable_input_require_grads(self) -> None:
        """Undo :meth:`enable_input_require_grads`."""
        self._inputs_require_grads.remove()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers compute their activations again in backward."""
        return self.base_model.encoder.gradient_checkpointing

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the size of the vocabulary.

        Args:
            new_num_tokens: None leaves the number.
            pad_to_multiple_of: round the number up.
            mean_resizing: let new rows begin as the mean of the old ones, so that new tokens start out likely; False draws
                them as in a new model. Biases of new tokens are zero.

        Returns:
            The word embeddings.

        Raises:
            ValueError, TypeError: the number is too small to hold the padding token, or none, or so is the multiple.
        """
        embeddings = self.get_input_embeddings()
        if new_num_tokens is not None:
            new_num_tokens = settings.plain(new_num_tokens)
            if not settings.is_int(new_num_tokens):
                raise TypeError(f"new_num_tokens: got {new_num_tokens!r}, expected an int, or None.")
        size = embeddings.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            settings.check_at_least("pad_to_multiple_of", pad_to_multiple_of, 1)
            size = ceil_div(size, pad_to_multiple_of) * pad_to_multiple_of
        if size <= self.config.pad_token_id:
            raise ValueError(f"new_num_tokens: got {size}, expected more than pad_token_id ({self.config.pad_token_id}).")
        if size == embeddings.num_embeddings:
            return embeddings
        std = None if mean_resizing else self.config.initializer_range
        resized_rows(embeddings, size, std)
        self.config.vocab_size = size
        self._resize_output(size, std)
        self.tie_weights()
        return embeddings

    def _resize_output(self, size: int, std: float | None) -> None:
        """Follow a new size of the vocabulary; heads that predict words do."""

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change how long texts may be: the learned positions are tiled, or cut off (arXiv 2004.05150, section 5).

        Args:
            new_num_position_embeddings: rows of the table, the pad_token_id + 1 rows before the first position included.

        Raises:
            ValueError, TypeError: no row would be left for a token, or it is no number.
        """
        first = self.config.pad_token_id + 1
        new_num_position_embeddings = settings.plain(new_num_position_embeddings)
        if not settings.is_int(new_num_position_embeddings):
            raise TypeError(f"new_num_position_embeddings: got {new_num_position_embeddings!r}, expected an int.")
        if new_num_position_embeddings <= first:
            raise ValueError(
                f"new_num_position_embeddings: got {new_num_position_embeddings}, expected more than {first}: "
                "that many rows belong to padding."
            )
        tiled_positions(self.base_model.embeddings.position_embeddings, new_num_position_embeddings, first)
        self.config.max_position_embeddings = new_num_position_embeddings

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads for good, from global projections too; the configuration remembers which.

        Pruned checkpoints load here again; transformers 4.56 cannot prune its Longformer, nor load one.

        Args:
            heads_to_prune: {layer: heads}, numbered as in the unpruned model; heads that are gone already do not matter.

        Raises:
            ValueError: no such layer or head, or no head would be left in a layer.
            TypeError: no mapping, or layers and heads that are no numbers.
        """
        if not isinstance(heads_to_prune, Mapping) or not all(isinstance(heads, Iterable) for heads in heads_to_prune.values()):
            raise TypeError(f"heads_to_prune: got {heads_to_prune!r}, expected a mapping from layers to lists of heads.")
        layers, built_in = self.base_model.encoder.layer, self.base_model.built_in
        pruned = dict(built_in["pruned_heads"])
        for layer, heads in heads_to_prune.items():
            pruned[layer] = sorted({*pruned.get(layer, []), *heads})
        settings.check_pruned(pruned, self.config)
        self.config.pruned_heads, built_in["pruned_heads"] = pruned, copy.deepcopy(pruned)
        for layer in heads_to_prune:
            attention = layers[layer].attention
            attention.keep_heads([head for head in attention.self.heads if head not in pruned[layer]])  # type: ignore[operator,union-attr]
