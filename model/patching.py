"""These kernels under models of transformers, in place: :func:`patch_transformers` and its inverse.

What patched modules compute is in :mod:`longformer_triton.model.patched`; here is which models have them, and the exchange.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, TypeVar

from torch import nn

from longformer_triton.model.base import LongformerPreTrainedModel

_Model = TypeVar("_Model", bound=nn.Module)

_Classes = dict[type[nn.Module], type[nn.Module]]

_OLDEST = (4, 56)
_EXPECTED = (
    "transformers' LongformerModel, LongformerForMaskedLM, LongformerForSequenceClassification, LongformerForMultipleChoice, "
    "LongformerForTokenClassification or LongformerForQuestionAnswering, or a model with transformers' LEDEncoder, such as "
    "LEDModel or LEDForConditionalGeneration"
)


def patch_transformers(model: _Model) -> _Model:
    """Let a Longformer of transformers, or the encoder of its LED, compute with this package's kernels, in place.

    Outputs, losses and gradients are those of the unpatched model to rounding, ``attentions`` and ``global_attentions``
    included; time and memory are linear in length, and short texts are not padded to the window. Weights, state dicts,
    checkpoints, deep copies and optimizers stay as they are: what changes is the class of a few modules inside this one model,
    and no class itself. Patching twice is the same as once. A pickle of a patched model needs this package to load: unpatch
    first for one that does not.

    ``model.config.max_globals``, if you set it, bounds the global tokens of a text, so that their number need not be read from
    the device (:meth:`AttentionPattern.from_masks`). Patch first, then wrap: ``fully_shard``, device maps, ``torch.compile``.

    Args:
        model: a Longformer of transformers 4.56 or newer, with any head; or an LED, of which the encoder is patched.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: it is another kind of model.
        NotImplementedError: a module inside is not as transformers made it, or transformers is too old. Nothing was changed.

    Example:
        >>> import torch
        >>> from transformers import LongformerConfig, LongformerModel
        >>> from longformer_triton import patch_transformers
        >>> sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, attention_window=64)
        >>> model = patch_transformers(LongformerModel(LongformerConfig(**sizes)))
        >>> model(torch.randint(3, 100, (1, 100))).last_hidden_state.shape
        torch.Size([1, 100, 16])
    """
    patched = _patched_for(model)
    return _exchange(
        model, patched, *({kind.original(): kind for kind in kinds} for kinds in (patched.CLASSES, patched.FASTER))
    )


def unpatch_transformers(model: _Model) -> _Model:
    """Undo :func:`patch_transformers`: modules are of transformers' classes again. An unpatched model stays as it is.

    Args:
        model: as there.

    Returns:
        ``model`` itself.

    Raises:
        TypeError, NotImplementedError: as there.
    """
    patched = _patched_for(model)
    return _exchange(
        model, patched, *({kind: kind.original() for kind in kinds} for kinds in (patched.CLASSES, patched.FASTER))
    )


def _patched_for(model: nn.Module) -> Any:
    """The module with the patched classes, if ``model`` is of a kind that has them."""
    name = type(model).__name__
    if isinstance(model, LongformerPreTrainedModel):
        raise TypeError(f"model: got {name} of longformer_triton, which already runs on these kernels; expected {_EXPECTED}.")
    if not isinstance(model, nn.Module) or "transformers" not in sys.modules:
        raise TypeError(f"model: got {name}, expected {_EXPECTED}.")
    version = sys.modules["transformers"].__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise NotImplementedError(
            f"model: got {name} of transformers {version}, expected {'.'.join(map(str, _OLDEST))} or newer: upgrade it."
        )
    patched = importlib.import_module("longformer_triton.model.patched")
    inside = [path for path, module in model.named_modules() if isinstance(module, patched.FAMILIES)]
    if not isinstance(model, patched.FAMILIES):
        hint = f" Its {inside[0]} is one: pass that." if inside else ""
        raise TypeError(f"model: got {name}, expected {_EXPECTED}.{hint}")
    if not any(isinstance(module, patched.ENCODERS) for module in model.modules()):
        raise TypeError(f"model: got {name}, which has no encoder with Longformer's attention, expected {_EXPECTED}.")
    return patched


def _exchange(model: _Model, patched: Any, classes: _Classes, faster: _Classes) -> _Model:
    """Give each module whose class is a key the class at it; refuse first whatever would not compute as its class says.

    Of ``faster``, modules that would not are left alone.
    """
    exchanged = {*classes, *classes.values()}
    watched = (*exchanged, *patched.PASSING)
    for path, module in model.named_modules():
        if isinstance(module, watched):
            _check_exchange(f"model.{path}" if path else "model", module, exchanged, patched)
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
        elif type(module) in faster and "forward" not in vars(module):
            module.__class__ = faster[type(module)]
    return model


def _check_exchange(place: str, module: nn.Module, exchanged: set[type[nn.Module]], patched: Any) -> None:
    name = type(module).__name__
    if type(module) not in exchanged and type(module) not in patched.PASSING:
        raise NotImplementedError(
            f"{place}: got {name}, a subclass of transformers' class, whose own computation would be lost; expected that class "
            "itself. fully_shard makes such subclasses: patch before it, and leave the model patched after it."
        )
    if type(module) in exchanged and "forward" in vars(module):
        raise NotImplementedError(
            f"{place}: got {name} with a forward of its own, which would go on calling the old one; expected none. Hooks of "
            "accelerate (device_map) are such: call accelerate.hooks.remove_hook_from_submodules(model) before, "
            "accelerate.dispatch_model(model, device_map) after."
        )
    if isinstance(module, patched.ENCODERS):
        attentions = sum(type(inner) in exchanged for inner in module.modules()) - 1
        layers = next(len(child) for child in module.children() if isinstance(child, nn.ModuleList))
        if attentions != layers:
            raise NotImplementedError(
                f"{place}: got {layers} layers with {attentions} attention modules of transformers, expected one in each: "
                "modules in their place expect masks that patching does away with."
            )
