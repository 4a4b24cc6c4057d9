"""The files of a tokenizer: finding them, in a directory or on the hub, reading them, and replacing them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

VOCAB, MERGES, TOKENIZER = "vocab.json", "merges.txt", "tokenizer.json"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ALL = (VOCAB, MERGES, TOKENIZER, CONFIG, SPECIAL, ADDED)
_EXAMPLE = "allenai/longformer-base-4096"


class TokenizerFileError(ValueError):
    """A tokenizer that cannot be read; the message names the file, what is wrong with it, and what to do."""


class MissingTokenizerFileError(TokenizerFileError, FileNotFoundError):
    """A tokenizer of which a file, or the directory itself, is not there."""


def locate(name_or_path: str | os.PathLike[str], subfolder: str = "", **hub_options: Any) -> Path:
    """The directory of a tokenizer: the path itself, or the downloaded snapshot of a name on the hub.

    Args:
        name_or_path: a directory, or a name such as "allenai/longformer-base-4096".
        subfolder: of the directory or of the repository.
        hub_options: (revision, token, cache_dir, local_files_only ...) for ``huggingface_hub.snapshot_download``.

    Raises:
        TokenizerFileError: it is a file.
        MissingTokenizerFileError: neither a directory nor something the hub gives.
    """
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path):
        raise TypeError(
            f"pretrained_model_name_or_path: got {name_or_path!r}, expected a directory, or a name such as {_EXAMPLE!r}."
        )
    folder = Path(name_or_path)
    if folder.is_dir():
        folder = folder / subfolder
        if not folder.is_dir():
            raise MissingTokenizerFileError(f"{folder}: no such directory (subfolder {subfolder!r} of {name_or_path}).")
        return folder
    if folder.exists():
        raise TokenizerFileError(
            f"{folder}: is a file, expected the directory that holds {VOCAB} and {MERGES}, or {TOKENIZER}. For single files: "
            "LongformerTokenizer(vocab_file=..., merges_file=...) or LongformerTokenizer(tokenizer_file=...)."
        )
    return _download(str(name_or_path), subfolder, hub_options)


def _download(name: str, subfolder: str, options: dict[str, Any]) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise MissingTokenizerFileError(f"{name}: no such directory, and no name such as {_EXAMPLE!r} either.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingTokenizerFileError(
            f"{name}: no such directory, and names on the hub need huggingface_hub: pip install 'longformer-triton[hub]'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"{subfolder}/{file}" if subfolder else file for file in ALL]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **options)) / subfolder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingTokenizerFileError(f"{name}: no such directory, and the hub gave none: {error}") from error


def vocabulary_files(folder: Path) -> dict[str, str]:
    """The constructor's arguments for the vocabulary in ``folder``: tokenizer.json if it is there, else the two older files.

    Raises:
        MissingTokenizerFileError: neither is complete.
    """
    if (folder / TOKENIZER).is_file():
        return {"tokenizer_file": str(folder / TOKENIZER)}
    lacking = [name for name in (VOCAB, MERGES) if not (folder / name).is_file()]
    if lacking:
        raise MissingTokenizerFileError(
            f"{folder}: holds no {TOKENIZER}, and no {' nor '.join(lacking)}, expected that or both."
        )
    return {"vocab_file": str(folder / VOCAB), "merges_file": str(folder / MERGES)}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if there is no such file.

    Raises:
        TokenizerFileError: it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise TokenizerFileError(f"{path}: is no JSON ({error}): the file is damaged, get it again.") from error
    if not isinstance(content, dict):
        raise TokenizerFileError(f"{path}: holds a {type(content).__name__}, expected a JSON object.")
    return content


def as_json(content: Mapping[str, Any]) -> str:
    """The text of a JSON file, as transformers writes it."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def text_writer(text: str) -> Callable[[Path], object]:
    """What writes a text to the path it is given."""
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


def replace(folder: Path, writers: Mapping[str, Callable[[Path], object]], remove: Iterable[str] = ()) -> None:
    """Write files beside those that are there, complete and flushed, and only then exchange all of them.

    If writing or exchanging fails, the old files are there again, all of them.

    Args:
        folder: made if it is not there.
        writers: {name: function that writes the file to the path it is given}.
        remove: names of files that go when the new ones come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    drafts = {name: folder / f".{name}.{token}.new" for name in writers}
    backups = {name: folder / f".{name}.{token}.old" for name in (*writers, *remove) if (folder / name).exists()}
    try:
        for name, draft in drafts.items():
            writers[name](draft)
            _flush(draft)
        for name, backup in backups.items():
            _keep(folder / name, backup)
        try:
            for name, draft in drafts.items():
                draft.replace(folder / name)
            for name in set(backups) - set(writers):
                (folder / name).unlink()
        except BaseException:
            for name in {*writers, *backups}:
                if name in backups:
                    backups[name].replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            raise
    finally:
        for path in (*drafts.values(), *backups.values()):
            path.unlink(missing_ok=True)


def _keep(path: Path, backup: Path) -> None:
    """Give a file a second name, so that its own is never vacant; a copy where file systems know no second names."""
    with contextlib.suppress(OSError, NotImplementedError):
        os.link(path, backup)
        return
    shutil.copy2(path, backup)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
