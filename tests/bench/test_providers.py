"""Every provider that runs on a CPU gives the reference's numbers on every axis that it claims, and says which it does not."""

import math

import pytest
import torch

from longformer_triton.bench import measure as measure_module
from longformer_triton.bench.cases import FORWARD, SCATTERED, TRAINING, Case
from longformer_triton.bench.check import WrongAnswerError
from longformer_triton.bench.measure import Cell
from longformer_triton.bench.peers import Sdpa
from longformer_triton.bench.peers_chunks import Chunks
from longformer_triton.bench.peers_transformers import Transformers
from longformer_triton.bench.providers import PROVIDERS, Ours
from longformer_triton.kernels import sliding_window_attention

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ON_CPU = ["ours-torch", "reference", "sdpa", "sdpa-math", "chunks", "transformers"]
AXES = {
    "plain": {},
    "prefix": {"num_globals": 3},
    "scattered": {"num_globals": 5, "globals_at": SCATTERED, "batch": 2},
    "padding": {"padding": 30},
    "padding_and_scattered": {"padding": 30, "num_globals": 5, "globals_at": SCATTERED, "batch": 2},
    "causal": {"is_causal": 1},
    "sinks": {"is_causal": 1, "num_globals": 4, "globals_at": SCATTERED},
    "dilation": {"dilation": 3},
    "dilation_and_scattered": {"dilation": 3, "num_globals": 5, "globals_at": SCATTERED},
    "grouped": {"key_heads": 2},
    "grouped_and_prefix": {"key_heads": 2, "num_globals": 2},
    "dropout": {"dropout": 30, "heads": 8},
    "dropout_and_everything": {
        "dropout": 30,
        "num_globals": 5,
        "globals_at": SCATTERED,
        "dilation": 2,
        "padding": 20,
        "batch": 2,
        "key_heads": 2,
    },
}


def small_case(provider, direction=FORWARD, **axes):
    window = 16 if PROVIDERS[provider].is_windowed else None
    return Case(provider, direction, **{"seq_len": 150, "window": window, "heads": 4, "head_dim": 8, **axes})


@pytest.mark.parametrize("direction", [FORWARD, TRAINING])
@pytest.mark.parametrize("axes", AXES.values(), ids=list(AXES))
@pytest.mark.parametrize("provider", ON_CPU)
def test_what_a_provider_claims_is_right(provider, axes, direction):
    case = small_case(provider, direction, **axes)
    reason = PROVIDERS[provider].why_not(case, CPU)
    if reason is None:
        assert Cell(case, CPU).error < (1e-5 if PROVIDERS[provider].dropout_is_ours or not case.dropout else 0.2)
    else:
        assert reason in MISSING[provider]


MISSING = {
    "ours-torch": {},
    "reference": {},
    "sdpa": {},
    "sdpa-math": {},
    "chunks": {"no global tokens", "no causal windows", "no dilation", "as many key heads as query heads"},
    "transformers": {"no causal windows", "no dilation", "as many key heads as query heads"},
}


def test_ours_lacks_nothing_and_others_do():
    skipped = {
        name: {reason for axes in AXES.values() if (reason := PROVIDERS[name].why_not(small_case(name, **axes), CPU))}
        for name in ON_CPU
    }
    assert skipped == {name: set(reasons) for name, reasons in MISSING.items()}


@pytest.mark.parametrize(
    ("axes", "note"),
    [
        ({}, None),
        ({"num_globals": 4, "globals_at": SCATTERED, "batch": 2}, "share the projections"),
        ({"num_globals": 4, "is_causal": 1}, None),
        ({"padding": 30, "dilation": 2, "num_globals": 3}, None),
        ({"key_heads": 2}, None),
    ],
    ids=["window", "scattered", "sinks", "padding_and_dilation", "grouped"],
)
def test_flex_has_global_tokens_with_shared_projections(axes, note):
    case = small_case("flex", head_dim=16, **axes)
    assert Cell(case, CPU).error < 1e-5
    assert note is None or note in PROVIDERS["flex"].note


def test_flex_says_what_it_cannot_do_on_a_cpu():
    flex = PROVIDERS["flex"]
    assert flex.why_not(small_case("flex", TRAINING, head_dim=16), CPU) == "no backward on CPUs"
    assert flex.why_not(small_case("flex", head_dim=16, dropout=10), CPU) == "no dropout in the kernel"
    assert PROVIDERS["flex-tuned"].why_not(small_case("flex-tuned", head_dim=16), CPU) == "GPUs only"


@pytest.mark.parametrize(
    ("provider", "axes", "reason"),
    [
        ("varlen", {"num_globals": 1}, "no global tokens"),
        ("varlen", {"dropout": 10}, "no dropout in the kernel"),
        ("varlen", {}, "GPUs only"),
        ("sdpa-flash", {"padding": 10}, "no padding mask"),
        ("sdpa-flash", {}, "GPUs only"),
        ("sdpa-efficient", {"padding": 10}, "GPUs only"),
        ("sdpa", {"padding": 10, "is_causal": 1}, "a padding mask and is_causal exclude each other"),
        ("natten", {"num_globals": 1}, "no global tokens"),
        ("natten", {"seq_len": 16}, "a text shorter than the window"),
        ("natten", {}, "natten is not installed"),
        ("xformers", {"dilation": 2}, "no dilation"),
        ("flash-attn", {}, "flash-attn is not installed"),
        ("ours-torch", {"graph": 1}, "in a CUDA graph only our kernels are measured"),
        ("ours-triton", {"graph": 1}, "CUDA graphs are for GPUs"),
    ],
)
def test_reasons_are_words(provider, axes, reason):
    assert PROVIDERS[provider].why_not(small_case(provider, **axes), CPU) == reason


def test_full_attention_says_that_it_ignores_the_window():
    assert "ignores the window" in PROVIDERS["sdpa"].note
    assert PROVIDERS["sdpa"].why_not(small_case("sdpa", num_globals=3, dilation=2), CPU) is None


def test_the_version_of_transformers_is_in_its_title():
    import transformers

    assert PROVIDERS["transformers"].title == f"transformers {transformers.__version__} Longformer"


class FirstTextForAll(Ours):
    """Global tokens of the first text in every text."""

    def prepare(self, inputs):
        inputs.global_attention_mask[1:] = inputs.global_attention_mask[:1]
        return super().prepare(inputs)


class SeesPadding(Ours):
    """A mask that is not passed on."""

    def prepare(self, inputs):
        query, key, value = (inputs.heads_of(name) for name in ("query", "key", "value"))
        return lambda: sliding_window_attention(query, key, value, window=inputs.case.side, backend="torch")


class OtherSeed(Ours):
    """A mask of another seed."""

    def prepare(self, inputs):
        inputs.dropout_seed.add_(1)
        run = super().prepare(inputs)

        def other():
            out = run()
            inputs.dropout_seed.sub_(1)
            return out

        return other


class WrongGlobalKeyGradient(Ours):
    """A right output; the gradient of the global keys is not."""

    def prepare(self, inputs):
        run, extra = super().prepare(inputs), inputs.heads_of("key_global")
        return lambda: run() + extra - extra.detach()


@pytest.mark.parametrize(
    ("broken", "direction", "axes", "what"),
    [
        (FirstTextForAll, FORWARD, AXES["scattered"], "output"),
        (SeesPadding, FORWARD, AXES["padding"], "output"),
        (OtherSeed, FORWARD, AXES["dropout"], "output"),
        (WrongGlobalKeyGradient, TRAINING, AXES["prefix"], "key_global gradient"),
    ],
    ids=["globals_of_another_text", "padding_ignored", "another_dropout_mask", "wrong_global_gradient"],
)
def test_a_wrong_provider_is_refused(monkeypatch, broken, direction, axes, what):
    monkeypatch.setitem(measure_module.PROVIDERS, "ours-torch", broken("torch"))
    with pytest.raises(WrongAnswerError, match=what):
        Cell(small_case("ours-torch", direction, **axes), CPU)


def without_scaling(run, share):
    return lambda: run() * (1 - share)


@pytest.mark.parametrize("kind", [Sdpa, Chunks, Transformers])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda run: without_scaling(run, 0.3), "its mean is off"),
        (lambda run: lambda: run() * math.nan, "changes it by nan"),
    ],
    ids=["survivors_not_scaled", "nan"],
)
def test_dropout_of_others_has_to_keep_the_mean(monkeypatch, kind, spoil, what):
    class Spoilt(kind):
        def prepare(self, inputs):
            return spoil(super().prepare(inputs))

    provider = Spoilt()
    monkeypatch.setitem(measure_module.PROVIDERS, provider.name, provider)
    with pytest.raises(WrongAnswerError, match=what):
        Cell(small_case(provider.name, dropout=30, seq_len=400, window=64 if provider.is_windowed else None, heads=8), CPU)


def test_dropout_that_drops_nothing_is_wrong(monkeypatch):
    class Forgetful(Chunks):
        def prepare(self, inputs):
            import dataclasses

            return super().prepare(dataclasses.replace(inputs, case=dataclasses.replace(inputs.case, dropout=0)))

    monkeypatch.setitem(measure_module.PROVIDERS, "chunks", Forgetful())
    with pytest.raises(WrongAnswerError, match="dropout of 30 % changes it by"):
        Cell(small_case("chunks", dropout=30), CPU)


def test_every_provider_is_drawn_in_a_style_of_its_own():
    from longformer_triton.bench.plot import style_of

    styles = [style_of(name) for name in PROVIDERS]
    assert len(set(styles)) == len(styles)
    assert style_of("nobody") not in styles
