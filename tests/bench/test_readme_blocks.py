"""Blocks of a document: replaced by files of results, refused where they are malformed."""

import pytest
from typer.testing import CliRunner

from longformer_triton.bench.readme import updated, without_blocks
from longformer_triton.cli import app

TEXT = """before 1
<!-- core table: begin -->
old 2
<!-- core table: end -->
between 3
<!-- cpu-x/report.md: begin -->
<!-- cpu-x/report.md: end -->
after 4
"""


@pytest.fixture
def results(tmp_path):
    for name, text in (("cpu-core/core.md", "new core\n"), ("cpu-x/report.md", "new x\n")):
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "results"


def test_blocks_are_replaced_and_nothing_else(results):
    new = updated(TEXT, results)
    assert new == TEXT.replace("old 2\n", "new core\n").replace("begin -->\n<!-- cpu-x", "begin -->\nnew x\n<!-- cpu-x")
    assert updated(new, results) == new


def test_what_people_typed(results):
    typed = without_blocks(updated(TEXT, results))
    assert "new" not in typed
    assert all(word in typed for word in ("before 1", "between 3", "after 4"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing here\n", "no block"),
        ("<!-- core table: begin -->\n", "expected it to end"),
        ("<!-- core table: end -->\n", "without a beginning"),
        (TEXT + "<!-- core table: end -->\n", "ends twice"),
        (TEXT.replace("old 2", "<!-- cpu-x/report.md: begin -->"), "before any other"),
        (TEXT + TEXT, "stands twice"),
        (TEXT.replace("cpu-x/report.md", "cpu-y/report.md"), "no file of the results"),
        (TEXT.replace("cpu-x/report.md", "../secret.md"), "no file of the results"),
    ],
    ids=["none", "open", "closed", "closed twice", "nested", "twice", "missing", "outside"],
)
def test_malformed_documents_are_refused(results, text, message):
    (results.parent / "secret.md").write_text("secret")
    with pytest.raises(ValueError, match=message):
        updated(text, results)


def test_the_command_updates_and_checks(results):
    document = results.parent / "README.md"
    document.write_text(TEXT)

    def run(*options):
        return CliRunner().invoke(app, ["bench", "readme", str(document), "--results", str(results), *options])

    assert run("--check").exit_code == 1
    assert document.read_text() == TEXT
    assert run().exit_code == 0
    assert document.read_text() == updated(TEXT, results)
    assert run("--check").exit_code == 0
