"""From a checkpoint directory to a model: names matched, shapes compared, then everything put in place at once."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longformer_triton.kernels import backends
from longformer_triton.model.attention import GLOBAL_PROJECTIONS
from longformer_triton.model.config import LongformerConfig, check_config
from longformer_triton.model.files import CONFIG_NAME, PLACE_OPTIONS, CheckpointError, locate, read_weights
from longformer_triton.model.initialization import initialise
from longformer_triton.model.settings import drop_without_effect, dtype_of

if TYPE_CHECKING:
    from longformer_triton.model.base import LongformerPreTrainedModel

_log = logging.getLogger(__name__)
# Ways of transformers to spread layers over devices.
_SPLITS = ("balanced", "balanced_low_0", "sequential")
# Encoders under other names: AllenAI's checkpoints, and RoBERTa's, whose layout is the same.
_PREFIXES = ("longformer.", "roberta.")
# Names in files that were converted from TensorFlow.
_OLDER_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Buffers that older versions stored, and that are computed now.
_OBSOLETE = ("position_ids", "token_type_ids")
_LISTED = 8


@dataclasses.dataclass
class Report:
    """How a checkpoint and a model fit: parameters that began anew, tensors that nothing took, and shapes that differ."""

    new: list[str]
    copied: list[str]
    unused: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    def as_info(self) -> dict[str, list[Any]]:
        """Under the names of transformers' ``output_loading_info``."""
        return {
            "missing_keys": [*self.new, *self.copied],
            "unexpected_keys": self.unused,
            "mismatched_keys": self.mismatched,
        }

    def shapes(self) -> list[str]:
        """The names of parameters of another shape, each with both."""
        return [f"{name} ({theirs} there, {ours} here)" for name, theirs, ours in self.mismatched]

    def as_text(self) -> str:
        """One line for each kind that there is."""
        kinds = (
            ("new, to be trained", self.new),
            ("copied from the local projections", self.copied),
            ("in the checkpoint, not used", self.unused),
            ("of another shape, so new", self.shapes()),
        )
        return "\n".join(f"  {what}: {_listed(names)}" for what, names in kinds if names)


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def load(
    model_class: type[LongformerPreTrainedModel],
    name_or_path: str | Path,
    config: LongformerConfig | str | os.PathLike[str] | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | int | None,
    *,
    ignore_mismatched_sizes: bool,
    options: dict[str, Any],
) -> tuple[Any, Report]:
    """(model in evaluation mode, report); see :meth:`LongformerPreTrainedModel.from_pretrained`."""
    options = dict(options)
    older = options.pop("torch_dtype", None)
    dtype = older if dtype is None else dtype
    device = _whole_device(options.pop("device_map", None), device)
    place = backends.present("cpu" if device is None else device)  # before anything is read
    if options.get("use_safetensors") is False:
        raise NotImplementedError(
            "use_safetensors: got False, expected True or None: PyTorch's older files are read where there are no safetensors. "
            "Leave it out, and where there are both, move the safetensors away."
        )
    drop_without_effect(options)
    place_options = {name: options.pop(name) for name in PLACE_OPTIONS if name in options}
    folder = locate(name_or_path, **place_options)
    if isinstance(config, (str, os.PathLike)):
        is_file = Path(config).is_file()
        path = Path(config) if is_file else locate(config, weights=False, **place_options) / CONFIG_NAME
        config = LongformerConfig.from_json_file(path)
    in_constructor = [name for name in inspect.signature(model_class).parameters if name != "config"]
    arguments = {name: options.pop(name) for name in in_constructor if name in options}
    config = _configuration(folder, config, options)
    tensors = read_weights(folder)
    model, report = assemble(
        model_class, config, tensors, folder, dtype, place, ignore_mismatched_sizes=ignore_mismatched_sizes, **arguments
    )
    text = report.as_text()
    if text:
        _log.warning("%s from %s:\n%s", model_class.__name__, folder, text)
    return model, report


def assemble(
    model_class: type[LongformerPreTrainedModel],
    config: LongformerConfig,
    tensors: dict[str, Tensor],
    folder: Path,
    dtype: torch.dtype | str | None,
    device: torch.device | str = "cpu",
    *,
    ignore_mismatched_sizes: bool = False,
    **arguments: Any,
) -> tuple[Any, Report]:
    """(model in evaluation mode, report) from the tensors of a checkpoint.

    Args:
        model_class: of the model.
        config: of the model, kept by reference.
        tensors: {name: tensor}; the model gets copies.
        folder: where they are from, for messages.
        dtype, device, ignore_mismatched_sizes: as in :meth:`LongformerPreTrainedModel.from_pretrained`.
        arguments: of the constructor.

    Raises:
        CheckpointError: no tensor belongs to the model, or some are of another shape.
    """
    model = _skeleton(model_class, config, arguments)
    named = {_renamed(name, model): tensor for name, tensor in tensors.items() if name.split(".")[-1] not in _OBSOLETE}
    report, taken = _compare(model, named)
    if not taken:
        raise CheckpointError(f"{folder}: none of its {len(tensors)} tensors has a name of {model_class.__name__}.")
    if report.mismatched and not ignore_mismatched_sizes:
        raise CheckpointError(
            f"{folder}: parameters of another shape than the configuration's: {_listed(report.shapes())}.\n"
            "Correct the configuration, or pass ignore_mismatched_sizes=True to begin them anew."
        )
    _fill(model, taken, report, _dtype(dtype, config, taken), device)
    return model.eval(), report


def _whole_device(device_map: Any, device: torch.device | str | int | None) -> torch.device | str | int | None:
    """The one device that ``device_map`` says; "auto" is a GPU if there is one, unless ``device`` says otherwise."""
    if device_map is None:
        return device
    if device_map == "auto":
        return backends.best_device() if device is None else device
    if isinstance(device_map, dict) and list(device_map) == [""]:  # transformers' way to say: all layers
        device_map = device_map[""]
    if not isinstance(device_map, (str, int, torch.device)) or device_map in _SPLITS:
        raise NotImplementedError(
            f"device_map: got {device_map!r}, expected 'auto' or one device for all layers, such as 'cuda:0': models are not "
            "split here."
        )
    try:
        return backends.present(device_map)
    except ValueError as error:
        raise ValueError(str(error).replace("device", "device_map", 1)) from None


def _skeleton(
    model_class: type[LongformerPreTrainedModel], config: LongformerConfig, arguments: dict[str, Any]
) -> LongformerPreTrainedModel:
    """A model to fill. Ours are built on the meta device, as names and shapes: nothing is drawn that is then replaced.

    A subclass may have buffers, or compute in its constructor, which the meta device cannot.
    """
    if not model_class.__module__.startswith(f"{__package__.partition('.')[0]}."):
        return model_class(config, **arguments)
    with torch.device("meta"):
        return model_class(config, **arguments)


def _configuration(folder: Path, config: LongformerConfig | None, overrides: dict[str, Any]) -> LongformerConfig:
    fields = {*inspect.signature(LongformerConfig).parameters, "num_labels"} - {"unknown"}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise TypeError(
            f"{', '.join(unknown)}: got unexpected arguments, expected fields of LongformerConfig, arguments of the "
            f"constructor, or {', '.join(PLACE_OPTIONS)}."
        )
    if config is None:
        return LongformerConfig.from_pretrained(folder, **overrides)
    check_config(config)
    # A copy: what becomes of this model must not reach the caller's, or another model's, configuration.
    return LongformerConfig.from_dict(config.to_dict(), **overrides)


def modern_name(name: str) -> str:
    """The name that PyTorch's layer norms give a tensor."""
    for older, newer in _OLDER_NORMS.items():
        if name.endswith(older):
            return name.removesuffix(older) + newer
    return name


def _renamed(name: str, model: LongformerPreTrainedModel) -> str:
    """The name that a checkpoint's tensor has in ``model``: heads hold the encoder under a prefix, the encoder has none."""
    name = modern_name(name)
    head_prefix = f"{model.base_model_prefix}."
    has_head = model.base_model is not model
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return (head_prefix if has_head else "") + name.removeprefix(prefix)
    is_encoders = name.split(".", maxsplit=1)[0] in ("embeddings", "encoder", "pooler")
    return head_prefix + name if has_head and is_encoders else name


def _compare(model: LongformerPreTrainedModel, tensors: dict[str, Tensor]) -> tuple[Report, dict[str, Tensor]]:
    wanted = model.state_dict()
    mismatched = [
        (name, tuple(tensors[name].shape), tuple(wanted[name].shape))
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    wrong = {name for name, *_ in mismatched}
    taken = {name: tensors[name] for name in wanted if name in tensors and name not in wrong}
    twins = _tied(model)
    missing = [name for name in wanted if name not in tensors and not any(twin in tensors for twin in twins.get(name, ()))]
    copied = [name for name in missing if _local_name(name) in taken]
    new = [name for name in missing if name not in copied]
    return Report(new, copied, [name for name in tensors if name not in wanted], mismatched), taken


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """{name: the other names of the same parameter}."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: [other for other in group if other != name] for group in names.values() for name in group}


def _local_name(name: str) -> str | None:
    """``...self.query.weight`` for ``...self.query_global.weight``; None for anything else."""
    for projection in GLOBAL_PROJECTIONS:
        if f".self.{projection}." in name:
            return name.replace(projection, projection.removesuffix("_global"))
    return None


def _dtype(requested: torch.dtype | str | None, config: LongformerConfig, tensors: dict[str, Tensor]) -> torch.dtype:
    if requested == "auto":
        floating = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
        return config.dtype or next(floating, torch.float32)
    chosen = dtype_of(requested) or torch.float32
    if not chosen.is_floating_point:
        raise ValueError(f"dtype: got {chosen}, expected a floating-point dtype, such as torch.float32 or torch.bfloat16.")
    return chosen


def _fill(
    model: LongformerPreTrainedModel, taken: dict[str, Tensor], report: Report, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Give every parameter its storage and its value; of a subclass, the buffers too."""
    model.config.dtype = dtype
    state = {
        name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in taken.items()
    }
    state |= {name: state[local].clone() for name in report.copied if (local := _local_name(name)) is not None}
    twins = _tied(model)
    for name, tensor in list(state.items()):
        state.update(dict.fromkeys((twin for twin in twins[name] if twin not in state), tensor))
    begun = {name: tensor for name, tensor in model.state_dict().items() if name not in state}
    on_meta = [name for name, tensor in begun.items() if tensor.is_meta]
    state |= {name: torch.empty(begun[name].shape, dtype=dtype, device=device) for name in on_meta}
    model.load_state_dict({**begun, **state}, assign=True)
    initialise(model, on_meta, model.config.initializer_range)
    model.tie_weights()
    # What a subclass's constructor made is where and as it made it.
    model.to(device=device, dtype=dtype)
