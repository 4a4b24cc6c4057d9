"""Replacing several files of a directory as one: after a crash at any moment, the old ones are all there, or the new ones."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

# While files change places, this one says which backups stand for which files. Removing it is what commits.
_JOURNAL = ".saving.json"


class UnfinishedSaveError(RuntimeError):
    """Another process is changing the files of a directory at this moment."""


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]], remove: Iterable[str] = ()) -> None:
    """Write files, and take others away, so that a reader finds all of the old state or all of the new.

    New files are complete and flushed to disk under other names before an old one moves. Then the old ones become backups and
    the new ones take their names; if that is cut short, an exception undoes it at once, and the death of the process is undone
    by the next :func:`recover`, which reading and writing begin with.

    Args:
        folder: made if it is not there.
        writers: {name: function that writes the file to the path it is given}.
        remove: names of files that go when the new ones come.

    Raises:
        ValueError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_directory: got {folder}, which is a file, expected a folder, or a name that is free.")
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    _clean(folder)
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    drafts = {folder / name: folder / f".{name}.{token}.new" for name in writers}
    journal = folder / f".saving.{token}.new"
    old = [name for name in (*writers, *remove) if (folder / name).exists()]
    backups = {name: f".{name}.{token}.old" for name in old}
    try:
        for path, draft in drafts.items():
            writers[path.name](draft)
            flush(draft)
        entries = {"process": os.getpid(), "host": socket.gethostname(), "backups": backups, "new": sorted(writers)}
        journal.write_text(json.dumps(entries))
        flush(journal)
        journal.replace(folder / _JOURNAL)
        try:
            for name, backup in backups.items():
                (folder / name).replace(folder / backup)
            for path, draft in drafts.items():
                draft.replace(path)
            flush(folder)
            (folder / _JOURNAL).unlink()
        except BaseException:
            _undo(folder, backups, writers)
            raise
    finally:
        for draft in (*drafts.values(), journal):
            draft.unlink(missing_ok=True)
    for backup in backups.values():
        (folder / backup).unlink(missing_ok=True)


def recover(folder: Path) -> None:
    """Undo a save whose process died while files changed places; do nothing where there is none.

    Raises:
        UnfinishedSaveError: that process, on this host, is alive.
    """
    journal = folder / _JOURNAL
    if not journal.exists():
        return
    entries = json.loads(journal.read_text())
    process = entries["process"]
    if entries["host"] == socket.gethostname() and process != os.getpid() and _is_alive(process):
        raise UnfinishedSaveError(f"{folder}: process {process} is saving there at this moment; try again when it is done.")
    _undo(folder, entries["backups"], entries["new"])


def _clean(folder: Path) -> None:
    """Remove drafts and backups that processes of this host left behind when they died."""
    ours = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}\.(new|old)")
    for path in folder.iterdir():
        found = ours.fullmatch(path.name)
        if found and not _is_alive(int(found[1])):
            path.unlink(missing_ok=True)


def _undo(folder: Path, backups: Mapping[str, str], new: Iterable[str]) -> None:
    """Put backups in place again. What was never moved has none, and stays; what was not there before goes."""
    for name in new:
        if name not in backups:
            (folder / name).unlink(missing_ok=True)
    for name, backup in backups.items():
        if (folder / backup).exists():
            (folder / backup).replace(folder / name)
    flush(folder)
    (folder / _JOURNAL).unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Make sure that a file, or the names in a directory, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
