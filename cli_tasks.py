"""The commands that answer: texts from files or standard input, results as text or JSON lines."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from longformer_triton.cli_common import Device, Model, device_or_best, in_one_line, known_format
from longformer_triton.cli_inputs import (
    STANDARD_INPUT,
    Item,
    answer_all,
    format_of,
    prepared,
    read_items,
    text_of,
    without_nulls,
)

Files = Annotated[list[pathlib.Path] | None, typer.Argument(help="Files; none, or -, is standard input.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--input",
        help='text: a file is one text; lines: a line is one; jsonl: a line is JSON, a text or an object with "text" (and the '
        "task's other fields). Default: by the suffix.",
        callback=known_format,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON lines, each with its input's name.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts that run together.")]
TooLong = Annotated[
    str | None, typer.Option(help="Texts longer than the model's positions: error, truncate, or for answer and tag split.")
]


def _one_line(text: str) -> str:
    """For a row of a table: without the ends of lines and the tabs of ``text``."""
    return " ".join(text.split())


def run(
    task: str,
    as_text: Callable[[Any], str],
    files: Sequence[pathlib.Path] | None,
    model: str,
    form: str | None,
    as_json: bool,
    dtype: str | None,
    device: str | None,
    batch_size: int,
    too_long: str | None,
    prepare: Callable[[Any], Any] = text_of,
    **options: Any,
) -> None:
    """A command: load, read, answer, write; the exit status is 0, 1 if some inputs were bad, or 2 if nothing could run."""
    from longformer_triton.heads.pipelines import named, pipeline

    with in_one_line(TypeError, NotImplementedError, model=pathlib.Path(model)):
        pipe = pipeline(task, model, dtype=dtype, device=device_or_best(device), batch_size=batch_size, too_long=too_long)
        # Options that do not fit are refused before anything is read.
        pipe([], **options)

    def write(item: Item, result: Any) -> None:
        typer.echo(json.dumps({"input": item.where, "result": result}, ensure_ascii=False) if as_json else as_text(result))

    with in_one_line():
        well = answer_all(pipe, prepared(read_items(files, form), prepare), write, only=f"{named(0)}: ", **options)
    if not well:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the commands to the console command."""
    for name, command in (
        ("fill-mask", fill_mask),
        ("answer", answer),
        ("classify", classify),
        ("tag", tag),
        ("choose", choose),
        ("embed", embed),
        ("tokenize", tokenize),
    ):
        app.command(name)(command)


def fill_mask(
    model: Model,
    files: Files = None,
    top_k: Annotated[int, typer.Option(min=1, help="Words for each mask.")] = 5,
    form: Format = None,
    as_json: Json = False,
    dtype: DType = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    too_long: TooLong = None,
) -> None:
    """Find the likeliest words behind <mask>.

    Example:

        echo "The capital of France is <mask>." | longformer-triton fill-mask --model checkpoint
    """

    def as_text(result: Any) -> str:
        masks = result if isinstance(result[0], list) else [result]
        return "\n".join(
            f"{word['score']:.4f}\t{_one_line(word['token_str'])}\t{_one_line(word['sequence'])}"
            for words in masks
            for word in words
        )

    run("fill-mask", as_text, files, model, form, as_json, dtype, device, batch_size, too_long, top_k=top_k)


def answer(
    model: Model,
    files: Files = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="Asked of each text; JSON lines may have their own.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Answers for each text.")] = 1,
    null_answer: Annotated[bool, typer.Option("--null-answer", help='Let "no answer" compete.')] = False,
    form: Format = None,
    as_json: Json = False,
    dtype: DType = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    too_long: TooLong = None,
) -> None:
    """Find the answer to a question in long texts.

    Examples:

        longformer-triton answer --model checkpoint --question "Who was Jim Henson?" article.txt

        longformer-triton answer --model checkpoint --json questions.jsonl
    """
    if question is not None and not question.strip():
        raise typer.BadParameter(f"got {question!r}, expected a question", param_hint="--question")
    if question is None and any(format_of(path, form) != "jsonl" for path in files or [STANDARD_INPUT]):
        message = "got none, expected the question to ask of each text (JSON lines, --input jsonl, may have their own)"
        raise typer.BadParameter(message, param_hint="--question")

    def prepare(value: Any) -> Any:
        if isinstance(value, str) and question is not None:
            return {"question": question, "context": value}
        if not isinstance(value, dict):
            return value
        given = without_nulls(value)
        if "context" not in given and "text" in given:
            given["context"] = given["text"]
        return given if question is None else {"question": question, **given}

    def as_text(result: Any) -> str:
        found = result if isinstance(result, list) else [result]
        return "\n".join(f"{_one_line(one['answer'])}\t{one['score']:.4f}\t{one['start']}-{one['end']}" for one in found)

    run(
        "question-answering", as_text, files, model, form, as_json, dtype, device, batch_size, too_long, prepare,
        top_k=top_k, null_answer=null_answer,
    )  # fmt: skip


def classify(
    model: Model,
    files: Files = None,
    all_labels: Annotated[bool, typer.Option("--all", help="Every label, not the best alone.")] = False,
    form: Format = None,
    as_json: Json = False,
    dtype: DType = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    too_long: TooLong = None,
) -> None:
    """Label whole texts.

    Example:

        longformer-triton classify --model checkpoint --too-long truncate articles/*.txt
    """

    def as_text(result: Any) -> str:
        return "\t".join(f"{one['label']}\t{one['score']:.4f}" for one in (result if isinstance(result, list) else [result]))

    run(
        "text-classification", as_text, files, model, form, as_json, dtype, device, batch_size, too_long, without_nulls,
        top_k=None if all_labels else 1,
    )  # fmt: skip


def tag(
    model: Model,
    files: Files = None,
    aggregation: Annotated[str, typer.Option(help="none, first, average or max.")] = "first",
    form: Format = None,
    as_json: Json = False,
    dtype: DType = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    too_long: TooLong = None,
) -> None:
    """Label words in texts.

    Example:

        longformer-triton tag --model checkpoint --json article.txt
    """

    def as_text(result: Any) -> str:
        return "\n".join(
            f"{one['start']}-{one['end']}\t{one['label']}\t{one['score']:.4f}\t{_one_line(one['word'])}" for one in result
        )

    run(
        "token-classification", as_text, files, model, form, as_json, dtype, device, batch_size, too_long,
        aggregation=aggregation,
    )  # fmt: skip


def choose(
    model: Model,
    files: Files = None,
    as_json: Json = False,
    dtype: DType = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    too_long: TooLong = None,
) -> None:
    """Choose the text that fits: JSON lines with "context", "choices" and perhaps "question".

    Example:

        echo '{"context": "It rained.", "choices": ["The street is wet.", "Fish fly."]}' |
        longformer-triton choose --model checkpoint
    """

    def as_text(result: Any) -> str:
        return f"{result['choice']}\t{result['score']:.4f}\t{_one_line(result['text'])}"

    run("multiple-choice", as_text, files, model, "jsonl", as_json, dtype, device, batch_size, too_long, without_nulls)


def embed(
    model: Model,
    files: Files = None,
    form: Format = None,
    dtype: DType = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    too_long: TooLong = None,
) -> None:
    """Write a vector for each text, as JSON lines: the mean over tokens, and the first token's.

    Example:

        longformer-triton embed --model checkpoint --input lines sentences.txt > vectors.jsonl
    """
    run("embedding", str, files, model, form, True, dtype, device, batch_size, too_long)


def tokenize(
    model: Model,
    files: Files = None,
    ids: Annotated[bool, typer.Option("--ids", help="Numbers, with special tokens, instead of pieces.")] = False,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Cut texts into tokens.

    Example:

        echo "Hello world" | longformer-triton tokenize --model checkpoint --ids
    """
    from longformer_triton.tokenization import LongformerTokenizer

    with in_one_line(TypeError, model=pathlib.Path(model)):
        tokenizer = LongformerTokenizer.from_pretrained(model)

    def all_of(texts: list[Any], **options: Any) -> list[Any]:  # noqa: ARG001 - what pipelines take
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise TypeError(f"got {type(wrong[0]).__name__}, expected a text")
        cut = tokenizer.encode if ids else tokenizer.tokenize
        return [cut(text, verbose=False) for text in texts]  # however long: no model is to take them

    def write(item: Item, result: Any) -> None:
        typer.echo(
            json.dumps({"input": item.where, "result": result}, ensure_ascii=False) if as_json else " ".join(map(str, result))
        )

    with in_one_line():
        well = answer_all(all_of, prepared(read_items(files, form), text_of), write)
    if not well:
        raise typer.Exit(1)
