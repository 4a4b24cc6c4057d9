"""Texts as rows of one length: cut into tokens once, kept on disk, and packed without regard to where a text ends.

All texts stand in one stream of tokens with ``</s>`` between two of them, and each row is the next ``seq_len - 2`` tokens of it
between ``<s>`` and ``</s>``: RoBERTa's FULL-SENTENCES (arXiv 1907.11692, section 4.2), but that rows may begin inside a
sentence. No token is lost: the last row is as short as what is left.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy

_TOKENS, _JOURNAL = "tokens.bin", "tokens.jsonl"
_FORMS = ("text", "lines", "jsonl")
# Characters that the tokenizer gets at once: enough for its threads, and a small loss if the process dies.
_AT_ONCE = 2_000_000


def documents(path: Path, form: str | None = None) -> Iterator[tuple[str, int]]:
    """The texts in a file, each with the bytes that it takes there.

    Args:
        path: of a file in UTF-8.
        form: "text": the file is one text; "lines": each line is one; "jsonl": each line is a JSON string, or an object with a
            "text". None: "jsonl" by the suffix ``.jsonl``, else "text". Lines are read one by one, a text as a whole.

    Raises:
        ValueError: it is not UTF-8, or a line no such JSON; the message says where.
    """
    chosen = form or ("jsonl" if path.suffix == ".jsonl" else "text")
    with path.open("rb") as file:
        for number, line in enumerate([file.read()] if chosen == "text" else file, start=1):
            where = str(path) if chosen == "text" else f"{path}:{number}"
            try:
                # Some programs begin a file with a byte order mark, which is no part of its text.
                text = _text_in(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, chosen)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            yield (text.rstrip("\r\n") if chosen == "lines" else text), len(line)


def _text_in(line: bytes, form: str) -> str:
    """The text in a line, or in a whole file; empty where a line of JSON is blank.

    Raises:
        ValueError: it is not UTF-8, or no such JSON.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"{line[error.start]:#04x} after {error.start} others"
        raise ValueError(f"got the byte {byte}, expected UTF-8: convert the file.") from None
    if form != "jsonl":
        return text
    if not text.strip():
        return ""
    wanted = 'expected a JSON string or an object with a "text"'
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"got no JSON ({error}), {wanted}.") from None
    if isinstance(content, dict) and "text" not in content:
        raise ValueError(f"got no 'text' among {sorted(content)}, {wanted}.")
    found = content["text"] if isinstance(content, dict) else content
    if not isinstance(found, str):
        raise ValueError(f"got {type(found).__name__}, {wanted}.")
    return found


def check_files(name: str, files: Sequence[Path], form: str | None) -> None:
    """Refuse files that are not there, and an unknown form.

    Raises:
        ValueError: so.
    """
    if form is not None and form not in _FORMS:
        raise ValueError(f"form: got {form!r}, expected one of {', '.join(_FORMS)}, or None.")
    for path in files:
        if not path.is_file():
            raise ValueError(f"{name}: got {path}, which is no file, expected texts in UTF-8.")


def tokenized(
    tokenizer: Any,
    files: Sequence[Path],
    folder: Path,
    form: str | None = None,
    advance: Callable[[int], object] = lambda count: None,  # noqa: ARG005 - the interface
) -> numpy.ndarray:
    """The stream of all texts, from ``folder`` if it is there already, else written there.

    It is a memory-mapped file: a corpus may be larger than memory. What a process that died has written is kept, and the rest
    added; of files that changed before all were done, those in front of the first changed one are not read again.

    Args:
        tokenizer: cuts texts into tokens; its ``eos_token_id`` separates them. Texts without tokens are left out.
        files: the texts, in order.
        folder: for ``tokens.bin`` (two or four bytes a token) and ``tokens.jsonl``, which says what it holds.
        form: of the files, as :func:`documents`.
        advance: called with the bytes of the files that were done.

    Returns:
        (tokens,) of uint16 or uint32, read-only.

    Raises:
        ValueError: ``folder`` holds the tokens of other texts or of another tokenizer, a file cannot be read, or there are no
            tokens at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = numpy.dtype("<u2" if len(tokenizer) <= 2**16 else "<u4")
    identity = _identity(tokenizer, files, form)
    journal, _ = _read_journal(folder / _JOURNAL)
    if journal and journal[0] != identity:
        journal = _carried_over(folder, journal, identity)
    state = journal[-1] if len(journal) > 1 else {"file": 0, "document": 0, "tokens": 0}
    if not state.get("complete"):
        state = _add(tokenizer, files, form, folder, dtype, identity, state, advance)
    if not state["tokens"]:
        raise ValueError(f"files: got {', '.join(map(str, files[:5]))} without a single token, expected texts.")
    return numpy.memmap(folder / _TOKENS, dtype, "r", shape=(state["tokens"],))


def _identity(tokenizer: Any, files: Sequence[Path], form: str | None) -> dict[str, Any]:
    """What the tokens follow from."""
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    stats = [(path, path.stat()) for path in files]
    return {
        "tokenizer": vocabulary,
        "separator": tokenizer.eos_token_id,
        "form": form,
        "files": [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of the journal up to one that was cut off, and the bytes that they take."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], len(whole)


def holds_tokens(folder: Path) -> bool:
    """Whether texts have been cut into tokens in ``folder``, be it a part of them."""
    journal, _ = _read_journal(folder / _JOURNAL)
    return _counts_tokens(journal)


def _counts_tokens(journal: list[dict[str, Any]]) -> bool:
    return len(journal) > 1 and journal[-1]["tokens"] > 0


def _carried_over(folder: Path, journal: list[dict[str, Any]], identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The journal, on the disk too, of what holds for the present texts: someone has repaired one of them, as we asked.

    Raises:
        ValueError: the tokens are complete, or follow from another tokenizer or form: they are someone's.
    """
    changed = sorted(key for key in identity if journal[0].get(key) != identity[key])
    if _counts_tokens(journal) and (journal[-1].get("complete") or changed != ["files"]):
        raise ValueError(
            f"{folder}: holds tokens of other texts ({', '.join(changed)} differ), expected those of this run: remove the "
            "folder, or take another."
        )
    pairs = zip(journal[0]["files"], identity["files"], strict=False)
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) if changed == ["files"] else 0
    kept = [identity, *(entry for entry in journal[1:] if entry.get("file", alike) < alike)]
    draft = folder / f".{_JOURNAL}.new"
    with draft.open("wb") as file:
        file.writelines(json.dumps(entry).encode() + b"\n" for entry in kept)
        _flush(file)
    draft.replace(folder / _JOURNAL)
    return kept


def _add(
    tokenizer: Any,
    files: Sequence[Path],
    form: str | None,
    folder: Path,
    dtype: numpy.dtype[Any],
    identity: dict[str, Any],
    state: dict[str, Any],
    advance: Callable[[int], object],
) -> dict[str, Any]:
    """Write what is missing. The journal never speaks of tokens that are not in the file yet."""
    _, known = _read_journal(folder / _JOURNAL)
    total = state["tokens"]
    with (folder / _TOKENS).open("ab") as tokens, (folder / _JOURNAL).open("ab") as journal:
        # Tokens that no line of the journal speaks of, and half a line.
        tokens.truncate(total * dtype.itemsize)
        journal.truncate(known)

        def note(entry: dict[str, Any]) -> None:
            _flush(tokens)
            journal.write(json.dumps(entry).encode() + b"\n")
            _flush(journal)

        if not known:
            note(identity)
        for place, path in enumerate(files):
            if place < state["file"]:
                advance(path.stat().st_size)
                continue
            done = state["document"] if place == state["file"] else 0
            for number, texts, size in _chunks(documents(path, form), done):
                rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
                for row in filter(None, rows):
                    parts = [tokenizer.eos_token_id, *row] if total else row
                    tokens.write(numpy.asarray(parts, dtype).tobytes())
                    total += len(parts)
                note({"file": place, "document": number, "tokens": total})
                advance(size)
        note({"complete": True, "tokens": total})
    return {"complete": True, "tokens": total}


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _chunks(found: Iterator[tuple[str, int]], done: int) -> Iterator[tuple[int, list[str], int]]:
    """(documents so far, texts, bytes) of about the same size; of the first ``done`` texts only the bytes are told."""
    texts: list[str] = []
    number = characters = size = 0
    for number, (text, length) in enumerate(found, start=1):
        size += length
        if number > done:
            texts.append(text)
            characters += len(text)
        if characters >= _AT_ONCE:
            yield number, texts, size
            texts, characters, size = [], 0, 0
    if number:
        yield number, texts, size


class PackedRows:
    """The rows of a stream of tokens: row i is ``<s>``, its ``seq_len - 2`` tokens, ``</s>``; the last one is shorter.

    Args:
        tokens: (tokens,), any integers; read when a row is asked for.
        seq_len: tokens in a row, both ends included; 3 at least.
        bos_token_id, eos_token_id: the ends.
    """

    def __init__(self, tokens: numpy.ndarray, seq_len: int, bos_token_id: int, eos_token_id: int) -> None:
        if seq_len < 3:
            raise ValueError(f"seq_len: got {seq_len}, expected 3 at least: <s>, a token, </s>.")
        self.tokens, self.inside = tokens, seq_len - 2
        self.ends = (bos_token_id, eos_token_id)

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / self.inside)

    def __getitem__(self, row: int) -> numpy.ndarray:
        """(at most seq_len,) of int64.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row: got {row}, expected 0 to {len(self) - 1}.")
        inside = self.tokens[row * self.inside : (row + 1) * self.inside].astype(numpy.int64)
        return numpy.concatenate([self.ends[:1], inside, self.ends[1:]])
