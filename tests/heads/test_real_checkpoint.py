"""A RoBERTa that was trained on real data, antibody heavy chains, read as a Longformer: the same predictions."""

import json
import os
import pathlib

import pytest
import torch

from longformer_triton import LongformerForMaskedLM, LongformerTokenizer, pipeline

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        "LONGFORMER_TEST_ASSETS" not in os.environ, reason="LONGFORMER_TEST_ASSETS, the folder of test data, is not set"
    ),
]

# Heavy chains of well-known antibodies, from their published sequences.
TRASTUZUMAB = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
ADALIMUMAB = (
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS"
)
# Positions (from 0) of the frameworks, which all antibodies share: those can be told from their neighbours.
FRAMEWORK = [3, 7, 10, 15, 20, 35, 40, 46, 70, 90, 94]
WINDOW = 512


@pytest.fixture(scope="module")
def folder():
    return pathlib.Path(os.environ["LONGFORMER_TEST_ASSETS"]) / "sapiens-roberta"


@pytest.fixture(scope="module")
def roberta(folder):
    return transformers.RobertaForMaskedLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def longformer(folder):
    return LongformerForMaskedLM.from_pretrained(folder, attention_window=WINDOW)


@pytest.fixture(scope="module")
def vocabulary(folder):
    return json.loads((folder / "vocab.json").read_text())


def encode(vocabulary, *chains, masked=()):
    """(input_ids, attention_mask) of chains, ``masked`` positions hidden; shorter ones are padded."""
    rows = []
    for chain in chains:
        letters = ["<mask>" if place in masked else letter for place, letter in enumerate(chain)]
        rows.append([vocabulary[letter] for letter in ("<s>", *letters, "</s>")])
    width = max(map(len, rows))
    ids = torch.tensor([row + [vocabulary["<pad>"]] * (width - len(row)) for row in rows])
    return ids, (ids != vocabulary["<pad>"]).long()


@torch.no_grad()
def logits(model, ids, real, **options):
    return model(ids, attention_mask=real, **options).logits


def test_a_window_that_covers_the_text_gives_the_logits_of_roberta(roberta, longformer, vocabulary):
    ids, real = encode(vocabulary, TRASTUZUMAB, ADALIMUMAB, TRASTUZUMAB[:50], masked=[4, 30])
    assert real.sum(1).tolist() == [122, 123, 52]
    got, expected = logits(longformer, ids, real), logits(roberta, ids, real)
    assert expected.abs().max() > 5
    torch.testing.assert_close(got[real == 1], expected[real == 1], rtol=0, atol=5e-5)


def test_global_tokens_begin_as_copies_that_change_nothing(roberta, longformer, vocabulary):
    """Their projections start out as the local ones, so that a global token computes what a local one would."""
    ids, real = encode(vocabulary, TRASTUZUMAB, ADALIMUMAB)
    marked = torch.zeros_like(ids)
    marked[:, [0, 17, 60]] = 1
    got = logits(longformer, ids, real, global_attention_mask=marked)
    torch.testing.assert_close(got[real == 1], logits(roberta, ids, real)[real == 1], rtol=0, atol=5e-5)


@pytest.mark.parametrize("chain", [TRASTUZUMAB, ADALIMUMAB], ids=["trastuzumab", "adalimumab"])
def test_masked_residues_are_filled_as_roberta_fills_them(roberta, longformer, vocabulary, chain):
    """Each residue hidden in turn: the same choice everywhere, and the right one in the frameworks."""
    ids, real = encode(vocabulary, *[chain] * len(chain))
    places = torch.arange(len(chain))
    truth = ids[0, 1:-1]
    ids[places, places + 1] = vocabulary["<mask>"]
    got, expected = (logits(model, ids, real)[places, places + 1].argmax(-1) for model in (longformer, roberta))
    assert torch.equal(got, expected)
    assert torch.equal(got[FRAMEWORK], truth[FRAMEWORK])
    assert (got == truth).float().mean() > 0.7


def test_a_pipeline_fills_a_chain_in(longformer, folder, tmp_path):
    """Its alphabet of single letters is a byte-level vocabulary without merges."""
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = LongformerTokenizer(folder / "vocab.json", tmp_path / "merges.txt")
    fill = pipeline("fill-mask", longformer, tokenizer)
    texts = [TRASTUZUMAB[:place] + "<mask>" + TRASTUZUMAB[place + 1 :] for place in FRAMEWORK]
    assert [found[0]["sequence"] for found in fill(texts, top_k=2)] == [TRASTUZUMAB] * len(FRAMEWORK)


def test_a_smaller_window_is_another_model(roberta, longformer, vocabulary):
    """So that the equality above is one of windows that cover the text, and not of windows that are ignored."""
    ids, real = encode(vocabulary, TRASTUZUMAB)
    windows = longformer.config.attention_window
    longformer.set_attention_window(8)
    try:
        assert (logits(longformer, ids, real) - logits(roberta, ids, real)).abs().max() > 0.1
    finally:
        longformer.set_attention_window(windows)
