"""A training loop under accelerate: half precision, accumulated gradients, states saved and loaded, models saved."""

import contextlib

import pytest
import torch
from model_cases import Texts, ours

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "LongformerForMaskedLM"
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def prepared(accelerator, **options):
    """(model, optimizer, loader) as accelerate has them; half of the texts have global tokens."""
    torch.manual_seed(3)
    model = ours(NAME, **options).train()
    rows = []
    for globals_ in ("none", "some"):
        batch = {"global_attention_mask": torch.zeros(4, 21)} | Texts(batch=4, globals_=globals_).inputs(NAME)
        rows += [{key: value[row] for key, value in batch.items()} for row in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(rows, batch_size=2))


def steps(accelerator, model, optimizer, loader):
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_loop_learns_and_its_model_is_saved(precision, checkpointing, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model, optimizer, loader = prepared(accelerator)
    if checkpointing:
        accelerator.unwrap_model(model).gradient_checkpointing_enable()
    first = steps(accelerator, model, optimizer, loader)
    for _ in range(4):
        last = steps(accelerator, model, optimizer, loader)
    assert sum(last) < 0.95 * sum(first)
    unwrapped = accelerator.unwrap_model(model)
    unwrapped.save_pretrained(tmp_path, is_main_process=accelerator.is_main_process, save_function=accelerator.save)
    again = type(unwrapped).from_pretrained(tmp_path)
    for key, value in unwrapped.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_accumulated_gradients_are_those_of_the_large_batch():
    """Two batches of one step weigh as one of both: every row has as many labels."""
    grads = {}
    for size in (1, 2):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2 // size)
        torch.manual_seed(3)
        model = accelerator.prepare(ours(NAME).double().train())
        batch = Texts(batch=2, globals_="some").inputs(NAME)
        for start in range(0, 2, size):
            last = start + size == 2
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                accelerator.backward(model(**{key: value[start : start + size] for key, value in batch.items()}).loss)
        grads[size] = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(grads[1], grads[2], rtol=1e-10, atol=1e-12)


def test_a_saved_state_goes_on_with_the_same_losses(tmp_path):
    """Dropout included: its masks follow from torch's random numbers, whose state is saved."""
    accelerator = accelerate.Accelerator(cpu=True)
    parts = prepared(accelerator, **DROPOUT)
    steps(accelerator, *parts)
    accelerator.save_state(str(tmp_path))
    expected = steps(accelerator, *parts)
    assert steps(accelerator, *parts) != expected
    accelerator.load_state(str(tmp_path))
    assert steps(accelerator, *parts) == expected
