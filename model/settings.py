"""What the fields of a configuration may hold, and how files of others are read."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from longformer_triton.kernels.checks import dropout_threshold
from longformer_triton.model.feed_forward import ACTIVATIONS

if TYPE_CHECKING:
    from longformer_triton.model.config import LongformerConfig

_log = logging.getLogger(__name__)
_told: set[str] = set()

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# RoBERTa's encoder has Longformer's layout but for the global projections, which then begin as copies of the local ones.
READABLE_TYPES = ("longformer", "roberta", "xlm-roberta", "camembert")
# What else is served, and how.
ELSEWHERE = {
    "bert": "make a Longformer of it with convert_to_longformer",
    "led": "load it with transformers, and patch_transformers(model) lets its encoder compute with these kernels",
}
# Fields that transformers does not have, and their defaults: written only where they differ.
OWN_FIELDS = {"absorb_global_projections": "auto", "max_globals": None}
# Fields that modules take over when they are built. Not among them: sizes that a user changes together with a module, such as
# num_labels with a new classifier, and num_hidden_layers, which is compared with the layers there are.
BUILT_IN = (
    "hidden_size", "num_attention_heads", "intermediate_size", "type_vocab_size", "pad_token_id", "hidden_act",
    "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "pruned_heads",
)  # fmt: skip
# Those that say which parameters there are: saved otherwise, a checkpoint would not load, or would lose some of them.
_OF_PARAMETERS = ("hidden_size", "intermediate_size", "type_vocab_size", "pruned_heads", "tie_word_embeddings")
# How a model that is built follows a change.
_FOLLOWED_BY = {"pruned_heads": "model.prune_heads(...) removes heads", "tie_word_embeddings": "call model.tie_weights()"}

# transformers' options of loading that choose among ways to load or compute of which there is one here, with the same result.
_ONE_WAY = ("attn_implementation", "low_cpu_mem_usage", "use_safetensors", "trust_remote_code", "weights_only")
# Those that ask for what is not here, unless they are None or False.
_OF_LOADING = (
    "device_mesh", "distributed_config", "from_flax", "from_tf", "generation_config", "gguf_file", "key_mapping",
    "load_in_4bit", "load_in_8bit", "max_memory", "mirror", "offload_buffers", "offload_folder",
    "offload_state_dict", "proxies", "quantization_config", "resume_download", "state_dict", "tp_plan", "tp_size",
    "use_auth_token", "use_kernels", "variant",
)  # fmt: skip
# transformers' options of saving that are not here.
_OF_SAVING = (
    "commit_description", "commit_message", "create_pr", "private", "push_to_hub", "repo_id", "save_peft_format", "tags",
    "token", "variant",
)  # fmt: skip

# Keys that transformers or AllenAI write into every file and that have no meaning for a Longformer: kept without a word.
# fmt: off
_INERT = frozenset((
    "add_cross_attention", "attention_mode", "bad_words_ids", "begin_suppress_tokens", "classifier_dropout",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "ignore_attention_mask", "is_decoder", "is_encoder_decoder",
    "length_penalty", "max_length", "min_length", "name_or_path", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_past", "output_scores", "position_embedding_type", "prefix",
    "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "task_specific_params",
    "temperature", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache"
))
# fmt: on
# Older files ask for checkpointing here; today that is a method of the model.
_READ_BY_THE_ENCODER = ("gradient_checkpointing",)
# What AllenAI's class writes and Hugging Face's files do not have. (Theirs have attention_mode too, as "longformer".)
_ALLENAI_MODES = ("sliding_chunks", "sliding_chunks_no_overlap", "tvm", "n2")
# Those that no sliding window equals, and what to do.
_REFUSED_MODES = {
    "n2": "Windows that hold the whole text are its full attention: in config.json, set attention_mode to 'sliding_chunks' and "
    "attention_window to the length of the longest text.",
    "sliding_chunks_no_overlap": "Its blocks are not here, but the weights fit sliding windows too: to compute with those, set "
    "attention_mode to 'sliding_chunks' in config.json.",
}


def tell_unused(entries: Mapping[str, Any]) -> None:
    """Name, once each, the keys that nothing reads."""
    known = (*_INERT, *_READ_BY_THE_ENCODER, *_told)
    names = [name for name in entries if name not in known and not name.startswith("_")]
    if names:
        _told.update(names)
        _log.warning("config: kept, but nothing here reads them: %s", ", ".join(sorted(names)))


def check_is_encoder(entries: Mapping[str, Any], path: Path) -> None:
    """Refuse a RoBERTa, or another of its family, that computes something else than Longformer's layers do.

    Args:
        entries: of its config.json, with what the caller says otherwise.
        path: of that file, for messages.

    Raises:
        NotImplementedError: a decoder, or relative positions.
    """
    for name in ("is_decoder", "add_cross_attention"):
        if entries.get(name):
            raise NotImplementedError(f"{path}: got {name} true, expected an encoder: Longformer attends in both directions.")
    positions = entries.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise NotImplementedError(
            f"{path}: got position_embedding_type {positions!r}, expected 'absolute': Longformer has a table of positions."
        )


def from_allenai(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries with AllenAI's one-sided attention windows doubled; other entries come back as they are.

    Raises:
        NotImplementedError: a mode that no sliding window equals, dilation, or autoregressive attention.
    """
    mode = entries.get("attention_mode")
    if mode not in _ALLENAI_MODES and "attention_dilation" not in entries and "autoregressive" not in entries:
        return entries
    if mode in _REFUSED_MODES:
        raise NotImplementedError(
            f"attention_mode: got {mode!r}, expected 'sliding_chunks' or 'tvm', AllenAI's exact sliding windows. "
            f"{_REFUSED_MODES[mode]}"
        )
    dilation = entries.pop("attention_dilation", 1)
    if any(step != 1 for step in (dilation if isinstance(dilation, list) else [dilation])):
        raise NotImplementedError(
            f"attention_dilation: got {dilation!r}, expected 1 everywhere: the encoder's windows are not dilated "
            "(sliding_window_attention takes a dilation)."
        )
    if entries.pop("autoregressive", False):
        raise NotImplementedError(
            "autoregressive: got true, expected false: the encoder is bidirectional "
            "(sliding_window_attention is causal on request)."
        )
    entries.pop("attention_mode", None)
    given = entries.get("attention_window")
    if given is not None:
        entries["attention_window"] = [2 * side for side in given] if isinstance(given, (list, tuple)) else 2 * given
        _log.warning(
            "config: attention_window %s is AllenAI's, one side; it became %s, both sides together, Hugging Face's meaning",
            given, entries["attention_window"],
        )  # fmt: skip
    return entries


def dtype_of(value: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype from itself or its name."""
    if value is None or isinstance(value, torch.dtype):
        return value
    found = getattr(torch, str(value).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype: got {value!r}, expected a torch.dtype or its name, such as 'float32' or 'bfloat16'.")
    return found


def label_maps(
    num_labels: int | None, id2label: Mapping[Any, str] | None, label2id: Mapping[str, int] | None
) -> tuple[dict[int, str], dict[str, int]]:
    """(id2label, label2id) that agree; LABEL_0, LABEL_1, ... where no names are given, two labels where no number is."""
    for name, value in (("id2label", id2label), ("label2id", label2id)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a mapping between ids and names of labels.")
    if num_labels is not None and (not is_int(num_labels) or num_labels < 1):
        raise ValueError(f"num_labels: got {num_labels!r}, expected an int >= 1.")
    if id2label is None and label2id is not None:
        id2label = {number: name for name, number in label2id.items()}
    if id2label is None:
        id2label = {number: f"LABEL_{number}" for number in range(2 if num_labels is None else num_labels)}
    try:
        names = {int(number): name for number, name in id2label.items()}
    except (TypeError, ValueError):
        raise TypeError(f"id2label: got the keys {list(id2label)}, expected whole numbers.") from None
    if not names:
        raise ValueError("id2label: got no label, expected one at least.")
    if num_labels is not None and len(names) != num_labels:
        raise ValueError(f"num_labels: got {num_labels} and an id2label of {len(names)}, expected one of them, or agreement.")
    return names, dict(label2id) if label2id is not None else {name: number for number, name in names.items()}


def plain(value: Any) -> Any:
    """NumPy's numbers and arrays, which loops over settings give, as the numbers and lists that a file can hold."""
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return value.tolist()
    return [plain(one) for one in value] if isinstance(value, list) else value


def windows(value: Any, num_layers: int) -> list[int]:
    """One even, positive window for each layer."""
    value = plain(value)
    if is_int(value):
        value = [value] * num_layers
    if not isinstance(value, (list, tuple)) or not all(map(is_int, value)):
        raise TypeError(f"attention_window: got {value!r}, expected an int, or a list with one int for each layer.")
    if len(value) != num_layers:
        raise ValueError(
            f"attention_window: got {len(value)} values, expected one for each of the {num_layers} layers (num_hidden_layers)."
        )
    wrong = next((window for window in value if window < 2 or window % 2), None)
    if wrong is not None:
        raise ValueError(
            f"attention_window: got {wrong}, expected even numbers >= 2: tokens of both sides together. "
            "(AllenAI's configurations count one side: twice that is meant here.)"
        )
    return list(value)


def built_in(config: LongformerConfig) -> dict[str, Any]:
    """The fields that modules take over when they are built; no later change of the configuration reaches what comes back."""
    fields = {name: getattr(config, name) for name in BUILT_IN}
    return {**fields, "pruned_heads": copy.deepcopy(config.pruned_heads)}


def check_unchanged(config: LongformerConfig, before: Mapping[str, Any], *, of_parameters: bool = False) -> None:
    """Refuse a configuration that no longer says what the model is.

    Args:
        config: as it is now.
        before: its :func:`built_in` when the model was built, brought up to date by what changes the model itself.
        of_parameters: leave out the fields that say how parameters are used, not which there are.
    """
    for name, value in before.items():
        now = getattr(config, name)
        if now != value and (name in _OF_PARAMETERS or not of_parameters):
            way = _FOLLOWED_BY.get(name, "build a model with the new value, as from_pretrained(..., field=value) does")
            raise ValueError(
                f"config.{name}: got {now!r} in a model that was built with {value!r}, which its modules keep: {way}, or set "
                "the old one again."
            )


def check_read(config: LongformerConfig) -> None:
    """Refuse wrong values of the fields that a model reads after it was built, since they may have changed since."""
    _check_number(config, "chunk_size_feed_forward", int, lowest=0)
    if config.problem_type is not None and config.problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type: got {config.problem_type!r}, expected None or one of {', '.join(PROBLEM_TYPES)}.")
    check_absorb(config.absorb_global_projections)
    for name in ("max_globals", "sep_token_id"):
        if getattr(config, name) is not None:
            _check_number(config, name, int, lowest=0)
    for name in ("output_attentions", "output_hidden_states", "return_dict", "tie_word_embeddings"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name}: got {getattr(config, name)!r}, expected True or False.")


def check_absorb(value: Any) -> None:
    """Refuse anything but a value of ``absorb_global_projections``."""
    if value not in ("auto", True, False):
        raise ValueError(f"absorb_global_projections: got {value!r}, expected 'auto', True or False.")


def check(config: LongformerConfig) -> None:
    """Refuse a configuration of which no model can be made; the message names the field."""
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size",
    ):  # fmt: skip
        _check_number(config, name, int, lowest=1)
    _check_number(config, "pad_token_id", int, lowest=0)
    for name in ("initializer_range", "layer_norm_eps"):
        _check_number(config, name, float, lowest=0)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        _check_number(config, name, float, lowest=0, highest=1)
    try:
        dropout_threshold(config.attention_probs_dropout_prob)
    except ValueError as error:
        raise ValueError(str(error).replace("dropout_p", "attention_probs_dropout_prob", 1)) from None
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size: got {config.hidden_size} with {config.num_attention_heads} attention heads, expected a multiple."
        )
    for name in ("vocab_size", "max_position_embeddings"):
        # Positions of tokens begin after that of padding, and there has to be one.
        lowest = config.pad_token_id + (1 if name == "vocab_size" else 2)
        if getattr(config, name) < lowest:
            raise ValueError(
                f"{name}: got {getattr(config, name)}, expected at least {lowest}, so that there is room beyond the row of "
                f"pad_token_id ({config.pad_token_id})."
            )
    if not callable(config.hidden_act) and config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act: got {config.hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}, or a function.")
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(config, name) is not None:
            _check_number(config, name, int, lowest=0)
    check_read(config)
    windows(config.attention_window, config.num_hidden_layers)
    check_pruned(config.pruned_heads, config)


def pruned_heads(given: Mapping[Any, Any] | None) -> dict[int, list[int]]:
    """{layer: heads} with whole numbers for keys, which JSON does not have."""
    if not isinstance(given or {}, Mapping):
        raise TypeError(f"pruned_heads: got {given!r}, expected a mapping from layers to lists of heads.")
    try:
        return {int(layer): sorted(heads) for layer, heads in (given or {}).items()}
    except (TypeError, ValueError):
        raise TypeError(f"pruned_heads: got {given!r}, expected a mapping from layers to lists of heads.") from None


def check_pruned(pruned: Mapping[int, list[int]], config: LongformerConfig) -> None:
    """Refuse layers and heads that are not there, and layers that would have no head left."""
    for layer, heads in pruned.items():
        if not is_int(layer) or not all(map(is_int, heads)):
            raise TypeError(f"pruned_heads: got {layer!r}: {heads!r}, expected numbers of a layer and of its heads.")
        if not 0 <= layer < config.num_hidden_layers or not set(heads) < set(range(config.num_attention_heads)):
            raise ValueError(
                f"pruned_heads: got heads {heads} of layer {layer}, expected layers below {config.num_hidden_layers}, "
                f"heads below {config.num_attention_heads}, and one head left at least."
            )


def check_hub_options(options: Mapping[str, Any]) -> None:
    """Accept transformers' options of saving that concern the hub and adapters, where they ask for nothing.

    Raises:
        TypeError: there is no such option.
        NotImplementedError: one asks for something.
    """
    unknown = [name for name in options if name not in _OF_SAVING]
    if unknown:
        raise TypeError(f"{unknown[0]}: got an unexpected argument.")
    wishes = {name: value for name, value in options.items() if name not in ("token", "save_peft_format")}
    check_asks_for_nothing(wishes, "save, and upload with huggingface_hub.upload_folder")


def drop_without_effect(options: dict[str, Any]) -> None:
    """Take transformers' options of loading that decide about nothing here out of ``options``.

    Raises:
        NotImplementedError: one asks for what is not here.
    """
    for name in _ONE_WAY:
        options.pop(name, None)
    wishes = {name: options.pop(name) for name in _OF_LOADING if name in options}
    check_asks_for_nothing(wishes, "load a directory of weights")


def check_asks_for_nothing(options: Mapping[str, Any], instead: str) -> None:
    """Accept options of transformers that are not here where they are None or False.

    Raises:
        NotImplementedError: one asks for something; ``instead`` says what to do.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: got {value!r}, expected None, for there is no such option here: {instead}.")


def is_int(value: Any) -> bool:
    """Whether a value is a whole number, True and False not among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_at_least(name: str, value: Any, lowest: int) -> None:
    """Refuse what is no whole number from ``lowest`` on.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not is_int(value):
        raise TypeError(f"{name}: got {value!r}, expected an int >= {lowest}.")
    if value < lowest:
        raise ValueError(f"{name}: got {value}, expected an int >= {lowest}.")


def _check_number(config: LongformerConfig, name: str, kind: type, *, lowest: float, highest: float | None = None) -> None:
    value = getattr(config, name)
    fits = is_int(value) or (kind is float and isinstance(value, float))
    meaning = f"{'an int' if kind is int else 'a number'} >= {lowest}" + ("" if highest is None else f" and <= {highest}")
    if not fits:
        raise TypeError(f"{name}: got {value!r}, expected {meaning}.")
    if not math.isfinite(value) or value < lowest or (highest is not None and value > highest):
        raise ValueError(f"{name}: got {value!r}, expected {meaning}.")
