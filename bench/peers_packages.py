"""Windows in packages that need a GPU and an installation of their own: NATTEN, xformers, flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor

from longformer_triton.bench.cases import Case, Inputs
from longformer_triton.bench.peers import half_on_gpus
from longformer_triton.bench.provider import (
    DILATION,
    DROPOUT,
    GLOBALS,
    GRAPH,
    GROUPED,
    PADDING,
    Provider,
    Run,
    installed_version,
)


class Package(Provider):
    """A provider from a package, which its title names with the version. Layout: (batch, seq_len, heads, head_dim)."""

    package: str
    distribution: str
    what: str

    def __init__(self) -> None:
        self.version = installed_version(self.package, self.distribution)
        self.title = f"{self.distribution} {self.version}, {self.what}" if self.version else f"{self.distribution}, {self.what}"

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """The package, a GPU, and half precision."""
        return f"{self.distribution} is not installed" if self.version is None else half_on_gpus(case, device)

    @staticmethod
    def states(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value in the packages' layout, views of the leaves."""
        query, key, value = (
            inputs.packed[name].unflatten(-1, (-1, inputs.case.head_dim)) for name in ("query", "key", "value")
        )
        return query, key, value


class Natten(Package):
    """Neighbourhood attention in one dimension (Hassani et al., arXiv 2204.07143)."""

    name, package, distribution, what = "natten", "natten", "natten", "na1d"
    note = "shifts its windows at the ends of a text, so that every query sees as many keys; only the rows between are checked"
    lacks = frozenset({GLOBALS, PADDING, DROPOUT, GROUPED, GRAPH})
    edges_shift = True

    def why_not_here(self, case: Case, device: torch.device) -> str | None:
        """Its kernel, stretched by the dilation, has to fit into the text."""
        kernel = sum(case.band) + 1
        if kernel * case.step > case.seq_len:
            return "a text shorter than the window"
        return super().why_not_here(case, device)

    def prepare(self, inputs: Inputs) -> Run:
        """``kernel_size`` is the number of keys that a query sees, itself included."""
        from natten.functional import na1d

        case = inputs.case
        query, key, value = self.states(inputs)
        options = {"kernel_size": sum(case.band) + 1, "dilation": case.step, "is_causal": bool(case.is_causal)}
        return lambda: na1d(query, key, value, **options).transpose(1, 2)


class Xformers(Package):
    """memory_efficient_attention with a bias that says how far a query sees."""

    name, package, distribution, what = "xformers", "xformers", "xformers", "memory-efficient, local bias"
    lacks = frozenset({GLOBALS, PADDING, DILATION, GROUPED, GRAPH})

    def prepare(self, inputs: Inputs) -> Run:
        """Query and key have the same length, so that both corners from which its windows may be counted are one."""
        from xformers.ops import memory_efficient_attention
        from xformers.ops.fmha.attn_bias import LocalAttentionFromBottomRightMask

        left, right = inputs.case.band
        bias = LocalAttentionFromBottomRightMask(window_left=left, window_right=right)
        query, key, value = self.states(inputs)
        share = inputs.case.dropout / 100
        return lambda: memory_efficient_attention(query, key, value, attn_bias=bias, p=share).transpose(1, 2)


class FlashAttention(Package):
    """flash_attn_func with window_size, both ends of which are inclusive."""

    name, package, distribution, what = "flash-attn", "flash_attn", "flash-attn", "with a window"
    lacks = frozenset({GLOBALS, PADDING, DILATION, GRAPH})

    def prepare(self, inputs: Inputs) -> Run:
        """Grouped-query heads need no option."""
        from flash_attn import flash_attn_func

        case = inputs.case
        query, key, value = self.states(inputs)
        options = {"dropout_p": case.dropout / 100, "window_size": case.band, "causal": bool(case.is_causal)}
        return lambda: flash_attn_func(query, key, value, **options).transpose(1, 2)


def package_peers() -> list[Provider]:
    """One of each, in the order of the tables."""
    return [Natten(), Xformers(), FlashAttention()]
