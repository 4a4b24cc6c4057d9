"""A tokenizer's files as arguments of its class, and a tokenizer as files: what transformers writes and reads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken  # type: ignore[import-untyped]

from longformer_triton.tokenization import backend, files, special

if TYPE_CHECKING:
    from longformer_triton.tokenization.tokenizer import LongformerTokenizer

# Entries of tokenizer_config.json that say where it was, or of which class.
_DROPPED = (
    "tokenizer_class",
    "name_or_path",
    "special_tokens_map_file",
    "init_inputs",
    "vocab_file",
    "merges_file",
    "tokenizer_file",
)
_SETTINGS = (
    "add_prefix_space",
    "added_tokens_decoder",
    "clean_up_tokenization_spaces",
    "errors",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "trim_offsets",
    "truncation_side",
)
# Settings that a configuration names only where they are not these.
_USUAL = {
    "model_input_names": ["input_ids", "attention_mask"],
    "padding_side": "right",
    "split_special_tokens": False,
    "truncation_side": "right",
}


def arguments(folder: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the files in ``folder`` say.

    Special and added tokens are those of tokenizer_config.json; where it does not list the added ones, as in older
    checkpoints, those of special_tokens_map.json, added_tokens.json and tokenizer.json.

    Args:
        folder: with vocab.json and merges.txt, or tokenizer.json; the other files may be missing.
        overrides: arguments that win over the files.

    Returns:
        (arguments of the class, entries of tokenizer_config.json that nothing here reads, to be written again).

    Raises:
        TokenizerFileError: a file is missing or damaged.
    """
    found: dict[str, Any] = dict(files.vocabulary_files(folder))
    if "tokenizer_file" in found:
        found = {"tokenizer_object": backend.from_tokenizer_file(found["tokenizer_file"])}
    config = {name: value for name, value in files.read_json(folder / files.CONFIG).items() if name not in _DROPPED}
    if "max_len" in config:
        config.setdefault("model_max_length", config.pop("max_len"))
    if "tokenizer_object" in found:
        rules = {"padding_side": found["tokenizer_object"].padding, "truncation_side": found["tokenizer_object"].truncation}
        config = {**{name: rule["direction"] for name, rule in rules.items() if rule}, **config}
    config.update(overrides)
    if config.get("added_tokens_decoder") is not None:
        added = {int(place): _token(token) for place, token in config["added_tokens_decoder"].items()}
    else:
        for name, value in files.read_json(folder / files.SPECIAL).items():
            if name == special.ADDITIONAL and not overrides.get(name):
                listed = list(config.get(name) or ())
                config[name] = listed + [token for token in value if token not in listed]
            elif not overrides.get(name):
                config[name] = {**value, "special": True} if isinstance(value, dict) else value
        added = _older_tokens(folder, config)
        if "tokenizer_object" in found:
            added.update(found["tokenizer_object"].get_added_tokens_decoder())
    by_content = {token.content: token for token in added.values()}
    for name in special.NAMES:
        if config.get(name) is not None:
            token = special.as_added_token(name, config[name])
            config[name] = by_content.get(token if isinstance(token, str) else token.content, token)
    if special.ADDITIONAL in config:
        config[special.ADDITIONAL] = [
            special.as_added_token(special.ADDITIONAL, token) for token in config[special.ADDITIONAL] or ()
        ]
    config["added_tokens_decoder"] = added
    ours = {*_SETTINGS, *special.NAMES, special.ADDITIONAL, *overrides}
    kept = {name: value for name, value in config.items() if name not in ours}
    return {**found, **{name: value for name, value in config.items() if name in ours}}, kept


def _token(value: Any) -> AddedToken:
    token = special.as_added_token("added_tokens_decoder", value)
    return AddedToken(token) if isinstance(token, str) else token


def _older_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """{id: token} of added_tokens.json."""
    given = [config.get(name) for name in special.NAMES] + list(config.get(special.ADDITIONAL) or ())
    specials = {value["content"] if isinstance(value, Mapping) else str(value) for value in given if value is not None}
    return {
        int(place): AddedToken(text, rstrip=False, lstrip=False, normalized=text not in specials, special=text in specials)
        for text, place in files.read_json(folder / files.ADDED).items()
    }


def writers(
    tokenizer: LongformerTokenizer, kept: Mapping[str, Any], legacy_format: bool | None, prefix: str | None
) -> tuple[dict[str, Callable[[Path], object]], list[str]]:
    """What writes each file of a tokenizer, and the names of files that would contradict them.

    Args:
        tokenizer: the tokenizer.
        kept: entries for tokenizer_config.json besides its own.
        legacy_format: True for vocab.json and merges.txt alone, False for tokenizer.json alone, None for all of them.
        prefix: of the names: "prefix-vocab.json".
    """
    start = f"{prefix}-" if prefix else ""
    added = tokenizer.added_tokens_decoder
    map_ = {name: _described(value) for name, value in tokenizer.special_tokens_map_extended.items()}
    texts = {files.CONFIG: files.as_json(_config(tokenizer, kept)), files.SPECIAL: files.as_json(map_)}
    if legacy_format is not False:
        texts |= vocabulary(tokenizer)
        beyond = {token.content: place for place, token in added.items() if place >= tokenizer.vocab_size}
        if beyond:
            texts[files.ADDED] = files.as_json(beyond)
    found = {start + name: files.text_writer(text) for name, text in texts.items()}
    if legacy_format is not True:
        base = tokenizer.backend_tokenizer
        found[start + files.TOKENIZER] = lambda path: base.save(str(path))
    # A tokenizer.json beside newer vocabulary files would be read instead of them, and the other way round.
    return found, [start + name for name in files.ALL if start + name not in found]


def vocabulary(tokenizer: LongformerTokenizer) -> dict[str, str]:
    """The texts of vocab.json and merges.txt."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.backend_tokenizer.model.save(folder)
        return {name: Path(folder, name).read_text(encoding="utf-8") for name in (files.VOCAB, files.MERGES)}


def _config(tokenizer: LongformerTokenizer, kept: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: getattr(tokenizer, name) for name in _SETTINGS if name != "added_tokens_decoder"}
    return {
        "extra_special_tokens": {},
        **kept,
        **{name: value for name, value in settings.items() if name not in _USUAL or value != _USUAL[name]},
        **dict.fromkeys(name for name in special.NAMES if getattr(tokenizer, name) is None),
        **tokenizer.special_tokens_map,
        "added_tokens_decoder": {str(place): token.__getstate__() for place, token in tokenizer.added_tokens_decoder.items()},
        "tokenizer_class": "LongformerTokenizer",
    }


def _described(value: Any) -> Any:
    """A token for special_tokens_map.json."""
    if isinstance(value, list):
        return [_described(token) for token in value]
    if isinstance(value, AddedToken):
        return {name: part for name, part in value.__getstate__().items() if name != "special"}
    return value
