"""From texts to rows: no token lost or invented, on disk once, and whole after a crash at any moment."""

import json

import numpy
import pytest
import text_cases
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.heads import packing
from longformer_triton.heads.packing import PackedRows, documents, tokenized

WORDS = ["river", "fox", "dog", "quick", "lazy"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text_cases.tokenizer_of(WORDS, tmp_path_factory.mktemp("packing"))


def stream_of(tokenizer, texts):
    """What the file of tokens has to hold: texts with </s> between them, empty ones left out."""
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    rows = [row for row in rows if row]
    return [token for number, row in enumerate(rows) for token in ([2] if number else []) + row]


def write_lines(folder, texts, parts=1):
    """``parts`` files of JSON lines with the texts."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.jsonl" for number in range(parts)]
    for number, path in enumerate(paths):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[number::parts]))
    return paths


@given(tokens=st.lists(st.integers(3, 40), max_size=60), seq_len=st.integers(3, 20))
def test_rows_hold_the_stream_and_nothing_else(tokens, seq_len):
    rows = list(PackedRows(numpy.asarray(tokens, "<u2"), seq_len, 0, 2))
    assert [token for row in rows for token in row[1:-1]] == tokens
    assert all(row[0] == 0 and row[-1] == 2 and row.dtype == numpy.int64 for row in rows)
    assert all(len(row) == seq_len for row in rows[:-1])
    assert all(3 <= len(row) <= seq_len for row in rows[-1:])
    assert len(rows) == len(PackedRows(numpy.asarray(tokens), seq_len, 0, 2))


@given(texts=TEXTS, parts=st.integers(1, 3), at_once=st.sampled_from([1, 30, 10**6]))
def test_no_token_is_lost_or_invented_but_separators(tokenizer, tmp_path_factory, texts, parts, at_once):
    folder = tmp_path_factory.mktemp("stream")
    ordered = [text for part in range(parts) for text in texts[part::parts]]
    expected = stream_of(tokenizer, ordered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_AT_ONCE", at_once)
        paths = write_lines(folder / "texts", texts, parts)
        if not expected:
            with pytest.raises(ValueError, match="without a single token"):
                tokenized(tokenizer, paths, folder / "tokens")
            return
        found = tokenized(tokenizer, paths, folder / "tokens")
    assert found.tolist() == expected
    assert found.dtype == numpy.uint16
    assert not found.flags.writeable


def test_a_large_vocabulary_has_four_bytes_a_token(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**16 + 1)
    found = tokenized(tokenizer, write_lines(tmp_path, ["fox dog"]), tmp_path / "tokens")
    assert found.dtype == numpy.uint32
    assert found.tolist() == stream_of(tokenizer, ["fox dog"])


def test_finished_tokens_are_not_made_again(tokenizer, tmp_path, monkeypatch):
    paths = write_lines(tmp_path, ["fox dog", "river"])
    first = tokenized(tokenizer, paths, tmp_path / "tokens").tolist()
    monkeypatch.setattr(packing, "documents", lambda *_: pytest.fail("read again"))
    assert tokenized(tokenizer, paths, tmp_path / "tokens").tolist() == first


class CrashError(BaseException):
    """Like KeyboardInterrupt, no Exception that code on the way might take for its own."""


def test_a_crash_at_any_write_leaves_what_the_next_call_completes(tokenizer, tmp_path, monkeypatch):
    """With half a line of the journal, and tokens that no line speaks of, as a power cut leaves them."""
    texts = ["fox dog", "river", "", "quick lazy fox", "dog"]
    paths = write_lines(tmp_path, texts, parts=2)
    expected = stream_of(tokenizer, texts[::2] + texts[1::2])
    monkeypatch.setattr(packing, "_AT_ONCE", 4)
    flush, encode, call, read = packing._flush, tokenizer._called, 0, []

    def counting(texts, *arguments, **options):
        read[-1] += len(texts)
        return encode(texts, *arguments, **options)

    while True:
        call += 1
        folder, calls = tmp_path / str(call), []

        def crashing(file, calls=calls, call=call):
            calls.append(1)
            if len(calls) == call:
                raise CrashError
            flush(file)

        with monkeypatch.context() as patch:
            patch.setattr(packing, "_flush", crashing)
            try:
                assert tokenized(tokenizer, paths, folder).tolist() == expected
                break
            except CrashError:
                pass
        for name, more in (("tokens.bin", b"\7"), ("tokens.jsonl", b'{"file": 0, "docu')):
            with (folder / name).open("ab") as file:
                file.write(more)
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer, "_called", counting)
            read.append(0)
            for _ in range(2):
                assert tokenized(tokenizer, paths, folder).tolist() == expected, f"after a crash at flush {call}"
    assert call > 10
    # The later the crash, the fewer texts were left to do.
    assert read[-1] < 5


def test_tokens_of_other_texts_or_another_tokenizer_are_refused(tokenizer, tmp_path):
    paths = write_lines(tmp_path, ["fox dog"])
    tokenized(tokenizer, paths, tmp_path / "tokens")
    with pytest.raises(ValueError, match=r"tokens of other texts \(files differ\)"):
        tokenized(tokenizer, write_lines(tmp_path / "more", ["river"]), tmp_path / "tokens")
    other = text_cases.tokenizer_of(["wolf"], tmp_path / "other")
    with pytest.raises(ValueError, match=r"\(tokenizer differ\)"):
        tokenized(other, paths, tmp_path / "tokens")


def test_forms_of_files(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes("first line\r\n\nthird lin\u00e9\n".encode())
    assert list(documents(path)) == [("first line\r\n\nthird lin\u00e9\n", 25)]
    assert list(documents(path, "lines")) == [("first line", 12), ("", 1), ("third lin\u00e9", 12)]
    path = tmp_path / "some.jsonl"
    path.write_text('"fox"\n\n{"text": "dog", "more": 1}\n')
    assert [text for text, _ in documents(path)] == ["fox", "", "dog"]


@pytest.mark.parametrize(
    ("content", "form", "message"),
    [
        (b"fine" * 10**6 + b"\xff\xfe", "text", "bad: got the byte 0xff after 4000000 others, expected UTF-8"),
        (b"fine\n\xff\n", "lines", "bad:2: got the byte 0xff after 0 others"),
        (b'"fine"\n{"words": 1}\n', "jsonl", r"""bad:2: got no 'text' among \['words'\], .*an object with a "text"""),
        (b'{"text": 3}\n', "jsonl", "bad:1: got int, expected a JSON string"),
        (b"{\n", "jsonl", r"bad:1: got no JSON \(Expecting .*\), expected a JSON string"),
    ],
    ids=["text", "line", "no_text", "number", "no_json"],
)
def test_unreadable_texts_are_named(tmp_path, content, form, message):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(documents(tmp_path / "bad", form))
    assert len(str(caught.value)) < 300, "a message is no place for the file"


@pytest.mark.parametrize(("form", "texts"), [("text", ["fox\ndog"]), ("lines", ["fox", "dog"])])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, form, texts):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbffox\ndog")
    assert [text for text, _ in documents(tmp_path / "a", form)] == texts


def test_rows_out_of_range_are_refused():
    rows = PackedRows(numpy.arange(5), 4, 0, 2)
    for row in (-1, 3):
        with pytest.raises(IndexError, match="expected 0 to 2"):
            rows[row]
    with pytest.raises(ValueError, match="seq_len: got 2, expected 3 at least"):
        PackedRows(numpy.arange(5), 2, 0, 2)
