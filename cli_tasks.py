"""The commands that answer: texts from files or standard input, results as text or JSON lines."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from longformer_triton.cli_common import Device, device_or_best, fail

_AT_ONCE = 64
_FORMATS = ("text", "lines", "jsonl")
_STANDARD_INPUT = pathlib.Path("-")

Model = Annotated[str, typer.Option("--model", "-m", help="A checkpoint directory, or a name on the hub.")]
Files = Annotated[list[pathlib.Path] | None, typer.Argument(help="Files; none, or -, is standard input.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="text: a file is one text; lines: a line is one; jsonl: a line is a JSON object. Default: by the suffix.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON lines.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts that run together.")]
TooLong = Annotated[
    str | None, typer.Option(help="Texts longer than the model's positions: error, truncate, or for answer and tag split.")
]


@dataclasses.dataclass(frozen=True)
class Item:
    """One input and where it came from; ``value`` is an error's text if it cannot be read."""

    where: str
    value: Any
    is_bad: bool = False


def read_items(files: Sequence[pathlib.Path] | None, form: str | None) -> Iterator[Item]:
    """The inputs in files or standard input, bad lines among them marked.

    Raises:
        typer.BadParameter: a file is not there, or the format unknown.
    """
    if form is not None and form not in _FORMATS:
        raise typer.BadParameter(f"got {form!r}, expected one of {', '.join(_FORMATS)}", param_hint="--input")
    for path in files or [_STANDARD_INPUT]:
        chosen = _format_of(path, form)
        if str(path) == "-":
            yield from _decoded("standard input", sys.stdin, chosen)
            continue
        if not path.is_file():
            what = "a folder, expected files" if path.is_dir() else "no such file"
            raise typer.BadParameter(f"{path}: {what}", param_hint="FILES")
        with path.open(encoding="utf-8") as file:
            yield from _decoded(str(path), file, chosen)


def _format_of(path: pathlib.Path, form: str | None) -> str:
    return form or ("jsonl" if path.suffix == ".jsonl" else "text")


def _decoded(name: str, file: Iterable[str], form: str) -> Iterator[Item]:
    """The inputs of a file; where it stops being UTF-8, a bad one, and the rest is not read."""
    try:
        yield from _items_of(name, file, form)
    except UnicodeDecodeError as error:
        yield Item(name, f"got {error}, expected UTF-8: convert the file", is_bad=True)


def _items_of(name: str, file: Iterable[str], form: str) -> Iterator[Item]:
    if form == "text":
        yield Item(name, "".join(file))
        return
    for number, line in enumerate(file, start=1):
        where = f"{name}:{number}"
        if not line.strip():
            continue
        if form == "lines":
            yield Item(where, line.rstrip("\n"))
            continue
        try:
            yield Item(where, json.loads(line))
        except ValueError as error:
            yield Item(where, f"no JSON: {error}", is_bad=True)


def answer_all(pipe: Any, items: Iterable[Item], write: Callable[[Item, Any], None], *, only: str = "", **options: Any) -> bool:
    """Write the result of each item, in order; what is wrong with an item goes to standard error, and the rest goes on.

    Args:
        pipe: called with lists of values and ``options``.
        items: what to answer.
        write: called with an item and its result.
        only: how messages of ``pipe`` name the one value of a list; where the item is from stands there instead.
        options: of ``pipe``.

    Returns:
        Whether all went well.
    """
    well = True
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, _AT_ONCE)):
        good = [item for item in chunk if not item.is_bad]
        try:
            results = iter(pipe([item.value for item in good], **options))
        except (ValueError, TypeError):
            # One of them, or all: each alone says which.
            results = None
        for item in chunk:
            try:
                if item.is_bad:
                    raise ValueError(item.value)
                result = next(results) if results is not None else pipe([item.value], **options)[0]
            except (ValueError, TypeError) as error:
                well = False
                typer.echo(f"{item.where}: {str(error).removeprefix(only)}", err=True)
                continue
            write(item, result)
    return well


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
    prepare: Callable[[Any], Any] = lambda value: value,
    **options: Any,
) -> None:
    """A command: load, read, answer, write; the exit status is 0, 1 if some inputs were bad, or 2 if nothing could run."""
    from longformer_triton.heads.pipelines import named, pipeline

    try:
        pipe = pipeline(task, model, dtype=dtype, device=device_or_best(device), batch_size=batch_size, too_long=too_long)
        # Options that do not fit are refused before anything is read.
        pipe([], **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        fail(str(error))

    def write(item: Item, result: Any) -> None:
        typer.echo(json.dumps({"input": item.where, "result": result}, ensure_ascii=False) if as_json else as_text(result))

    items = (item if item.is_bad else dataclasses.replace(item, value=prepare(item.value)) for item in read_items(files, form))
    if not answer_all(pipe, items, write, only=f"{named(0)}: ", **options):
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
        return "\n".join(f"{word['score']:.4f}\t{word['token_str']}\t{word['sequence']}" for words in masks for word in words)

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
    if question is None and any(_format_of(path, form) != "jsonl" for path in files or [_STANDARD_INPUT]):
        message = "got none, expected the question to ask of each text (JSON lines, --input jsonl, may have their own)"
        raise typer.BadParameter(message, param_hint="--question")

    def prepare(value: Any) -> Any:
        return {"question": question, "context": value} if isinstance(value, str) and question is not None else value

    def as_text(result: Any) -> str:
        found = result if isinstance(result, list) else [result]
        return "\n".join(f"{one['answer']}\t{one['score']:.4f}\t{one['start']}-{one['end']}" for one in found)

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
        "text-classification", as_text, files, model, form, as_json, dtype, device, batch_size, too_long,
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
        return "\n".join(f"{one['start']}-{one['end']}\t{one['label']}\t{one['score']:.4f}\t{one['word']}" for one in result)

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
        return f"{result['choice']}\t{result['score']:.4f}\t{result['text']}"

    run("multiple-choice", as_text, files, model, "jsonl", as_json, dtype, device, batch_size, too_long)


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

    try:
        tokenizer = LongformerTokenizer.from_pretrained(model)
    except ValueError as error:
        fail(str(error))

    def all_of(texts: list[Any], **options: Any) -> list[Any]:  # noqa: ARG001 - what pipelines take
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise TypeError(f"got {type(wrong[0]).__name__}, expected a text")
        return [tokenizer.encode(text) if ids else tokenizer.tokenize(text) for text in texts]

    def write(item: Item, result: Any) -> None:
        typer.echo(
            json.dumps({"input": item.where, "result": result}, ensure_ascii=False) if as_json else " ".join(map(str, result))
        )

    if not answer_all(all_of, read_items(files, form), write):
        raise typer.Exit(1)
