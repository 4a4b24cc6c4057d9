"""Whole models, side by side: a classifier of texts as ours, as transformers' Longformer, as RoBERTa with full attention."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longformer_triton.bench.cases import DTYPES
from longformer_triton.bench.check import WrongAnswerError
from longformer_triton.bench.measure import peak_extra_bytes, percentiles

FORWARD, TRAINING = "forward", "training step"
DIRECTIONS = (FORWARD, TRAINING)
_VOCABULARY, _FIRST_WORD = 50265, 5
# Rounding of twelve layers in each dtype; what it lets through is far from what a wrong mask does.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
State = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """The axes of one cell: a model of ``layers`` layers of width ``heads * head_dim`` and texts of ``seq_len`` tokens.

    ``window`` is Hugging Face's attention_window, the total of both sides; None for full attention. The first token is global.
    """

    provider: str
    direction: str
    seq_len: int
    window: int | None
    batch: int = 1
    layers: int = 12
    heads: int = 12
    head_dim: int = 64
    dtype: str = "float32"

    @property
    def static_bytes(self) -> int:
        """About what the model takes between two calls: weights, and in training their gradients and AdamW's two averages."""
        width = self.heads * self.head_dim
        # Twelve width^2 in a layer, and three more in the projections of global tokens
        parameters = width * (_VOCABULARY + self.seq_len + self.layers * 15 * width)
        return parameters * DTYPES[self.dtype].itemsize * (4 if self.direction == TRAINING else 1)

    @property
    def sizes(self) -> dict[str, Any]:
        """The configuration's fields that all three kinds of models share; dropouts are the default, 0.1."""
        width = self.heads * self.head_dim
        return {
            "vocab_size": _VOCABULARY,
            "hidden_size": width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": 4 * width,
            "max_position_embeddings": self.seq_len + 2,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        }


@dataclasses.dataclass
class ModelMeasurement:
    """Milliseconds a call, MiB beyond the model itself at the peak, tokens a second at the median, and how far the logits are
    from transformers' (of the largest; None without them)."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    repeats: int
    first_call_ms: float
    peak_extra_mib: float
    tokens_per_second: float
    relative_error: float | None


class ModelProvider:
    """An implementation of the classifier: builds a model with given weights."""

    def __init__(self, name: str, title: str, options: Mapping[str, object] | None = None) -> None:
        self.name, self.title, self.options = name, title, options or {}

    is_windowed = True

    def why_not(self) -> str | None:
        """The reason that it cannot run here, or None."""
        return None

    def build(self, case: ModelCase, state: State | None) -> nn.Module:
        """A model with the weights ``state``, named as in ours; None leaves initial ones."""
        from longformer_triton import LongformerConfig, LongformerForSequenceClassification

        config = LongformerConfig.from_dict({**case.sizes, "attention_window": case.window, **self.options})
        model = LongformerForSequenceClassification(config)
        if state is not None:
            model.load_state_dict(state)
        return model


class _Transformers(ModelProvider):
    def why_not(self) -> str | None:
        return None if importlib.util.find_spec("transformers") else "transformers is not installed"

    def build(self, case: ModelCase, state: State | None) -> nn.Module:
        from transformers import LongformerConfig, LongformerForSequenceClassification

        model: nn.Module = LongformerForSequenceClassification(
            LongformerConfig(**{**case.sizes, "attention_window": case.window})
        )
        if state is not None:
            model.load_state_dict(state)
        return model


class _Patched(_Transformers):
    def build(self, case: ModelCase, state: State | None) -> nn.Module:
        from longformer_triton import patch_transformers

        return patch_transformers(super().build(case, state))


class _Roberta(_Transformers):
    is_windowed = False

    def build(self, case: ModelCase, state: State | None) -> nn.Module:
        from transformers import RobertaConfig, RobertaForSequenceClassification

        model: nn.Module = RobertaForSequenceClassification(RobertaConfig(**case.sizes, attn_implementation="sdpa"))
        if state is not None:
            model.load_state_dict(
                {name.replace("longformer.", "roberta."): weight for name, weight in state.items() if "_global" not in name}
            )
        return model


OURS, UNABSORBED, PEER, PATCHED, FULL = "ours", "ours-projected", "transformers", "transformers-patched", "roberta"
MODELS: dict[str, ModelProvider] = {
    provider.name: provider
    for provider in (
        ModelProvider(OURS, "longformer-triton"),
        _Transformers(PEER, "transformers Longformer"),
        _Patched(PATCHED, "transformers Longformer, patched"),
        _Roberta(FULL, "transformers RoBERTa, SDPA"),
        ModelProvider(UNABSORBED, "longformer-triton, global projections of all tokens", {"absorb_global_projections": False}),
    )
}


class ModelCell:
    """A model set up for a case: :meth:`call` is what is timed."""

    def __init__(self, case: ModelCase, device: torch.device, state: State | None, checkpointing: bool = False) -> None:
        self.case, self.device = case, device
        model: Any = MODELS[case.provider].build(case, state).to(device, DTYPES[case.dtype])
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model
        generator = torch.Generator().manual_seed(case.seq_len)
        shape = (case.batch, case.seq_len)
        ids = torch.randint(_FIRST_WORD, _VOCABULARY, shape, generator=generator).to(device)
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if MODELS[case.provider].is_windowed:
            marked = torch.zeros_like(ids)
            marked[:, 0] = 1
            self.inputs["global_attention_mask"] = marked
        self.labels = torch.zeros(case.batch, dtype=torch.int64, device=device)
        self.model.eval()
        with torch.no_grad():
            self.logits = self.model(**self.inputs).logits.double().cpu()
        self.model.train(case.direction == TRAINING)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.first_call_ms = self.time_once()

    def call(self, keep_gradients: bool = False) -> None:
        """Logits without a graph; or loss, gradients and a step of AdamW, with dropout.

        ``keep_gradients`` writes new gradients over the old, so that a measurement of memory sees neither.
        """
        if self.case.direction == FORWARD:
            with torch.no_grad():
                self.model(**self.inputs)
            return
        self.optimizer.zero_grad(set_to_none=not keep_gradients)
        self.model(**self.inputs, labels=self.labels).loss.backward()
        self.optimizer.step()

    def time_once(self) -> float:
        """Milliseconds of one call, the device's work included."""
        start = time.perf_counter()
        self.call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.perf_counter() - start) * 1e3


class Prepared(NamedTuple):
    """What is known of a model before it is timed."""

    logits: list[list[float]]  # (batch, num_labels), without dropout
    first_call_ms: float
    peak_bytes: int


class ModelSession:
    """One model in a process of its own: a case builds it, None times one call. Weights are the same in every process."""

    def __init__(self) -> None:
        self._cell: ModelCell | None = None

    def __call__(self, case: ModelCase | None, device: torch.device, seconds: float) -> Prepared | float:  # noqa: ARG002
        """Prepare a model for ``case``, or give the milliseconds of one call (``None``) of the one that was prepared."""
        if case is None:
            assert self._cell is not None, "a model is prepared before it is timed"
            return self._cell.time_once()
        self._cell = ModelCell(case, device, _initial_state(case))
        peak = peak_extra_bytes(functools.partial(self._cell.call, keep_gradients=True), device)
        return Prepared(self._cell.logits.tolist(), self._cell.first_call_ms, peak)


def _initial_state(case: ModelCase) -> State:
    """The weights of ours after one seed."""
    torch.manual_seed(0)
    return MODELS[OURS].build(dataclasses.replace(case, window=case.window or 2), None).state_dict()


def error_of(case: ModelCase, logits: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> float:
    """The distance of a model's logits from those expected, as a share of the largest.

    Raises:
        WrongAnswerError: they are further away than rounding explains.
    """
    found, wanted = (torch.tensor(values, dtype=torch.float64) for values in (logits, expected))
    error = ((found - wanted).abs().max() / wanted.abs().max()).item()
    if not error <= _TOLERANCE[DTYPES[case.dtype]]:
        raise WrongAnswerError(f"logits of {case.provider} are {error:.1e} of the largest away from transformers'")
    return float(f"{error:.2e}")


def summarise(case: ModelCase, prepared: Prepared, samples_ms: list[float], error: float | None) -> ModelMeasurement:
    """A row's numbers."""
    p20, median, p80 = percentiles(samples_ms)
    return ModelMeasurement(
        p20_ms=round(p20, 3),
        p50_ms=round(median, 3),
        p80_ms=round(p80, 3),
        repeats=len(samples_ms),
        first_call_ms=round(prepared.first_call_ms, 3),
        peak_extra_mib=round(prepared.peak_bytes / 2**20, 3),
        tokens_per_second=round(case.batch * case.seq_len / median * 1e3, 2),
        relative_error=error,
    )
