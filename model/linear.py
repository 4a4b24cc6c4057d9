"""Linear layers in float32 on a CPU, by whichever of PyTorch's two libraries has kernels for the processor.

PyTorch multiplies float32 matrices on x86 with MKL, which gives processors of other makers than Intel its AVX2 kernels, even
those with AVX-512. oneDNN, which PyTorch has for convolutions, asks what a processor can do, not who made it: where units are
512 bits wide it is about twice as fast (bench/LOG.md, "oneDNN"). A linear layer is a convolution with a kernel of one pixel
over an image one pixel high, and memory is read as it lies: tokens in rows are "channels last". That is all this module does.
Products are float32 in either library; they differ in the order of their sums alone.
"""

from __future__ import annotations

import functools
import pathlib
import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear

from longformer_triton.model.plain import is_plain_linear

# Multiplications, and tokens, below which a convolution's set-up costs more than it saves.
_FEWEST_PRODUCTS = 1 << 24
_FEWEST_TOKENS = 32
# It copies a weight into an order of its own each time. One of so many numbers wants many tokens for that to pay, and so does
# the gradient of any, which is put together in three tensors of the weight's size.
_LARGE_WEIGHT = 1 << 23
MANY_TOKENS = 256
# The distance between the pixels of a kernel says nothing where it has only one; but at a distance of 1, PyTorch on one thread
# goes to MKL after all.
_DILATION = 2


@functools.cache
def _is_onednn_faster() -> bool:
    """Whether this processor has AVX-512 and is not one that MKL has AVX-512 for."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        maker = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        maker = platform.processor()
    return "GenuineIntel" not in maker


def is_worth_onednn(device_type: str, dtype: torch.dtype, tokens: int, weight_numbers: int) -> bool:
    """Whether so many tokens are multiplied with a weight of so many numbers by oneDNN: not on other devices, nor if few."""
    return (
        device_type == "cpu"
        and dtype == torch.float32
        and tokens >= (_FEWEST_TOKENS if weight_numbers < _LARGE_WEIGHT else MANY_TOKENS)
        and tokens * weight_numbers >= _FEWEST_PRODUCTS
        and bool(torch.backends.mkldnn.enabled)
        and _is_exact()
        and _is_onednn_faster()
    )


def has_sums_apart(device_type: str, dtype: torch.dtype) -> bool:
    """Whether oneDNN adds products up in a float32 tensor of the result's size.

    So it does with bfloat16 on processors that have AVX-512 without its instructions for bfloat16.
    """
    return (
        device_type == "cpu"
        and dtype == torch.bfloat16
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not torch.cpu._is_avx512_bf16_supported()
    )


def _is_exact() -> bool:
    """Whether products were not allowed less than float32: then PyTorch's own linear layers do what was asked for."""
    of_convolutions = torch.backends.mkldnn.conv.fp32_precision  # type: ignore[attr-defined]
    return torch.get_float32_matmul_precision() == "highest" and of_convolutions in ("none", "ieee")


def takes_onednn(states: Tensor, weight: Tensor) -> bool:
    """Whether the product of ``states`` (..., in_features) with ``weight`` (out_features, in_features) goes to oneDNN."""
    if torch.compiler.is_compiling() or states.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return False
    # Quantised and sharded tensors bring products of their own.
    if type(states) is not Tensor or type(weight) not in (Tensor, nn.Parameter):
        return False
    return is_worth_onednn(states.device.type, states.dtype, states.shape[:-1].numel(), weight.numel())


def dense(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states @ weight.T + bias``, as :func:`torch.nn.functional.linear`.

    Args:
        states: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,) or None.

    Returns:
        (..., out_features), differentiable once.
    """
    if not takes_onednn(states, weight):
        return linear(states, weight, bias)
    flat = states.reshape(-1, states.shape[-1])
    tensors = (flat, weight, bias)
    needs_graph = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    out = _Dense.apply(*tensors) if needs_graph else _convolve(*tensors)
    return out.view(*states.shape[:-1], weight.shape[0])


def dense_gradients(
    grad: Tensor, states: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of states, weight and bias of :func:`dense`, for functions that write their own backward.

    Args:
        grad: (tokens, out_features), of the result.
        states: (tokens, in_features).
        weight: (out_features, in_features).
        needs: which of the three to compute; None stands for the others.
    """
    of_states, of_weight, of_bias = needs
    is_taken = takes_onednn(states, weight)
    grad_states = grad_weight = None
    # The weight's first: bfloat16 products copy what is transposed, and the states' gradient is not there yet.
    if of_weight and is_taken and grad.shape[0] >= MANY_TOKENS:
        grad_weight = _convolution_gradients(grad, states, weight, (False, True))[1].view(weight.shape)
    elif of_weight:
        grad_weight = grad.t() @ states
    if of_states and is_taken:
        grad_states = _convolution_gradients(grad, states, weight, (True, False))[0].permute(0, 2, 3, 1).view(states.shape)
    elif of_states:
        grad_states = grad @ weight
    return grad_states, grad_weight, grad.sum(0) if of_bias else None


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Frozen weights and states, as under adapters, are not kept for the other's sake.
        needs_states, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(states if needs_weight else None, weight if needs_states else None)
        ctx.sizes = states.shape, weight.shape
        return _convolve(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # The size of what was not kept is all that its place is for.
        states, weight = (
            grad.new_empty(size) if kept is None else kept for kept, size in zip(ctx.saved_tensors, ctx.sizes, strict=True)
        )
        return dense_gradients(grad.contiguous(), states, weight, ctx.needs_input_grad)


def _convolve(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(tokens, in_features) -> (tokens, out_features)."""
    out = conv2d(_as_image(states), weight[:, :, None, None], bias, dilation=_DILATION)
    return out.permute(0, 2, 3, 1).view(states.shape[0], weight.shape[0])


def _convolution_gradients(grad: Tensor, states: Tensor, weight: Tensor, needs: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Gradients of the image and of the kernel, each where needed."""
    images = _as_image(grad), _as_image(states)
    pair, nothing = [_DILATION, _DILATION], [0, 0]
    found = torch.ops.aten.convolution_backward(
        *images, weight[:, :, None, None], None, [1, 1], nothing, pair, False, nothing, 1, (*needs, False)
    )
    return found[0], found[1]


def apply_linear(module: nn.Linear, states: Tensor) -> Tensor:
    """``module(states)``, by :func:`dense` where the module is nothing but its weight and bias."""
    return dense(states, module.weight, module.bias) if is_plain_linear(module) else module(states)


def _as_image(states: Tensor) -> Tensor:
    """(tokens, channels) -> (1, channels, 1, tokens), channels last: a view of contiguous states."""
    return states.reshape(1, 1, *states.shape).permute(0, 3, 1, 2)
