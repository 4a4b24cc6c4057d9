"""transformers' Trainer: training, saving, resuming, evaluation, with the three lines of docs/differences.md."""

import pathlib
import re

import pytest
import torch
from model_cases import MODELS, Texts, ours
from safetensors.torch import load_file

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "differences.md"
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


@pytest.fixture(scope="module")
def trainer_class():
    """The class that the page tells people to write."""
    section = PAGE.read_text().partition("## Training with transformers' Trainer")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    names = {}
    exec(code, names)
    return names["LongformerTrainer"]


def rows_of(name, count=8):
    """A dataset: one text at a time, as a data loader has it."""
    choices = 2 if name.endswith("Choice") else 0
    batch = Texts(batch=count, globals_="some", choices=choices).inputs(name)
    return [{key: value[row] for key, value in batch.items()} for row in range(count)]


def trainer_of(trainer_class, name, folder, *, model=None, options=None, **arguments):
    given = transformers.TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=2, per_device_eval_batch_size=3, learning_rate=1e-2,
        logging_steps=1, save_steps=3, seed=5, report_to=[], disable_tqdm=True, use_cpu=True, dataloader_num_workers=0,
        **arguments,
    )  # fmt: skip
    torch.manual_seed(3)
    model = ours(name, **(DROPOUT if options is None else options)) if model is None else model
    return trainer_class(model=model, args=given, train_dataset=rows_of(name), eval_dataset=rows_of(name, 4))


def losses(trainer):
    return [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("name", MODELS[1:])
def test_every_head_trains_evaluates_and_saves(trainer_class, name, tmp_path):
    trainer = trainer_of(trainer_class, name, tmp_path, options={})
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    assert len(losses(trainer)) == 6
    assert any(not torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())
    assert trainer.evaluate()["eval_loss"] > 0
    logits = trainer.predict(rows_of(name, 4)).predictions
    assert len(logits[0] if isinstance(logits, tuple) else logits) == 4
    trainer.save_model(tmp_path / "final")
    again = type(trainer.model).from_pretrained(tmp_path / "final")
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("name", MODELS)
def test_a_model_knows_which_of_its_names_a_checkpoint_lacks(name, tmp_path):
    """Trainer warns on resuming about missing parameters that it was not told of."""
    model = ours(name)
    model.save_pretrained(tmp_path)
    missing = set(model.state_dict()) - set(load_file(tmp_path / "model.safetensors"))
    assert missing == set(model._keys_to_ignore_on_save or ())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(trainer_class, checkpointing, tmp_path):
    """Dropout included: Trainer puts the state of the random numbers back, and the masks follow from it."""
    name = "LongformerForMaskedLM"
    whole = trainer_of(trainer_class, name, tmp_path, gradient_checkpointing=checkpointing)
    whole.train()
    assert whole.model.is_gradient_checkpointing == checkpointing
    assert (tmp_path / "checkpoint-3" / "config.json").is_file()
    resumed = trainer_of(trainer_class, name, tmp_path / "second", gradient_checkpointing=checkpointing)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


@pytest.mark.parametrize("greater_is_better", [False, True], ids=["least", "greatest"])
def test_the_best_checkpoint_comes_back(trainer_class, greater_is_better, tmp_path):
    trainer = trainer_of(
        trainer_class, "LongformerForSequenceClassification", tmp_path,
        eval_strategy="steps", eval_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=greater_is_better,
    )  # fmt: skip
    trainer.train()
    # One of the two is not the last.
    found = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    assert set(found) == {3, 6}
    step = (max if greater_is_better else min)(found, key=found.get)
    assert pathlib.Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{step}"
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    for key, value in best.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[key], value), key


def test_it_learns_what_transformers_model_learns(trainer_class, tmp_path):
    """Without dropout both take the same steps: the losses agree."""
    name = "LongformerForMaskedLM"
    mine = trainer_of(trainer_class, name, tmp_path / "mine", options={})
    mine.model.set_attention_window(4)
    original = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**mine.model.config.to_dict()))
    original.load_state_dict(mine.model.state_dict())
    theirs = trainer_of(transformers.Trainer, name, tmp_path / "theirs", model=original)
    mine.train()
    theirs.train()
    for (step, mine_loss), (_, their_loss) in zip(losses(mine), losses(theirs), strict=True):
        assert mine_loss == pytest.approx(their_loss, rel=2e-3), step
