"""Whether a module is nothing but its own forward pass, so that computing the same another way passes nothing over."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as global_hooks


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is a ``kind`` without a hook or a forward of its own. (Adapters, parametrisations: subclasses.)"""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    is_bare = type(module) is kind and "forward" not in vars(module) and not any(hooks)
    return is_bare and not global_hooks._has_any_global_hook()


def is_plain_linear(module: nn.Module) -> bool:
    """Whether ``module`` is nothing but a weight and a bias."""
    return is_plain(module, nn.Linear) and module.bias is not None
