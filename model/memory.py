"""How much memory a model needs to run or to train on texts of a length, without building it.

The account walks through a forward pass or a step of training (:mod:`memory_steps`) and adds up, at every moment, what is
there: weights, gradients, the optimiser's state, what is saved for backward, and what lives for a moment alone. The terms and
their sizes are listed in :mod:`memory_terms`, from reading the code that allocates them; none grows faster than the length.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import torch

from longformer_triton.kernels import backends
from longformer_triton.model import memory_steps, memory_terms
from longformer_triton.model.config import LongformerConfig, check_config
from longformer_triton.model.files import size_in_bytes
from longformer_triton.model.memory_place import Place
from longformer_triton.model.memory_steps import Moment
from longformer_triton.model.memory_terms import Terms
from longformer_triton.model.settings import check_at_least, plain

__all__ = ["MemoryEstimate", "estimate_memory", "longest_text"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# How many states each optimiser keeps of a parameter, in its dtype.
OPTIMIZERS = {"adamw": 2, "adam": 2, "sgd": 0, "sgd-momentum": 1}
DEVICES = ("cpu", "cuda")
_COLUMNS = ("weights", "gradients", "optimizer", "activations", "workspace", "total")
# Where a search ends if memory does not end it.
_LONGEST = 2**40


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the moment at which most is held; printing it shows them, and where they come from.

    Attributes:
        title: what was estimated, in words.
        parameters: how many numbers the model has.
        weights: bytes of the parameters.
        optimizer: bytes of the optimiser's state.
        phases: the fullest moment of each phase: forward, and in training backward and the optimiser's step.
    """

    title: str
    parameters: int
    weights: int
    optimizer: int
    phases: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """The fullest moment of all."""
        return max(self.phases, key=lambda moment: moment.size)

    @property
    def gradients(self) -> int:
        """Bytes of the parameters' gradients at the peak; backward makes them as it frees activations, so they may be few."""
        return self.peak.gradients

    @property
    def activations(self) -> int:
        """Bytes saved for backward, at the peak."""
        return self.peak.saved.total()

    @property
    def workspace(self) -> int:
        """Bytes that live for a moment, at the peak: scores, stretches, gradients of states; without training, all states."""
        return self.peak.transient.total()

    @property
    def total(self) -> int:
        """Bytes at the peak: the sum of weights, gradients, optimizer, activations and workspace."""
        return self.weights + self.optimizer + self.peak.size

    def fits(self, limit: int | str, margin: float = 0.0) -> bool:
        """Whether the total stays within a limit.

        Args:
            limit: the memory of the device, bytes or a text such as "24GB" or "80GiB".
            margin: the part of it to set aside for what the estimate leaves out, such as 0.1.

        Raises:
            ValueError: no size, or no part below 1.
        """
        return self.total <= usable(limit, margin)

    def breakdown(self) -> dict[str, int]:
        """Bytes of every term at the peak, the largest first; they sum up to the total."""
        terms = Counter({"weights": self.weights, "optimizer state": self.optimizer, "gradients of weights": self.gradients})
        return dict((terms + self.peak.saved + self.peak.transient).most_common())

    def as_text(self) -> str:
        """The phases as a table, and the terms of the fullest moment."""
        unit, size = ("GiB", 2**30) if self.total >= 2**30 else ("MiB", 2**20)
        lines = [self.title, f"{unit:<14}" + "".join(f"{name:>12}" for name in _COLUMNS)]
        for moment in self.phases:
            total = self.weights + self.optimizer + moment.size
            parts = (self.weights, moment.gradients, self.optimizer, moment.saved.total(), moment.transient.total(), total)
            mark = "  <- peak" if moment is self.peak else ""
            lines.append(f"{moment.phase:<14}" + "".join(f"{part / size:>12.2f}" for part in parts) + mark)
        lines.append(f"at the peak ({self.peak.where}):")
        lines += [f"{part / size:>14.2f}  {name}" for name, part in self.breakdown().items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.as_text()


def estimate_memory(
    config: LongformerConfig,
    batch: int = 1,
    seq_len: int = 4096,
    dtype: torch.dtype = torch.float32,
    training: bool = False,
    checkpointing: bool = False,
    optimizer: str | None = "adamw",
    *,
    architecture: str = "LongformerModel",
    num_globals: int = 1,
    device: str | torch.device | None = None,
    fused_optimizer: bool = False,
    keeps_gradients: bool = False,
) -> MemoryEstimate:
    """The most memory that tensors take during a forward pass without gradients, or during a step of training.

    A step is ``model(...).loss.backward(); optimizer.step(); optimizer.zero_grad()``, with the dropout of ``config`` and the
    state that the optimiser has after its first step. Weights, gradients, state and activations are all in ``dtype``, as after
    ``model.to(dtype)``; ``torch.autocast``, which keeps float32 weights beside copies of them, is not estimated.

    Left out are: what is no tensor of the step (the CUDA context, cuBLAS's workspace, libraries); rounding and fragmentation by
    the allocator; ids and masks; attention maps and hidden states that were asked for; logits that the caller holds during
    backward; buffers of distributed training. ``torch.compile`` decides by itself what to keep.

    Args:
        config: the sizes of the model; its windows, dropouts, pruned heads and ``absorb_global_projections`` count too.
        batch: texts in a batch.
        seq_len: tokens of each, padding included. More than the position table holds count with a table long enough for them,
            which ``model.resize_position_embeddings`` makes.
        dtype: float32, bfloat16, float16 or float64.
        training: a step of training, or else a forward pass under ``torch.no_grad()``.
        checkpointing: whether ``model.gradient_checkpointing_enable()`` was called; in training only.
        optimizer: "adamw", "adam", "sgd" (without a state), "sgd-momentum", or None for gradients alone; in training only.
        architecture: the name of a model class; "LongformerModel" is the encoder with its pooler.
        num_globals: global tokens of each text.
        device: "cpu", for the PyTorch backend, or "cuda", for the Triton kernels; None: a GPU if there is one.
        fused_optimizer: whether it is one made with ``fused=True``, which needs no memory while it steps.
        keeps_gradients: whether there are gradients already, to be added to: of gradient accumulation, or of
            ``zero_grad(set_to_none=False)``.

    Raises:
        TypeError, ValueError: an argument does not fit, with its name.

    Example:
        >>> from longformer_triton import LongformerConfig, estimate_memory
        >>> config = LongformerConfig(vocab_size=50265, max_position_embeddings=4098)
        >>> estimate_memory(config, batch=1, seq_len=4096, training=True, device="cuda").fits("8GB")
        True
    """
    batch, seq_len, num_globals = map(plain, (batch, seq_len, num_globals))
    flags = {"training": training, "checkpointing": checkpointing}
    flags |= {"fused_optimizer": fused_optimizer, "keeps_gradients": keeps_gradients}
    place = _checked(config, batch, seq_len, dtype, optimizer, architecture, num_globals, device, flags)
    model = _model(config, batch, seq_len, place, architecture, training=training, num_globals=num_globals)
    weights = model.parameters.total * place.item
    states = 0
    if training:
        moments = list(memory_steps.training(model, checkpointing=checkpointing, keeps_gradients=keeps_gradients))
        if optimizer is not None:
            states = OPTIMIZERS[optimizer] * weights
            transient = Terms({"workspace of the optimizer": 0 if fused_optimizer else _optimizer_workspace(model, optimizer)})
            moments.append(Moment(memory_steps.STEP, "all parameters", weights, Terms(), transient))
    else:
        moments = list(memory_steps.inference(model))
    phases = []
    for phase in memory_steps.PHASES:
        of_phase = [moment for moment in moments if moment.phase == phase]
        phases += [max(of_phase, key=lambda moment: moment.size)] if of_phase else []
    what = "forward pass"
    if training:
        what = f"training with {optimizer or 'no optimizer'}" + (" and gradient checkpointing" if checkpointing else "")
    title = (
        f"{architecture}, {model.parameters.total / 1e6:.1f} million parameters in {str(dtype).removeprefix('torch.')}, "
        f"{place.device}: {what}, batch {batch}, {seq_len} token{'' if seq_len == 1 else 's'}"
    )
    return MemoryEstimate(title, model.parameters.total, weights, states, tuple(phases))


def usable(limit: int | str, margin: float) -> int:
    """The bytes of a limit that are left when a part of it is set aside.

    Raises:
        ValueError: no size, or no part below 1.
    """
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < 1:
        raise ValueError(f"margin: got {margin!r}, expected a part of the memory, from 0 to below 1, such as 0.1.")
    return int(size_in_bytes(limit, "limit") * (1 - margin))


def longest_text(config: LongformerConfig, limit: int | str, batch: int = 1, *, margin: float = 0.0, **options: object) -> int:
    """The most tokens with which :func:`estimate_memory` stays within a limit; 0 where a single one is too many.

    Args:
        config: the sizes of the model; positions beyond its table are counted.
        limit: the memory of the device, bytes or a text such as "24GB".
        batch: texts in a batch, all of that length.
        margin: the part of the limit to set aside.
        options: further arguments of :func:`estimate_memory`. A text shorter than ``num_globals`` has that many global tokens.

    Raises:
        TypeError, ValueError: as :func:`estimate_memory` and :meth:`MemoryEstimate.fits`.
    """
    most, num_globals = usable(limit, margin), options.pop("num_globals", 1)

    def fits(seq_len: int) -> bool:
        marked = min(num_globals, seq_len) if isinstance(num_globals, int) else num_globals
        return estimate_memory(config, batch, seq_len, num_globals=marked, **options).total <= most  # type: ignore[arg-type]

    low, high = 0, 1
    while high < _LONGEST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _optimizer_workspace(model: memory_steps.Model, optimizer: str) -> int:
    """Adam's denominators: on GPUs those of all parameters at once, on CPUs two copies of one parameter's.

    The first is what PyTorch calls foreach, its default there (torch.optim.adam, _multi_tensor_adam, _single_tensor_adam).
    """
    if not optimizer.startswith("adam"):
        return 0
    layer = model.layers[0]
    if layer.place.device == "cuda":
        return model.parameters.total * layer.place.item
    return 2 * layer.hidden * max(model.vocab_size, model.num_positions, layer.intermediate) * layer.place.item


def _model(
    config: LongformerConfig, batch: int, seq_len: int, place: Place, architecture: str, *, training: bool, num_globals: int
) -> memory_steps.Model:
    """The sizes of a model with a position table that is long enough."""
    positions = max(config.max_position_embeddings, seq_len + config.pad_token_id + 1)
    layers = memory_terms.layers_of(config, batch, seq_len, place, training=training, num_globals=num_globals)
    parameters = memory_terms.parameters(config, positions, architecture)
    is_tied = architecture == "LongformerForMaskedLM" and config.tie_word_embeddings
    return memory_steps.Model(layers, parameters, architecture, config.vocab_size, positions, is_tied)


def _checked(
    config: LongformerConfig,
    batch: int,
    seq_len: int,
    dtype: torch.dtype,
    optimizer: str | None,
    architecture: str,
    num_globals: int,
    device: str | torch.device | None,
    flags: dict[str, bool],
) -> Place:
    """Device and dtype, when nothing is wrong with an argument."""
    check_config(config)
    config.validate()
    for name, value, lowest in (("batch", batch, 1), ("seq_len", seq_len, 1), ("num_globals", num_globals, 0)):
        check_at_least(name, value, lowest)
    if num_globals > seq_len:
        raise ValueError(f"num_globals: got {num_globals}, expected at most seq_len, the {seq_len} tokens of a text.")
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}, expected a torch.dtype, such as torch.bfloat16.")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: got {value!r}, expected True or False.")
    if device is None:
        device = backends.best_device()
    kind = device.type if isinstance(device, torch.device) else str(device).partition(":")[0]
    for name, given, known in (
        ("dtype", dtype, DTYPES),
        ("device", kind, DEVICES),
        ("optimizer", optimizer, (*OPTIMIZERS, None)),
        ("architecture", architecture, memory_terms.ARCHITECTURES),
    ):
        if given not in known:
            raise ValueError(f"{name}: got {given!r}, expected one of {', '.join(map(str, known))}.")
    return Place(kind, dtype)
