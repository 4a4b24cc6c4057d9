"""Checkpoint directories: finding them, reading and writing their files. Nothing here knows what a Longformer is.

A read gives all tensors or raises.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from longformer_triton.model.atomic import UnfinishedSaveError, recover

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
LEGACY_NAME = "pytorch_model.bin"
_INDEX = ".index.json"
# The name of one of several files that hold the weights together.
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
# Arguments that say where a checkpoint is, all but the first for the hub alone.
PLACE_OPTIONS = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download")
# What to fetch from the hub, besides small files: weights in the format that is read first, or else the other.
_HUB_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_EXAMPLE = "allenai/longformer-base-4096"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message names the file, what is wrong with it, and what to do."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A checkpoint of which a file, or the directory itself, is not there."""


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The path that an argument of that name says.

    Raises:
        TypeError: it is neither a text nor a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: got {value!r}, expected a path, as a str or a pathlib.Path.")
    return Path(value)


def locate(
    name_or_path: str | os.PathLike[str],
    *,
    weights: bool = True,
    also: Iterable[str] = (),
    subfolder: str = "",
    **hub_options: Any,
) -> Path:
    """The directory of a checkpoint: the path itself, or the downloaded snapshot of a name on the hub.

    Args:
        name_or_path: a directory, or a name such as "allenai/longformer-base-4096".
        weights: whether to download the weights too, or config.json and its like alone.
        also: names of other files to download, besides JSON and text files.
        subfolder: of the directory or of the repository.
        hub_options: (revision, token, cache_dir, local_files_only ...) for ``huggingface_hub.snapshot_download``.

    Raises:
        CheckpointError: a file, or being written at this moment.
        MissingFileError: neither a directory nor something the hub gives.
    """
    if not isinstance(name_or_path, (str, os.PathLike)) or not str(name_or_path):
        raise TypeError(
            f"pretrained_model_name_or_path: got {name_or_path!r}, expected a directory, or a name such as {_EXAMPLE!r}."
        )
    folder = Path(name_or_path)
    if folder.is_dir():
        folder = folder / subfolder
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such directory (subfolder {subfolder!r} of {name_or_path}).")
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckpointError(f"{folder}: its files may not be read: get the permission, or name another directory.")
        try:
            recover(folder)
        except (UnfinishedSaveError, OSError) as error:
            raise CheckpointError(f"{folder}: a save was not finished, and cannot be undone: {error}") from error
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder}: is a file, expected the directory that holds {CONFIG_NAME} and {WEIGHTS_NAME}.")
    return _download(str(name_or_path), weights, tuple(also), subfolder, hub_options)


def _download(name: str, weights: bool, also: tuple[str, ...], subfolder: str, options: dict[str, Any]) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise MissingFileError(f"{name}: no such directory, and no name such as {_EXAMPLE!r} either.")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingFileError(
            f"{name}: no such directory, and names on the hub need huggingface_hub: pip install 'longformer-triton[hub]'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    inside = f"{subfolder}/" if subfolder else ""

    def fetch(*patterns: str) -> Path:
        allowed = [inside + pattern for pattern in ("*.json", "*.txt", *also, *patterns)]
        return Path(snapshot_download(name, allow_patterns=allowed, **options)) / subfolder

    try:
        folder = fetch(*_HUB_WEIGHTS[:1]) if weights else fetch()
        if weights and not list(folder.glob(_HUB_WEIGHTS[0])):
            folder = fetch(_HUB_WEIGHTS[1])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(f"{name}: no such directory, and the hub gave none: {error}") from error
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file, expected it in a checkpoint directory.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error}): the file is damaged, get it again.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}): get the permission, or the file again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a JSON object.")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, on the CPU: safetensors first, whole or in shards, then PyTorch's older files.

    Raises:
        CheckpointError: no weights there; a file missing, truncated, corrupt, or a pickle of anything but tensors.
    """
    for name in (WEIGHTS_NAME, WEIGHTS_NAME + _INDEX, LEGACY_NAME, LEGACY_NAME + _INDEX):
        path = folder / name
        if path.is_file():
            return _read_shards(path) if name.endswith(_INDEX) else _read_file(path)
    raise MissingFileError(f"{folder}: holds neither {WEIGHTS_NAME} nor {LEGACY_NAME}, whole or in shards with an index.")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        path.open("rb").close()  # of a file that may not be read, safetensors says that there is none
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file, though the index of the checkpoint names it.") from None
    except PermissionError:
        raise CheckpointError(f"{path}: may not be read: get the permission.") from None
    except pickle.UnpicklingError as error:
        # PyTorch's own message goes on to say how to run the code in the file; that stays out.
        raise CheckpointError(
            f"{path}: is damaged, or a pickle that holds more than tensors, which could execute code and is not read. Get the "
            "checkpoint as safetensors."
        ) from error
    except Exception as error:
        # Whatever a damaged file makes its reader stumble over.
        raise CheckpointError(f"{path}: cannot be read, truncated or damaged: {error!r}") from error
    fits = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not fits or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(
            f"{path}: holds a {type(tensors).__name__}, expected a mapping of names to tensors (a state_dict)."
        )
    return dict(tensors)


def _read_shards(index: Path) -> dict[str, Tensor]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index}: holds no weight_map, expected {{name of a tensor: file}}.")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(map(str, files.values()))):
        if Path(file).name != file:
            raise CheckpointError(f"{index}: names the file {file!r}, expected names in the same directory.")
        tensors.update(_read_file(index.parent / file))
    missing = sorted(set(files) - set(tensors))
    if missing:
        raise CheckpointError(f"{index}: names tensors that its files do not hold: {', '.join(missing[:5])}.")
    return tensors


def check_writable(state: Mapping[str, Tensor]) -> None:
    """Refuse anything but whole tensors, with values, by name.

    Raises:
        TypeError: no mapping of names to tensors.
        ValueError: some are shards (FSDP2), or on meta.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state_dict: got {type(state).__name__}, expected a mapping of names to tensors, or None.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kinds = f"{name!r}: {type(tensor).__name__}"
            raise TypeError(f"state_dict: got {{{kinds}}}, expected a mapping of names to tensors, or None.")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(
                f"state_dict: got {name} of which this process has a shard, expected whole ones: pass the result of "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict with StateDictOptions(full_state_dict=True)."
            )
        if tensor.is_meta:
            raise ValueError(
                f"state_dict: got {name} on meta, which has no values to save, expected tensors on a device: load the model "
                "with from_pretrained, or pass the state_dict that holds its values."
            )


def write_weights(tensors: Mapping[str, Tensor], max_shard_size: int | str) -> dict[str, Callable[[Path], object]]:
    """What writes each weights file: one, or shards of at most ``max_shard_size`` bytes with an index.

    Of several names for one tensor (tied weights) the first is kept, since safetensors holds each tensor once.
    """
    kept: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor.detach().contiguous()
    shards = list(_shards(kept, size_in_bytes(max_shard_size)))
    if len(shards) == 1:
        return {WEIGHTS_NAME: _saver(shards[0])}
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    total = sum(tensor.nbytes for tensor in kept.values())
    where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True) + "\n"
    writers: dict[str, Callable[[Path], object]] = {file: _saver(shard) for file, shard in zip(names, shards, strict=True)}
    return {**writers, WEIGHTS_NAME + _INDEX: lambda path: path.write_text(index)}


def _saver(tensors: dict[str, Tensor]) -> Callable[[Path], object]:
    def save(path: Path) -> None:
        # safetensors makes files that their owner alone may read; those of a checkpoint are for whom the user's umask says.
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
        # transformers refuses files without this entry.
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)

    return save


def _shards(tensors: Mapping[str, Tensor], limit: int) -> Iterable[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        if shard and filled + tensor.nbytes > limit:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += tensor.nbytes
    yield shard


def size_in_bytes(size: int | str, name: str = "max_shard_size") -> int:
    """A number of bytes from an int or a text such as "5GB", "200MiB" or, a mebibyte at least, "5000000".

    Args:
        size: what was given.
        name: of the argument, for the message.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", size.upper()) if isinstance(size, str) else None
    number: object = int(float(found[1]) * _UNITS[found[2]]) if found is not None else size
    # Whoever writes "24" means gigabytes more likely than bytes.
    if isinstance(number, str) and re.fullmatch(r"\d{7,}", number) and int(number) >= 2**20:
        number = int(number)
    if isinstance(number, float) and number.is_integer():  # 8e9
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    raise ValueError(f"{name}: got {size!r}, expected a number of bytes or a text such as '5GB' or '200MiB'.")


def stale_weights(folder: Path, written: Iterable[str]) -> list[str]:
    """Weights in ``folder`` that a reader could take for those about to be ``written``, or that are shards of them no more."""
    if not folder.is_dir():
        return []
    names = {path.name for path in folder.iterdir()} - set(written)
    return sorted(name for name in names if name in (WEIGHTS_NAME, WEIGHTS_NAME + _INDEX) or _SHARD.fullmatch(name))
