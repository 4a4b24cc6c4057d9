"""First values of parameters: of a new model, of what a checkpoint lacks, and of rows that a table gains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from longformer_triton.kernels.layout import ceil_div


@torch.no_grad()
def initialise(model: nn.Module, names: Iterable[str], std: float) -> None:
    """Give the named parameters the values they have in a new model.

    Weights of dense layers and embeddings are drawn from N(0, std); biases, and rows of padding, are zero; layer norms are the
    identity. Parameters of other modules, which a subclass may have, keep what their constructor gave them.
    """
    modules = dict(model.named_modules())
    for name in names:
        owner, _, kind = name.rpartition(".")
        module = modules[owner]
        parameter = module.get_parameter(kind)
        if isinstance(module, nn.LayerNorm):
            parameter.fill_(1.0 if kind == "weight" else 0.0)
        elif kind == "bias":
            parameter.zero_()
        elif kind == "weight" and isinstance(module, (nn.Linear, nn.Embedding)):
            parameter.normal_(0.0, std)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                parameter[module.padding_idx].zero_()


def resized_rows(owner: nn.Embedding | nn.Linear, size: int, std: float | None, *, name: str = "weight") -> None:
    """Cut a parameter of ``owner`` to ``size`` rows, or lengthen it; the owner's size follows.

    New rows are drawn from N(0, std), or are copies of the mean row if ``std`` is None.
    """
    old = owner.get_parameter(name)
    new = old.new_empty((size, *old.shape[1:]))
    kept = min(size, old.shape[0])
    with torch.no_grad():
        new[:kept] = old[:kept]
        if std is None:
            new[kept:] = old.float().mean(0).to(old.dtype)
        else:
            new[kept:].normal_(0.0, std)
    _replace(owner, name, old, new)
    if isinstance(owner, nn.Embedding):
        owner.num_embeddings = size
    else:
        owner.out_features = size


def tiled_positions(table: nn.Embedding, size: int, first: int) -> None:
    """Give a position table ``size`` rows: the first ``first`` as they are, then the others as often as they fit."""
    old = table.weight
    learned = old.detach()[first:]
    repeats = ceil_div(size - first, learned.shape[0])
    new = torch.cat((old.detach()[:first], learned.repeat(repeats, 1)[: size - first]))
    _replace(table, "weight", old, new)
    table.num_embeddings = size


def _replace(owner: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    setattr(owner, name, nn.Parameter(new, requires_grad=old.requires_grad))
