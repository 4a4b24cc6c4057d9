"""Continued pretraining: curves that do not depend on how often a run dies or how its batches are divided, and its files."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from pretraining_cases import assert_same_run, curve, make_model, make_texts, options_of, run, weights

import longformer_triton
from longformer_triton.heads import packing, pretraining
from longformer_triton.heads import pretraining_files as files

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

# Seconds after which a process that should have come so far is taken for hanging.
_DEADLINE = 120
# The command, in a process that waits to be killed once it has logged a step.
_COMMAND = """
import signal, sys
from longformer_triton.cli import app
from longformer_triton.heads import pretraining_files as files
append, last = files.TrainingLog.append, int(sys.argv.pop(1))
def log_and_wait(self, row):
    append(self, row)
    while row["step"] >= last:
        signal.pause()
files.TrainingLog.append = log_and_wait
app()
"""


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_page_says(whole, model):
    names = {path.name for path in whole.iterdir()}
    assert names == {"run.json", "tokens", "checkpoints", "log.csv", "loss.png", "model"}
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == ["step-000000008", "step-000000012"]
    rows = files.read_log(whole)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if row["validation_loss"]] == ["4", "8", "12"]
    for row in rows:
        if row["validation_loss"]:
            assert float(row["validation_bits"]) == pytest.approx(float(row["validation_loss"]) / math.log(2))
    assert all(int(row["tokens"]) <= 68 for row in rows)
    # One step of rising, then a straight line to zero.
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == pytest.approx([0.01, *(0.01 * (12 - step) / 11 for step in range(1, 12))])
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.5


def test_global_projections_that_were_copies_are_copies_of_what_was_learned(whole, model):
    before = longformer_triton.LongformerForMaskedLM.from_pretrained(model).state_dict()
    after = weights(whole)
    for name, local in pretraining._copies(after):
        assert torch.equal(after[name], after[local])
        assert not torch.equal(after[name], before[name]) or "key_global.bias" in name


def test_global_projections_of_their_own_are_left_as_they_are(model, texts, tmp_path):
    trained = longformer_triton.LongformerForMaskedLM.from_pretrained(model)
    torch.nn.init.normal_(trained.longformer.encoder.layer[1].attention.self.query_global.weight)
    source = shutil.copytree(model, tmp_path / "source")
    trained.save_pretrained(source)
    run(options_of(source, texts, tmp_path / "run", max_steps=2))
    after = weights(tmp_path / "run")
    for name, _ in pretraining._copies(after):
        assert torch.equal(after[name], trained.state_dict()[name])


def test_transformers_and_the_pipeline_load_the_model(whole):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    fill = longformer_triton.pipeline("fill-mask", whole / "model")
    assert len(fill("the quick <mask> jumped")) == 5
    theirs, loading = transformers.LongformerForMaskedLM.from_pretrained(whole / "model", output_loading_info=True)
    assert not any(loading.values())
    ours = longformer_triton.LongformerForMaskedLM.from_pretrained(whole / "model")
    ids = transformers.LongformerTokenizerFast.from_pretrained(whole / "model")("the quick fox", return_tensors="pt")
    torch.testing.assert_close(ours(**ids).logits, theirs.eval()(**ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1, "accumulation": 2}, {"gradient_checkpointing": True}],
    ids=["accumulated", "checkpointed"],
)
def test_rows_of_a_step_weigh_alike_however_they_are_divided(texts, tmp_path, changes):
    """Without dropout: means over batches would weigh tokens by how many others are hidden beside them."""
    source = make_model(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for name, more in (("one", {}), ("other", changes)):
        run(options_of(source, texts, tmp_path / name, max_steps=4, mask_probability=0.05, **more))
    for got, expected in zip(curve(tmp_path / "other"), curve(tmp_path / "one"), strict=True):
        for name, value in expected.items():
            assert (float(got[name]) == pytest.approx(float(value), rel=1e-4)) if value else not got[name], name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_too(model, texts, tmp_path, precision):
    run(options_of(model, texts, tmp_path / "run", mixed_precision=precision, max_steps=6, validation_share=0.0))
    losses = [float(row["loss"]) for row in curve(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.2
    assert not any(row["validation_loss"] for row in curve(tmp_path / "run"))


def test_held_out_files(model, texts, tmp_path):
    run(options_of(model, texts[:2], tmp_path / "run", validation_files=texts[2:], evaluate_every=2, max_steps=4))
    assert [row["step"] for row in curve(tmp_path / "run") if row["validation_loss"]] == ["2", "4"]
    assert (tmp_path / "run" / "validation-tokens").is_dir()


def test_measuring_more_often_changes_nothing_else(model, texts, whole, tmp_path):
    """Held-out text is read without dropout, and draws no random number."""
    options = options_of(model, texts, tmp_path / "run", evaluate_every=1)
    run(options)
    for got, expected in zip(curve(options.out), curve(whole), strict=True):
        assert got["validation_loss"]
        assert all(got[name] == value for name, value in expected.items() if value)


def test_prepared_texts_are_all_that_is_made(model, texts, tmp_path):
    assert run(options_of(model, texts, tmp_path / "run"), prepare_only=True) is None
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "tokens"}


# --- going on ---------------------------------------------------------------------------------------------------------


def start_and_kill(options, step):
    """Run the command in a process of its own, and kill it once its log has the line of a step."""
    arguments = [
        "pretrain", "--model", options.model, "--out", options.out, "--cpu", "--seq-len", options.seq_len,
        "--batch-size", options.batch_size, "--max-steps", options.max_steps, "--save-every", options.save_every,
        "--learning-rate", options.learning_rate, "--validation-share", options.validation_share, *options.files,
    ]  # fmt: skip
    command = [sys.executable, "-c", _COMMAND, str(step), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=options.out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            deadline = time.monotonic() + _DEADLINE
            while not any(int(row["step"]) >= step for row in files.read_log(options.out)):
                assert process.poll() is None, process.stdout.read().decode()
                assert time.monotonic() < deadline, f"no line of step {step} after {_DEADLINE} s"
                time.sleep(0.01)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "pause"), reason="needs signals")
def test_a_killed_run_goes_on_to_the_same_curve(model, texts, whole, tmp_path):
    """Killed at step 7, it goes on from step 4: steps 5 to 7 come again, with the same rows, masked tokens and dropout."""
    options = options_of(model, texts, tmp_path / "run")
    start_and_kill(options, 7)
    assert [int(row["step"]) for row in files.read_log(options.out)] == list(range(1, 8))
    assert files.last_checkpoint(options.out / "checkpoints")[1] == 4
    run(options)
    assert_same_run(options.out, whole)


class CrashError(BaseException):
    """Like KeyboardInterrupt, no Exception that code on the way might take for its own."""


def crash(*_, **__):
    raise CrashError


def half_a_checkpoint(accelerator, folder):
    (pathlib.Path(folder) / "model.safetensors").write_bytes(b"half")
    raise CrashError


def half_removed(folder):
    next(pathlib.Path(folder).iterdir()).unlink()
    raise CrashError


# Where a run dies, and how far what it was doing has come then.
PLACES = {
    "while_a_checkpoint_is_written": (accelerate.Accelerator, "save_state", half_a_checkpoint),
    "before_it_is_on_the_disk": (files, "flush", crash),
    "before_it_has_its_name": (pathlib.Path, "replace", crash),
    "while_old_ones_are_removed": (shutil, "rmtree", half_removed),
    "while_the_curve_is_drawn": (files, "draw_curve", crash),
    "while_the_model_is_saved": (pretraining._Run, "_save", crash),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_crash_while_files_are_written_changes_nothing(model, texts, whole, tmp_path, monkeypatch, place):
    options = options_of(model, texts, tmp_path / "run", keep=1)
    owner, name, end = PLACES[place]
    save, is_later = files.save_checkpoint, name in ("draw_curve", "_save")

    def saving(accelerator, folder, step, keep):
        with monkeypatch.context() as patch:
            if step == 8 and not is_later:
                patch.setattr(owner, name, end)
            save(accelerator, folder, step, keep)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_checkpoint", saving)
        if is_later:
            patch.setattr(owner, name, end)
        with pytest.raises(CrashError):
            run(options)
    for path in (options.out / "checkpoints").glob("step-*"):
        assert {part.name for part in path.iterdir()} == {"model.safetensors", "optimizer.bin", "random_states_0.pkl"}
    run(options)
    assert_same_run(options.out, whole)
    assert [path.name for path in (options.out / "checkpoints").iterdir()] == ["step-000000012"]


def test_a_line_that_was_cut_off_is_written_again(model, texts, whole, tmp_path, monkeypatch):
    options = options_of(model, texts, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(files, "draw_curve", crash)
        with pytest.raises(CrashError):
            run(options)
    with (options.out / "log.csv").open("a") as file:
        # The beginning of a line of step 10 or later reads like step 1.
        file.write("1")
    run(options)
    assert_same_run(options.out, whole)


def test_a_finished_run_stays_finished(model, texts, whole, tmp_path):
    options = options_of(model, texts, shutil.copytree(whole, tmp_path / "run"))
    run(dataclasses.replace(options, save_every=3, keep=5))
    assert_same_run(options.out, whole)


def test_other_options_are_another_run(model, texts, whole):
    for changes in ({"max_steps": 13}, {"seed": 1}, {"batch_size": 4}, {"learning_rate": 0.1}, {"files": texts[:2]}):
        options = dataclasses.replace(options_of(model, texts, whole), **changes)
        wanted = "rows_a_step" if "batch_size" in changes else next(iter(changes))
        with pytest.raises(ValueError, match=rf"a run with other options: {wanted} \(was"):
            run(options)


def test_changed_texts_are_another_run(model, tmp_path):
    texts = make_texts(tmp_path / "texts")
    options = options_of(model, texts, tmp_path / "run", max_steps=2)
    run(options)
    texts[0].write_text("the fox", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokens of other texts \(files differ\)"):
        run(options)


# --- refusals: nothing is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 119}, "seq_len: got 119, expected at most 118"),
        ({"seq_len": 2}, "seq_len: got 2, expected a whole number, 3 or more"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"max_steps": 0}, "max_steps: got 0"),
        ({"keep": 0}, "keep: got 0"),
        ({"warm_up": 12}, "warm_up: got 12 steps, expected fewer than max_steps, 12"),
        ({"learning_rate": 0.0}, "learning_rate: got 0.0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm: got nan"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1"),
        ({"mask_probability": 1.0}, "mask_probability: got 1.0"),
        ({"validation_share": 1.0}, "validation_share: got 1.0"),
        ({"mixed_precision": "fp8"}, "mixed_precision: got 'fp8', expected one of no, fp16, bf16"),
        ({"form": "xml"}, "form: got 'xml', expected one of text, lines, jsonl"),
        ({"files": []}, "files: got none"),
        ({"files": [pathlib.Path("absent.txt")]}, "files: got absent.txt, which is no file"),
        ({"validation_files": [pathlib.Path("absent.txt")]}, "validation_files: got absent.txt"),
        ({"model": "./absent"}, "absent"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_is_written(model, texts, tmp_path, changes, message):
    options = dataclasses.replace(options_of(model, texts, tmp_path / "run"), **changes)
    with pytest.raises(ValueError, match=message):
        run(options)
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_named_with_the_extra(model, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r'accelerate, matplotlib: not installed; run: pip install "longformer-triton\[train\]"'
    ):
        run(options_of(model, texts, tmp_path / "run"))


def test_a_folder_of_something_else_is_refused(model, texts, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        run(options_of(model, texts, tmp_path))
    with pytest.raises(ValueError, match="which is a file, expected a folder"):
        run(options_of(model, texts, tmp_path / "notes.txt"))


def test_a_tokenizer_of_another_model_is_refused(model, texts, tmp_path):
    source = shutil.copytree(model, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    smaller = longformer_triton.LongformerForMaskedLM.from_pretrained(source)
    smaller.resize_token_embeddings(config["vocab_size"] - 1)
    smaller.save_pretrained(source)
    with pytest.raises(ValueError, match="expected at most vocab_size"):
        run(options_of(source, texts, tmp_path / "run"))


def test_too_few_texts_to_hold_some_out(model, tmp_path):
    texts = make_texts(tmp_path / "texts", 1, 5)
    with pytest.raises(ValueError, match="of 1 rows, which leaves none to learn from"):
        run(options_of(model, texts, tmp_path / "run"))


def test_a_loss_that_is_no_number_ends_the_run(model, texts, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss: got nan at step \d+"):
        run(options_of(model, texts, tmp_path / "run", learning_rate=1e30, max_grad_norm=1e30))


def test_packed_rows_reach_the_model_whole(model, texts, tmp_path, monkeypatch):
    """Rows of a batch: as long as asked for, no padding but in the last; masked tokens alone are predicted."""
    seen = []
    forward = pretraining.MaskedTokenLoss.forward
    monkeypatch.setattr(
        pretraining.MaskedTokenLoss, "forward", lambda self, **batch: (seen.append(batch), forward(self, **batch))[1]
    )
    options = options_of(model, texts, tmp_path / "run", max_steps=8, validation_share=0.0)
    run(options)
    tokenizer = longformer_triton.LongformerTokenizer.from_pretrained(model)
    stream = packing.tokenized(tokenizer, texts, options.out / "tokens")
    rows = len(packing.PackedRows(stream, 34, 0, 2))
    padded = [batch for batch in seen if batch["attention_mask"] is not None]
    assert 0 < len(padded) < len(seen)
    assert rows > 2
    for batch in seen:
        assert batch["input_ids"].shape[1] == 34
        assert (batch["input_ids"][:, 0] == 0).all()
        assert not torch.isin(batch["targets"], torch.tensor(tokenizer.all_special_ids)).any()
