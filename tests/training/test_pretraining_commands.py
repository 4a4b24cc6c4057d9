"""Pretraining as people use it: from the command line, on real speeches, from a RoBERTa, on two processes."""

import collections
import csv
import json
import math
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
import torch
from pretraining_cases import make_model, make_texts, options_of, run
from typer.testing import CliRunner

import longformer_triton
from longformer_triton import LongformerConfig, LongformerForMaskedLM, LongformerTokenizer
from longformer_triton.cli import app
from longformer_triton.heads import pretraining_files as files

pytestmark = pytest.mark.usefixtures("one_thread")

needs_speeches = pytest.mark.skipif(
    "LONGFORMER_TEST_ASSETS" not in os.environ, reason="LONGFORMER_TEST_ASSETS, the folder of test data, is not set"
)


@pytest.fixture(scope="module")
def speeches(tmp_path_factory):
    """State of the Union addresses as UTF-8."""
    folder = tmp_path_factory.mktemp("speeches")
    with zipfile.ZipFile(pathlib.Path(os.environ["LONGFORMER_TEST_ASSETS"]) / "state_union.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))[:20]
        paths = [folder / pathlib.Path(name).name for name in names]
        for name, path in zip(names, paths, strict=True):
            path.write_text(archive.read(name).decode("cp1252"), encoding="utf-8")
    return paths


def small_model(speeches, folder, **options):
    """A new model with a vocabulary of the speeches, and the loss of knowing nothing but how frequent tokens are."""
    tokenizer = LongformerTokenizer.train_from_files(speeches, 300, show_progress=False)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = LongformerConfig(
        vocab_size=len(tokenizer), max_position_embeddings=514, attention_window=16, initializer_range=0.05,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip
    LongformerForMaskedLM(config).save_pretrained(folder)
    texts = [path.read_text(encoding="utf-8") for path in speeches]
    counts = collections.Counter(
        token for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] for token in row
    )
    total = sum(counts.values())
    return folder, -sum(count / total * math.log(count / total) for count in counts.values())


@needs_speeches
def test_the_loss_falls_on_real_text(speeches, tmp_path):
    """From guessing among all tokens to knowing which are frequent; text that was held out shows it."""
    model, _ = small_model(speeches, tmp_path / "model")
    options = options_of(
        model, speeches, tmp_path / "run", seq_len=256, batch_size=4, max_steps=40, save_every=20, validation_share=0.01
    )
    run(options)
    rows = files.read_log(options.out)
    assert float(rows[0]["loss"]) > math.log(300) - 0.3
    held_out = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
    assert held_out[-1] < held_out[0] < float(rows[0]["loss"]) - 1
    assert max(float(row["loss"]) for row in rows[-10:]) < float(rows[0]["loss"]) - 1


@needs_speeches
@pytest.mark.extended
def test_the_model_learns_from_what_stands_around_a_hidden_token(speeches, tmp_path):
    """Better than frequencies alone can be."""
    model, of_frequencies = small_model(speeches, tmp_path / "model")
    options = options_of(
        model, speeches, tmp_path / "run", seq_len=66, batch_size=16, max_steps=1000, save_every=500, learning_rate=3e-3,
        validation_share=0.01,
    )  # fmt: skip
    run(options)
    assert float(files.read_log(options.out)[-1]["validation_loss"]) < of_frequencies - 0.2


def call(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


@needs_speeches
def test_from_a_roberta_to_answers(speeches, tmp_path):
    """Convert, train on long rows, fill a mask: three commands."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = LongformerTokenizer.train_from_files(speeches[:2], 400, show_progress=False)
    tokenizer.save_pretrained(tmp_path / "roberta")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **sizes)
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")

    long = tmp_path / "long"
    call("convert", tmp_path / "roberta", long, "--max-positions", 514, "--attention-window", 64)
    trained = call(
        "pretrain", "--model", long, "--out", tmp_path / "run", "--cpu", "--batch-size", 2, "--max-steps", 3,
        "--learning-rate", 0.001, "--gradient-checkpointing", *speeches[:2],
    )  # fmt: skip
    assert "held-out text" in trained.stdout
    assert "saved" in trained.stdout
    rows = files.read_log(tmp_path / "run")
    assert [int(row["tokens"]) for row in rows] == [2 * 512] * 3
    (tmp_path / "question.txt").write_text("the United <mask> of America", encoding="utf-8")
    answer = call("fill-mask", "--model", tmp_path / "run" / "model", "--device", "cpu", tmp_path / "question.txt")
    assert len(answer.stdout.strip().splitlines()) == 5
    again = longformer_triton.LongformerForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert not torch.equal(again.lm_head.bias, torch.zeros_like(again.lm_head.bias))


def test_a_bad_option_is_one_line_and_status_two(tmp_path):
    """And names the option, and nothing is written."""
    model, texts = make_model(tmp_path / "model"), make_texts(tmp_path / "texts")
    for option, message in (
        (("--seq-len", "500"), "error: seq_len: got 500"),
        (("--input", "xml"), "Invalid value for '--input': got 'xml', expected one of text, lines, jsonl"),
        (("--validation", "absent.txt"), "Invalid value for '--validation': "),
        (("--validation", "."), "Invalid value for '--validation': "),
    ):
        arguments = ["pretrain", "--model", model, "--out", tmp_path / "run", "--cpu", *option, *texts]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.replace("│", "").split())
        assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta", "is_decoder": True}, "config.json: got is_decoder true, expected an encoder"),
        ({"hidden_size": "12"}, "error: hidden_size: got '12', expected an int"),
    ],
    ids=["decoder", "size_of_another_kind"],
)
def test_a_checkpoint_that_no_longformer_computes_is_one_line_and_status_two(tmp_path, changes, message):
    model, texts = make_model(tmp_path / "model"), make_texts(tmp_path / "texts")
    entries = {**json.loads((model / "config.json").read_text()), **changes}
    (model / "config.json").write_text(json.dumps(entries))
    arguments = ["pretrain", "--model", model, "--out", tmp_path / "run", "--cpu", *texts]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_has_an_example():
    told = " ".join(CliRunner().invoke(app, ["pretrain", "--help"]).stdout.split())
    assert "longformer-triton pretrain --model" in told
    assert "accelerate launch -m longformer_triton.cli pretrain" in told


@pytest.mark.extended
def test_two_processes_learn_what_one_learns_from_as_many_rows(tmp_path):
    """``accelerate launch`` over gloo, since our own --cpu leaves GPUs alone (the launcher's --cpu starts one process alone).

    An odd number of rows is held out, so that one process has a batch with nothing to predict.
    """
    model = make_model(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    texts = make_texts(tmp_path / "texts")
    options = options_of(model, texts, tmp_path / "one", batch_size=2, accumulation=2, save_every=2, max_steps=6)
    run(options)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "longformer_triton.cli",
        "pretrain", "--model", model, "--out", tmp_path / "two", "--cpu", "--seq-len", 34, "--batch-size", 1,
        "--accumulation", 2, "--max-steps", 6, "--save-every", 2, "--learning-rate", 0.01, "--validation-share", 0.2, *texts,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def launch():
        return subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    first = launch()
    assert first.returncode == 0, first.stdout + first.stderr
    got, expected = (files.read_log(tmp_path / name) for name in ("two", "one"))
    assert [row["step"] for row in got] == [row["step"] for row in expected]
    for mine, other in zip(got, expected, strict=True):
        for name in ("loss", "validation_loss", "learning_rate", "gradient_norm", "tokens"):
            assert mine[name] == other[name] == "" or float(mine[name]) == pytest.approx(float(other[name]), rel=1e-4), name
    states = [LongformerForMaskedLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("two", "one")]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-4)
    # Going on from the state of both: without the last checkpoint and the lines behind it, the same curve comes out.
    for path in (tmp_path / "two" / "checkpoints").glob("step-000000006*/*"):
        path.unlink()
    (tmp_path / "two" / "checkpoints" / "step-000000006").rmdir()
    assert launch().returncode == 0
    with (tmp_path / "two" / "log.csv").open() as file:
        again = [{**row, "tokens_per_second": ""} for row in csv.DictReader(file)]
    assert again == [{**row, "tokens_per_second": ""} for row in got]
