"""The configuration of a Longformer: Hugging Face's fields, names, defaults and JSON, validated."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, overload

import torch

from longformer_triton.model import settings
from longformer_triton.model.atomic import write_together
from longformer_triton.model.files import CONFIG_NAME, PLACE_OPTIONS, CheckpointError, as_path, locate, read_json

_log = logging.getLogger(__name__)


class LongformerConfig:
    """Everything that decides the shape and the behaviour of a Longformer.

    Names, defaults and meanings are those of transformers 4.56, and so is the JSON, in both directions. Keys that nothing here
    reads are kept as attributes, named once in a warning, and written back.

    Args:
        attention_window: even number of tokens, both sides together; one for all layers or one for each layer. (AllenAI's own
            configurations give one side: :meth:`from_dict` recognises and doubles them.)
        sep_token_id, pad_token_id, bos_token_id, eos_token_id: ids of special tokens.
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: sizes.
        hidden_act: "gelu", "relu", "silu" (also "swish"), "gelu_new" (also "gelu_fast", "gelu_pytorch_tanh"), or a function of
            a tensor.
        hidden_dropout_prob: dropout of embeddings and dense layers.
        attention_probs_dropout_prob: dropout of attention probabilities; the kernels round it to a multiple of 1/256.
        max_position_embeddings: rows of the position table. Positions begin at pad_token_id + 1, so texts may have
            max_position_embeddings - pad_token_id - 1 tokens.
        type_vocab_size: number of token types.
        initializer_range: standard deviation of initial weights.
        layer_norm_eps: of every layer norm.
        onnx_export: kept for transformers; no meaning here.
        num_labels, id2label, label2id: the labels of a classification head; number and map, if both are given, must agree.
        problem_type: "regression", "single_label_classification", "multi_label_classification", or None: seen from the labels.
        output_attentions, output_hidden_states, return_dict: what a forward pass returns when its arguments do not say.
        tie_word_embeddings: whether the masked language model's decoder is the word embedding.
        pruned_heads: {layer: heads that were removed}.
        chunk_size_feed_forward: tokens at a time in feed-forward layers, 0 for all; bounds memory, changes no number.
        architectures, dtype: what the checkpoint was saved from and in.
        absorb_global_projections: "auto", True or False; whether global rows avoid projecting every token (see
            :func:`longformer_triton.absorbed_global_attention`). Projections with hooks, adapters or a forward of their own are
            called all the same. Not in transformers; written only if changed.
        max_globals: the most global tokens of any text, or None to count them. Given, a forward pass reads nothing back from a
            GPU, and CUDA graphs can capture it. Not in transformers; written only if changed.
        unknown: any other keys.

    Raises:
        ValueError, TypeError: a value does not fit, with its name.
    """

    model_type: ClassVar[str] = "longformer"

    def __init__(
        self,
        attention_window: int | list[int] = 512,
        sep_token_id: int = 2,
        pad_token_id: int = 1,
        bos_token_id: int = 0,
        eos_token_id: int = 2,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str | Callable[[torch.Tensor], torch.Tensor] = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        onnx_export: bool = False,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int | str, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        problem_type: str | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        tie_word_embeddings: bool = True,
        pruned_heads: Mapping[int | str, list[int]] | None = None,
        chunk_size_feed_forward: int = 0,
        architectures: list[str] | None = None,
        dtype: torch.dtype | str | None = None,
        absorb_global_projections: bool | str = "auto",
        max_globals: int | None = None,
        **unknown: Any,
    ) -> None:
        self.attention_window = attention_window
        self.sep_token_id, self.pad_token_id = sep_token_id, pad_token_id
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings, self.type_vocab_size = max_position_embeddings, type_vocab_size
        self.initializer_range, self.layer_norm_eps = initializer_range, layer_norm_eps
        self.onnx_export = onnx_export
        self.problem_type = problem_type
        self.output_attentions, self.output_hidden_states = output_attentions, output_hidden_states
        self.return_dict = return_dict
        self.tie_word_embeddings = tie_word_embeddings
        self.pruned_heads = settings.pruned_heads(pruned_heads)
        self.chunk_size_feed_forward = chunk_size_feed_forward
        self.architectures = architectures
        # Older files say torch_dtype.
        older = unknown.pop("torch_dtype", None)
        self.dtype = settings.dtype_of(dtype if dtype is not None else older)
        self.absorb_global_projections, self.max_globals = absorb_global_projections, max_globals
        self.id2label, self.label2id = settings.label_maps(num_labels, id2label, label2id)
        for computed in ("model_type", "use_return_dict"):
            unknown.pop(computed, None)
        for name, value in unknown.items():
            if hasattr(type(self), name):
                raise ValueError(f"{name}: got {value!r}, expected no such key: it is the name of a method.")
            setattr(self, name, value)
        settings.tell_unused(unknown)
        self.validate()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, settings.plain(value))

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError, TypeError: a value does not fit, with its name.
        """
        settings.check(self)

    @property
    def num_labels(self) -> int:
        """The number of labels; setting it renames them LABEL_0, LABEL_1, ... unless the number is the same."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if value != len(self.id2label):
            self.id2label, self.label2id = settings.label_maps(value, None, None)

    @property
    def use_return_dict(self) -> bool:
        """``return_dict``, under transformers' other name."""
        return self.return_dict

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """``dtype``, under its older name."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: torch.dtype | str | None) -> None:
        self.dtype = settings.dtype_of(value)

    def windows(self) -> list[int]:
        """The attention window of each layer, checked; read at every forward pass, so that a change takes effect.

        Raises:
            ValueError, TypeError: ``attention_window`` does not fit.
        """
        return settings.windows(self.attention_window, self.num_hidden_layers)

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[False] = ..., **overrides: Any
    ) -> LongformerConfig: ...

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **overrides: Any
    ) -> tuple[LongformerConfig, dict[str, Any]]: ...

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """A configuration from a mapping such as a parsed config.json.

        AllenAI's one-sided ``attention_window`` is recognised, by the keys that only AllenAI's class writes, and doubled.

        Args:
            config_dict: the mapping.
            return_unused_kwargs: whether to return overrides that are no fields, instead of keeping them.
            overrides: fields that replace its entries.

        Returns:
            The configuration, or (configuration, {name: override that is no field}); ``dtype``, which models load with, is
            among the latter too.

        Raises:
            ValueError, TypeError: a value does not fit, with its name.
        """
        entries = settings.from_allenai(copy.deepcopy(dict(config_dict)))
        unused = {}
        if return_unused_kwargs:
            fields = {*inspect.signature(cls).parameters, *entries, "torch_dtype"}
            unused = {name: overrides.pop(name) for name in list(overrides) if name not in fields}
            dtype = overrides.get("dtype", overrides.get("torch_dtype"))
            unused |= {} if dtype is None else {"dtype": dtype}
        labels = {"num_labels", "id2label", "label2id"}
        given = labels & set(overrides)
        if given and not (given == {"num_labels"} and len(entries.get("id2label") or ()) == overrides["num_labels"]):
            # The names of labels in a file go together with their number there.
            entries = {name: value for name, value in entries.items() if name not in labels}
        config = cls(**{**entries, **overrides})
        return (config, unused) if return_unused_kwargs else config

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        return_unused_kwargs: Literal[False] = ...,
        **overrides: Any,
    ) -> LongformerConfig: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, return_unused_kwargs: Literal[True], **overrides: Any
    ) -> tuple[LongformerConfig, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **overrides: Any) -> Any:
        """Read config.json of a checkpoint directory, or of a name on the hub.

        Args:
            pretrained_model_name_or_path: the directory or the name.
            overrides: fields that replace the file's and ``return_unused_kwargs``, as for :meth:`from_dict`; ``subfolder``, or
                options of the hub (revision, token, cache_dir, local_files_only, force_download).

        Returns:
            As :meth:`from_dict`.

        Raises:
            CheckpointError: the file is missing, no JSON, or of another kind of model.
            NotImplementedError: a RoBERTa that is a decoder or has relative positions, an AllenAI mode that is not here, or
                an argument of transformers that asks for what is not here.
            ValueError, TypeError: a value does not fit, with its name.
        """
        settings.drop_without_effect(overrides)
        place = {name: overrides.pop(name) for name in PLACE_OPTIONS if name in overrides}
        folder = locate(pretrained_model_name_or_path, weights=False, **place)
        return cls.from_json_file(folder / CONFIG_NAME, **overrides)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str], **overrides: Any) -> LongformerConfig:
        """A configuration from a file of any name; ``overrides`` and what is raised as for :meth:`from_pretrained`."""
        path = as_path("json_file", json_file)
        entries = read_json(path)
        model_type = entries.get("model_type", cls.model_type)
        if model_type not in settings.READABLE_TYPES:
            nowhere = "others are not served, but for bert (convert_to_longformer) and led (patch_transformers)"
            raise CheckpointError(
                f"{path}: got model_type {model_type!r}, expected one of {', '.join(settings.READABLE_TYPES)}: "
                f"{settings.ELSEWHERE.get(str(model_type), nowhere)}."
            )
        if model_type != cls.model_type:
            settings.check_is_encoder({**entries, **overrides}, path)
        return cls.from_dict(entries, **overrides)

    def save_pretrained(self, save_directory: str | Path, **hub_options: Any) -> None:
        """Write config.json; an old one is replaced in one step. ``hub_options`` as for models."""
        settings.check_hub_options(hub_options)
        folder = as_path("save_directory", save_directory)
        text = self.to_json_string()
        write_together(folder, {CONFIG_NAME: lambda path: path.write_text(text)})

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write :meth:`to_json_string` to a file of any name."""
        as_path("json_file_path", json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set several fields, given as for a new configuration, or none of them.

        Raises:
            ValueError, TypeError: a value does not fit, with its name.
        """
        changed = type(self).from_dict(self.to_dict(), **config_dict)
        vars(self).clear()
        vars(self).update(vars(changed))

    def to_dict(self) -> dict[str, Any]:
        """All fields and kept keys, ``model_type`` included; dtype by its name."""
        entries = {name: copy.deepcopy(value) for name, value in vars(self).items() if name != "hidden_act"}
        entries["hidden_act"] = self.hidden_act
        if self.dtype is not None:
            entries["dtype"] = str(self.dtype).removeprefix("torch.")
        for name, default in settings.OWN_FIELDS.items():
            if entries[name] == default:
                del entries[name]
        return {"model_type": self.model_type, **entries}

    def to_json_string(self) -> str:
        """What config.json holds: :meth:`to_dict` without entries that are None by default.

        Raises:
            ValueError: ``hidden_act`` is a function, which JSON cannot hold.
        """
        parameters = inspect.signature(type(self)).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        entries = {
            name: value for name, value in self.to_dict().items() if value is not None or defaults.get(name, "") is not None
        }
        if callable(self.hidden_act):
            raise ValueError(
                f"hidden_act: got the function {self.hidden_act!r}, expected a name to write to JSON: "
                "set config.hidden_act to 'gelu', 'relu', 'silu' or 'gelu_new', or keep the file by other means."
            )
        return json.dumps(entries, indent=2, sort_keys=True) + "\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongformerConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({fields})"


def check_config(config: object) -> None:
    """Refuse anything but a configuration of ours.

    Raises:
        TypeError: it is something else, such as one of transformers'.
    """
    if not isinstance(config, LongformerConfig):
        kind = type(config)
        raise TypeError(
            f"config: got a {kind.__module__}.{kind.__qualname__}, expected a LongformerConfig of this package: "
            "LongformerConfig.from_pretrained(directory) reads one, LongformerConfig.from_dict(config.to_dict()) makes one of "
            "transformers'."
        )
