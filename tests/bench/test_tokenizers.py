"""The tokenizers side by side: rows for every call, and refusals."""

import pytest
from rich.console import Console
from text_cases import tokenizer_of
from typer.testing import CliRunner

from longformer_triton.bench.record import Record
from longformer_triton.bench.tokenizers import CALLS, TokenizerCase, TokenizerTimes, run_tokenizers
from longformer_triton.cli import app

WORDS = ["the", "cat", "saw", "a", "tree"]


@pytest.fixture
def vocabulary(tmp_path):
    tokenizer_of(WORDS, tmp_path / "vocabulary")
    return tmp_path / "vocabulary"


def test_every_way_of_calling_is_timed_for_both(vocabulary, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    table = run_tokenizers(vocabulary, [" ".join(WORDS)] * 3, tmp_path / "out", Console(quiet=True), rounds=2)
    assert table.row_count == len(CALLS)
    rows = Record(tmp_path / "out", TokenizerCase, TokenizerTimes).rows()
    assert {(row["provider"], row["call"]) for row in rows} == {
        (name, call) for name in ("ours", "transformers") for call in CALLS
    }


def test_the_command_reads_files(vocabulary, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "text.txt").write_text(" ".join(WORDS))
    command = ["bench", "tokenizer", str(vocabulary), str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "times as fast" in result.output


def test_no_text_is_refused(vocabulary, tmp_path):
    with pytest.raises(ValueError, match="files: got no text"):
        run_tokenizers(vocabulary, [], tmp_path, Console(quiet=True))
