"""Two vocabularies, each with transformers' tokenizer beside ours: one trained here, and RoBERTa's where it is there."""

import os
from pathlib import Path

import pytest

from longformer_triton.tokenization import LongformerTokenizer

CORPUS = """The quick brown fox jumps over the lazy dog. It's a dog's life, they've said; we'll see, won't we?
In 1984, 3.14 per cent of foxes (and 27,000 dogs) crossed the river: "Why?" asked the fox. "Because!" said the dog.
Öl über Straßen, naïve café, El Niño, Москва и Нева, 東京都 北海道, שלום עולם, مرحبا بالعالم, 👩‍👩‍👧 👍🏽.
The river is long, and the longest river is longer; the fox is quick, and the quickest fox is quicker.
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A directory with a vocabulary of 600 entries, vocab.json and merges.txt alone."""
    folder = tmp_path_factory.mktemp("small")
    corpus = folder / "corpus.txt"
    corpus.write_text(CORPUS * 2, encoding="utf-8")
    tokenizer = LongformerTokenizer.train_from_files(corpus, 600, show_progress=False)
    tokenizer.save_vocabulary(folder / "vocabulary")
    return folder / "vocabulary"


@pytest.fixture(scope="session")
def assets():
    folder = os.environ.get("LONGFORMER_TEST_ASSETS")
    if not folder:
        pytest.skip("LONGFORMER_TEST_ASSETS does not name the folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


class Both:
    """Our tokenizer and transformers' fast one, with the same vocabulary and arguments; made once for each set of arguments."""

    def __init__(self, folder, transformers):
        self.folder, self.transformers, self.made = folder, transformers, {}

    def __call__(self, **arguments):
        key = repr(sorted(arguments.items()))
        if key not in self.made:
            theirs = self.transformers.LongformerTokenizerFast.from_pretrained(self.folder, **arguments)
            self.made[key] = (LongformerTokenizer.from_pretrained(self.folder, **arguments), theirs)
        return self.made[key]


@pytest.fixture(scope="session")
def both_small(small, transformers):
    return Both(small, transformers)


@pytest.fixture(scope="session")
def both_real(assets, transformers, tmp_path_factory):
    """From tokenizer.json as transformers writes it, which it reads eight times as fast as the two files."""
    folder = tmp_path_factory.mktemp("roberta")
    transformers.LongformerTokenizerFast.from_pretrained(assets / "roberta-tokenizer").save_pretrained(folder)
    return Both(folder, transformers)


@pytest.fixture(params=["small", "real"])
def both(request):
    return request.getfixturevalue(f"both_{request.param}")


@pytest.fixture
def tokenizer(small):
    return LongformerTokenizer.from_pretrained(small)
