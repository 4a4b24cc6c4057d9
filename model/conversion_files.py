"""The files around a conversion: where the result may go, and what becomes of the tokenizer beside the source."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from longformer_triton.model.atomic import UnfinishedSaveError, recover
from longformer_triton.model.config import LongformerConfig
from longformer_triton.model.files import CONFIG_NAME, CheckpointError, read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
_SPECIAL, _ADDED, _WHOLE = "special_tokens_map.json", "added_tokens.json", "tokenizer.json"
_WORDS, _IDS = "vocab.txt", "vocab.json"
# Files that transformers writes for one tokenizer or the other; those that hold the vocabulary come first.
VOCABULARIES = (_WHOLE, _IDS, _WORDS, "sentencepiece.bpe.model", "spiece.model", "bpe.codes")
TOKENIZER_FILES = (*VOCABULARIES, "merges.txt", TOKENIZER_CONFIG, _SPECIAL, _ADDED)
# By which class transformers reads a kind's tokenizer. Where no file says so, it would go by the result's model_type.
_CLASSES = {
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "bert": "BertTokenizer",
}


def check_destination(destination: str | os.PathLike[str], source: Path, overwrite: bool) -> Path:
    """The directory to write to: a new or empty one, or with ``overwrite`` that of another Longformer.

    Raises:
        TypeError: no path.
        CheckpointError: a file, the source itself, or a directory that holds something which would be lost or mixed up.
    """
    if not isinstance(destination, (str, os.PathLike)) or not str(destination):
        raise TypeError(f"destination: got {destination!r}, expected a directory to write to, or None.")
    folder = Path(destination)
    standing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not standing.is_dir():
        raise CheckpointError(f"destination: {standing} is a file, expected a directory, or a name for a new one.")
    if not folder.exists():
        return folder
    if folder.samefile(source):
        raise CheckpointError(f"destination: {folder} is the source, which stays as it is: name another directory.")
    try:
        recover(folder)
    except (UnfinishedSaveError, OSError) as error:
        raise CheckpointError(f"destination: {folder}: a save was not finished, and cannot be undone: {error}") from error
    # Hidden files are notes of file systems and of version control.
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        return folder
    kind = read_json(folder / CONFIG_NAME).get("model_type") if CONFIG_NAME in found else None
    if kind != LongformerConfig.model_type:
        what = f"a checkpoint of model_type {kind!r}" if CONFIG_NAME in found else "files that are no checkpoint"
        raise CheckpointError(f"destination: {folder} holds {what} ({', '.join(found[:3])} ...): name a new directory.")
    if not overwrite:
        raise CheckpointError(
            f"destination: {folder} holds a Longformer already, perhaps a trained one: name a new directory, or replace it "
            "with overwrite=True (--overwrite)."
        )
    return folder


def tokenizer_writers(source: Path, entries: Mapping[str, Any], longest: int) -> dict[str, Callable[[Path], object]]:
    """{file: what writes it} of the tokenizer beside a source; none if it has no vocabulary.

    The files are copied, but for tokenizer_config.json, which says how long texts may be now and which class reads them.

    Args:
        source: its directory.
        entries: of its config.json.
        longest: tokens that a text may have.

    Raises:
        CheckpointError: tokenizer_config.json is damaged.
    """
    if not any((source / name).is_file() for name in VOCABULARIES):
        return {}
    settings = _read(source / TOKENIZER_CONFIG)
    settings.pop("max_len", None)
    settings["model_max_length"] = longest
    if not settings.get("tokenizer_class"):
        settings["tokenizer_class"] = entries.get("tokenizer_class") or _CLASSES[entries["model_type"]]
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    copied = [name for name in TOKENIZER_FILES if name != TOKENIZER_CONFIG and (source / name).is_file()]
    return {
        **{name: _copier(source / name) for name in copied},
        TOKENIZER_CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
    }


def separator(entries: Mapping[str, Any], source: Path) -> int | None:
    """The id of the token that separates the parts of a text, by which tasks find their global tokens; None if nobody says.

    config.json comes first, then the tokenizer's files. RoBERTa's tokenizers separate with the token that ends a text; BERT's
    configuration names no such token at all.
    """
    if entries.get("sep_token_id") is not None:
        return entries["sep_token_id"]
    is_bert = entries["model_type"] == "bert"
    token = _separator_token(source) or ("[SEP]" if is_bert else None)
    found = next((place for text, place in _vocabulary(source) if text == token), None) if token is not None else None
    if found is None and not is_bert:
        return entries.get("eos_token_id", LongformerConfig().eos_token_id)
    return found


def _separator_token(source: Path) -> str | None:
    for name in (TOKENIZER_CONFIG, _SPECIAL):
        token = _read(source / name).get("sep_token")
        if token is not None:
            return token["content"] if isinstance(token, dict) else token
    return None


def _vocabulary(source: Path) -> Iterator[tuple[str, int]]:
    """(token, id) of all that the tokenizer's files say; small files first."""
    for place, token in (_read(source / TOKENIZER_CONFIG).get("added_tokens_decoder") or {}).items():
        yield token["content"], int(place)
    yield from _read(source / _ADDED).items()
    if (source / _WORDS).is_file():
        lines = (source / _WORDS).read_text(encoding="utf-8", errors="replace").split("\n")
        yield from ((line.rstrip("\r"), number) for number, line in enumerate(lines))
    yield from _read(source / _IDS).items()
    whole = _read(source / _WHOLE)
    yield from ((token["content"], token["id"]) for token in whole.get("added_tokens") or ())
    pieces = (whole.get("model") or {}).get("vocab") or {}
    # Unigram models list [piece, score], in the order of ids.
    yield from pieces.items() if isinstance(pieces, dict) else ((piece[0], number) for number, piece in enumerate(pieces))


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda path: shutil.copyfile(source, path)
