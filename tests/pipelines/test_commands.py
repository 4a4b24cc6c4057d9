"""The commands that answer: inputs of every kind, bad lines named, exit statuses, examples that can be typed."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from model_cases import TINY
from text_cases import tokenizer_of
from typer.testing import CliRunner

import longformer_triton
from longformer_triton import cli_inputs
from longformer_triton.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "the cat saw a tree"
HEADS = {
    "fill-mask": "LongformerForMaskedLM",
    "answer": "LongformerForQuestionAnswering",
    "classify": "LongformerForSequenceClassification",
    "tag": "LongformerForTokenClassification",
    "choose": "LongformerForMultipleChoice",
    "embed": "LongformerModel",
}
CHOICES = json.dumps({"context": TEXT, "choices": ["the cat", "a tree"]})
# What each command reads from a line, and its options.
LINES = {
    "fill-mask": ("the <mask> saw", ["--input", "lines"]),
    "answer": (TEXT, ["--input", "lines", "--question", "who saw"]),
    "classify": (TEXT, ["--input", "lines"]),
    "tag": (TEXT, ["--input", "lines", "--aggregation", "none"]),
    "choose": (CHOICES, []),
    "embed": (TEXT, ["--input", "lines"]),
    "tokenize": (TEXT, ["--input", "lines"]),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    tokenizer = tokenizer_of([*TEXT.split(), "who"], root / "tokenizer")
    folders = {"tokenize": root / "tokenizer"}
    for command, name in HEADS.items():
        torch.manual_seed(4)
        config = longformer_triton.LongformerConfig(**{**TINY, "vocab_size": len(tokenizer)})
        folders[command] = root / command
        getattr(longformer_triton, name)(config).save_pretrained(folders[command])
        tokenizer.save_pretrained(folders[command])
    return folders


def call(command, checkpoints, *arguments, **options):
    device = [] if command == "tokenize" else ["--device", "cpu"]
    return CliRunner().invoke(app, [command, "--model", str(checkpoints[command]), *device, *map(str, arguments)], **options)


def rows(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("command", LINES)
def test_lines_of_standard_input_are_answered_in_order(command, checkpoints):
    line, options = LINES[command]
    extra = [] if command == "embed" else ["--json"]
    result = call(command, checkpoints, *options, *extra, input=f"{line}\n\n{line}\n")
    assert result.exit_code == 0, result.output
    assert [row["input"] for row in rows(result)] == ["standard input:1", "standard input:3"]
    first, second = (row["result"] for row in rows(result))
    assert first == second
    assert first or command == "tag"


@pytest.mark.parametrize("command", [command for command in LINES if command != "embed"])
def test_results_are_text_unless_json_is_asked_for(command, checkpoints):
    line, options = LINES[command]
    result = call(command, checkpoints, *options, input=f"{line}\n")
    assert result.exit_code == 0, result.output
    assert not result.stdout.startswith("{")
    assert result.stdout.strip()


def test_a_file_is_one_text_and_a_jsonl_file_one_a_line(checkpoints, tmp_path):
    (tmp_path / "article.txt").write_text(f"{TEXT}\n{TEXT}\n")
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"text": TEXT}) for _ in range(3)))
    result = call("classify", checkpoints, "--json", tmp_path / "article.txt", tmp_path / "many.jsonl")
    assert result.exit_code == 0, result.output
    assert [row["input"].rpartition("/")[2] for row in rows(result)] == [
        "article.txt", "many.jsonl:1", "many.jsonl:2", "many.jsonl:3",
    ]  # fmt: skip


def test_questions_come_from_the_lines_or_from_the_option(checkpoints, tmp_path):
    (tmp_path / "some.jsonl").write_text(json.dumps({"question": "who", "context": TEXT}) + "\n" + json.dumps(TEXT) + "\n")
    result = call("answer", checkpoints, "--json", "--question", "who saw", tmp_path / "some.jsonl")
    assert result.exit_code == 0, result.output
    assert [row["result"]["answer"] in TEXT for row in rows(result)] == [True, True]


@pytest.mark.parametrize("arguments", [[], ["--input", "lines"], ["--question", " "]], ids=["text", "lines", "blank"])
def test_texts_without_a_question_are_a_usage_error(arguments, checkpoints):
    result = call("answer", checkpoints, *arguments, input=f"{TEXT}\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for --question: got" in " ".join(result.stderr.split())


def test_a_line_without_a_question_is_named(checkpoints):
    lines = [json.dumps(TEXT), json.dumps({"context": TEXT}), json.dumps({"question": "who", "context": TEXT})]
    result = call("answer", checkpoints, "--input", "jsonl", "--json", input="\n".join(lines))
    assert result.exit_code == 1
    assert [row["input"] for row in rows(result)] == ["standard input:3"]
    assert "standard input:1: got str, expected {'question': a text, 'context': a text}" in result.stderr
    assert "standard input:2: got no 'question' among ['context']" in result.stderr


def test_an_aggregation_that_is_none_is_refused_before_anything_is_read(checkpoints, tmp_path):
    result = call("tag", checkpoints, "--aggregation", "foo", tmp_path / "absent.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: aggregation: got 'foo', expected one of none, first, average, max.\n"


def test_lines_without_a_question_get_that_of_the_option(checkpoints):
    """Whether they are texts, objects, or objects of other commands; their own questions go first."""
    own = {"question": "a tree", "context": TEXT, "text": "a tree"}
    lines = [{"context": TEXT}, {"text": TEXT}, {"question": None, "context": TEXT}, own]
    given = "\n".join(map(json.dumps, lines))
    result = call("answer", checkpoints, "--json", "--question", "who saw", "--input", "jsonl", input=given)
    assert result.exit_code == 0, result.output
    plain = call("answer", checkpoints, "--json", "--question", "who saw", "--input", "lines", input=f"{TEXT}\n")
    alone = {"question": own["question"], "context": own["context"]}
    asked = call("answer", checkpoints, "--json", "--input", "jsonl", input=json.dumps(alone))
    scores = [row["result"]["score"] for row in (*rows(result), *rows(plain), *rows(asked))]
    assert scores == pytest.approx([scores[4]] * 3 + [scores[5]] + scores[4:], rel=1e-4)
    assert scores[4] != pytest.approx(scores[5], rel=1e-3), "the questions tell"


@pytest.mark.parametrize("command", ["fill-mask", "classify", "tag", "embed", "tokenize"])
def test_a_line_of_json_is_a_text_or_has_one(command, checkpoints):
    """One file serves all commands that take texts."""
    text = LINES[command][0]
    lines = [json.dumps(text), json.dumps({"text": text, "id": 7}), json.dumps({"words": text})]
    extra = [] if command == "embed" else ["--json"]
    result = call(command, checkpoints, "--input", "jsonl", *extra, input="\n".join(lines))
    assert result.exit_code == 1
    first, second = (row["result"] for row in rows(result))
    assert first == second
    assert "standard input:3: got no 'text' among ['words'], expected" in result.stderr


@pytest.mark.parametrize("form", ["text", "lines", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_text(form, checkpoints, tmp_path):
    content = json.dumps(TEXT) if form == "jsonl" else TEXT
    (tmp_path / "marked").write_text(content, encoding="utf-8-sig")
    (tmp_path / "plain").write_text(content)
    result = call("tokenize", checkpoints, "--json", "--input", form, tmp_path / "marked", tmp_path / "plain")
    assert result.exit_code == 0, result.output
    first, second = (row["result"] for row in rows(result))
    assert first == second


def test_pipes_are_files(checkpoints):
    """As ``<(command)`` of a shell gives them."""
    reading, writing = os.pipe()
    os.write(writing, TEXT.encode())
    os.close(writing)
    try:
        result = call("tokenize", checkpoints, "--json", f"/dev/fd/{reading}")
    finally:
        os.close(reading)
    assert result.exit_code == 0, result.output
    assert rows(result) == [{"input": f"/dev/fd/{reading}", "result": rows(result)[0]["result"]}]
    assert rows(result)[0]["result"]


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(checkpoints, tmp_path, monkeypatch):
    (tmp_path / "article.txt").write_text(TEXT)
    (tmp_path / "secret.txt").write_text(TEXT)
    opened = pathlib.Path.open

    def refuse(path, *arguments, **options):
        if path.name == "secret.txt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    result = call("tokenize", checkpoints, "--json", tmp_path / "secret.txt", tmp_path / "article.txt")
    assert result.exit_code == 1
    assert [row["input"].rpartition("/")[2] for row in rows(result)] == ["article.txt"]
    assert result.stderr == f"{tmp_path / 'secret.txt'}: Permission denied; get the permission, or name another place.\n"


def test_a_disk_that_fails_while_reading_is_a_bad_input():
    def lines():
        yield f"{TEXT}\n"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    items = list(cli_inputs._decoded("disk", lines(), "lines"))
    assert [(item.where, item.is_bad) for item in items] == [("disk:1", False), ("disk", True)]
    assert items[1].value == "Input/output error; name another place."


def test_a_full_disk_behind_standard_output_is_one_line(checkpoints):
    """In a process of its own, since Python tries again to write when it ends."""
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "longformer_triton.cli", "tokenize", "--model", str(checkpoints["tokenize"])]
    with pathlib.Path("/dev/full").open("w") as full:
        done = subprocess.run(command, input=TEXT, stdout=full, stderr=subprocess.PIPE, text=True, cwd=checkpoints["tokenize"])
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "error: standard output: No space left on device; free some space, or name another place."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["fill-mask", "tag", "answer", "choose"])
def test_a_result_is_a_row_whatever_lines_its_text_has(command, checkpoints):
    line, options = LINES[command]
    given = line if command == "choose" else line.replace(" ", "\n") + "\n"
    given = given.replace("a tree", "a\\ntree") if command == "choose" else given
    extra = [] if command == "choose" else ["--input", "text"]
    extra += ["--top-k", "1000"] if command == "fill-mask" else []  # every word, tabs and ends of lines among them
    options = [option for option in options if option not in ("--input", "lines")]
    result = call(command, checkpoints, *options, *extra, input=given)
    assert result.exit_code == 0, result.output
    columns = {len(row.split("\t")) for row in result.stdout.removesuffix("\n").split("\n")}
    assert columns == {4 if command == "tag" else 3}


def test_long_texts_are_cut_into_tokens_without_a_word_about_a_model(checkpoints, tmp_path, caplog):
    tokenizer = longformer_triton.LongformerTokenizer.from_pretrained(checkpoints["tokenize"], model_max_length=16)
    tokenizer.save_pretrained(tmp_path)
    result = call("tokenize", {"tokenize": tmp_path}, "--input", "text", input=" ".join([TEXT] * 10))
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.split()) > 16
    assert not caplog.records
    tokenizer.tokenize(" ".join([TEXT] * 10))
    assert caplog.records, "elsewhere it is told"


def test_bad_lines_are_named_and_the_rest_goes_on(checkpoints):
    lines = [json.dumps({"text": TEXT}), "{no json", json.dumps({"word": TEXT}), json.dumps({"text": TEXT})]
    result = call("classify", checkpoints, "--input", "jsonl", "--json", input="\n".join(lines))
    assert result.exit_code == 1
    assert [row["input"] for row in rows(result)] == ["standard input:1", "standard input:4"]
    assert "standard input:2: no JSON" in result.stderr
    assert "standard input:3: got no 'text'" in result.stderr


@pytest.mark.parametrize("command", ["classify", "tokenize"])
def test_a_file_in_another_encoding_is_named_and_the_rest_goes_on(command, checkpoints, tmp_path):
    (tmp_path / "latin.txt").write_bytes("l'\xe9t\xe9".encode("latin-1"))
    (tmp_path / "article.txt").write_text(TEXT)
    result = call(command, checkpoints, "--json", tmp_path / "latin.txt", tmp_path / "article.txt")
    assert result.exit_code == 1
    assert [row["input"].rpartition("/")[2] for row in rows(result)] == ["article.txt"]
    assert "latin.txt: got 'utf-8' codec can't decode" in result.stderr
    assert "expected UTF-8" in result.stderr


def test_a_text_that_is_too_long_is_named_with_the_remedy(checkpoints):
    long = " ".join([TEXT] * 100)
    result = call("classify", checkpoints, "--input", "lines", input=f"{TEXT}\n{long}\n")
    assert result.exit_code == 1
    assert "standard input:2: " in result.stderr
    assert "too_long='truncate'" in result.stderr
    assert call("classify", checkpoints, "--input", "lines", "--too-long", "truncate", input=f"{long}\n").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--too-long", "split"], "too_long: got 'split'"),
        (["--input", "xml"], "expected one of text, lines, jsonl"),
        (["absent.txt"], "absent.txt: no such file"),
        (["/"], "/: a folder, expected files"),
        (["--device", "foo"], "device: got 'foo', expected a torch.device or its name"),
        (["--device", "xpu:9"], "device: got 'xpu:9', expected one that is here"),
    ],
    ids=["option", "format", "file", "folder", "no_device", "absent_device"],
)
def test_what_cannot_run_ends_with_status_two(checkpoints, arguments, message):
    result = call("classify", checkpoints, *arguments, input="")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_wrong_name_is_refused_before_the_files_in_front_of_it_are_read(checkpoints, tmp_path):
    (tmp_path / "many.txt").write_text(f"{TEXT}\n" * 100)
    result = call("tokenize", checkpoints, "--input", "lines", tmp_path / "many.txt", "typo.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "typo.txt: no such file" in result.stderr


def test_a_directory_that_is_none_is_named():
    result = CliRunner().invoke(app, ["embed", "--model", "./absent", "--device", "cpu"], input="")
    assert result.exit_code == 2
    assert "absent" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["embed", "--model", ""], "'--model' / '-m'"),
        (["tokenize", "--model", ""], "'--model' / '-m'"),
        (["fits", "--model", ""], "'--model' / '-m'"),
        (["convert", "", "long"], "'SRC'"),
        (["pretrain", "--model", "", "--out", "run", "a.txt"], "'--model' / '-m'"),
        (["pretrain", "--model", "checkpoint", "--tokenizer", "", "--out", "run", "a.txt"], "'--tokenizer'"),
    ],
    ids=["embed", "tokenize", "fits", "convert", "pretrain", "pretrain_tokenizer"],
)
def test_an_empty_name_of_a_checkpoint_is_a_usage_error(arguments, option):
    """As ``--model "$UNSET"`` of a shell gives it."""
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Invalid value for {option}: got nothing, expected a" in " ".join(result.stderr.replace("│", "").split())


def test_a_tokenizer_of_another_kind_is_one_line_and_status_two(checkpoints, tmp_path):
    shutil.copytree(checkpoints["tokenize"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"sep_token": 5}')
    result = call("tokenize", {"tokenize": tmp_path}, input=TEXT)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: sep_token: got int, expected a str")


@pytest.mark.parametrize("command", LINES)
def test_help_has_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"longformer-triton {command}" in " ".join(result.stdout.split())


def test_ids_of_tokens_have_their_ends(checkpoints):
    result = call("tokenize", checkpoints, "--ids", "--input", "lines", input=f"{TEXT}\n")
    numbers = [int(number) for number in result.stdout.split()]
    assert (numbers[0], numbers[-1]) == (0, 2)
