"""Whole models on a GPU: what they compute on a CPU, and the same each time, with and without absorbed projections."""

import copy

import pytest
import torch

from longformer_triton import LongformerConfig, LongformerForMaskedLM

pytestmark = pytest.mark.gpu
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model_of(absorb, **options):
    torch.manual_seed(1)
    config = LongformerConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=602, attention_window=[16, 64], absorb_global_projections=absorb, **options,
    )  # fmt: skip
    return LongformerForMaskedLM(config).train()


def learn(model, device, dtype=torch.float32):
    """(loss, gradient of every parameter) of one step over two texts, of which one is padded and has more global tokens."""
    model = copy.deepcopy(model).to(device, dtype)
    ids = (torch.arange(1000).view(2, 500) % 57 + 3).to(device)
    real, marks = torch.ones_like(ids), torch.zeros_like(ids)
    real[1, 333:] = 0
    marks[0, 0] = 1
    marks[1, [0, 7, 200]] = 1
    torch.manual_seed(2)
    loss = model(ids, attention_mask=real, global_attention_mask=marks, labels=ids).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: parameter.grad for name, parameter in model.named_parameters()}}


@pytest.mark.parametrize("absorb", [True, False], ids=["absorbed", "projected"])
def test_a_model_learns_what_it_learns_on_a_cpu(absorb):
    model = model_of(absorb, **STILL)
    got, expected = learn(model, "cuda"), learn(model, "cpu", torch.float64)
    for name, value in expected.items():
        worst = (got[name].cpu() - value).abs().max()
        assert worst <= 1e-3 * max(value.abs().max(), 1e-3), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("absorb", [True, False], ids=["absorbed", "projected"])
def test_a_step_repeats_bit_for_bit(absorb, dtype):
    """Dropout included. Rows of global tokens are put into place by additions, which are to zeros, in whatever order."""
    model = model_of(absorb)
    first, second = (learn(model, "cuda", dtype) for _ in range(2))
    for name, value in first.items():
        assert value.isfinite().all(), name
        if "embeddings" not in name:  # PyTorch adds up gradients of rows of a table in any order
            assert torch.equal(value, second[name]), name
