"""What documents point to exists, links and files by name, and the tables that list something list all of it."""

import re

import documents
import pytest

ROOT = documents.ROOT


@pytest.mark.parametrize("page", documents.pages(), ids=str)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    broken = [target for target in documents.links(text) if not leads_somewhere(page, text, target)]
    assert not broken


def leads_somewhere(page, text, target):
    if re.match(r"https?://", target):
        return True
    file, _, anchor = target.partition("#")
    if not file and anchor.startswith("longformer_triton."):
        # A name of the reference: building the documentation checks it.
        return True
    aim = ROOT / page if not file else (ROOT / page).parent / file
    if not aim.exists():
        return False
    return not anchor or anchor in documents.anchors(text if not file else aim.read_text())


def test_environment_variables_that_the_code_reads_are_listed():
    rooms = ("kernels", "model", "heads", "tokenization", "bench")
    sources = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    read = re.compile(r"(?:environ\.get\(|environ\[|_VARIABLE = )\"((?:LONGFORMER|TRITON)_\w+)\"")
    found = {name for path in sources for name in read.findall(path.read_text())}
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "backends.md").read_text(), flags=re.M))
    assert {"LONGFORMER_TRITON_CONFIGURATIONS", "TRITON_INTERPRET"} <= found <= listed
