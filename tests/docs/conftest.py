"""The folder that the code in documents runs in: checkpoints and texts under the names that documents give them."""

import json
import pathlib

import documents
import pytest
import torch
from text_cases import tokenizer_of

import longformer_triton

ARTICLE = "Jim Henson was a nice puppet maker . He was born in Greenville . " * 12
QUESTION = "Who was Jim Henson ?"

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}


def fill(folder: pathlib.Path) -> None:
    """Make everything that documents speak of."""
    tokenizer = tokenizer_of([*ARTICLE.split(), *QUESTION.split()], folder / "checkpoint")
    torch.manual_seed(4)
    config = longformer_triton.LongformerConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=402)
    longformer_triton.LongformerForQuestionAnswering(config).save_pretrained(folder / "checkpoint")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    roberta = transformers.RobertaConfig(**SIZES, vocab_size=len(tokenizer), max_position_embeddings=34)
    transformers.RobertaForMaskedLM(roberta).save_pretrained(folder / "roberta-base")
    tokenizer.save_pretrained(folder / "roberta-base")
    (folder / "article.txt").write_text(ARTICLE)
    (folder / "sentences.txt").write_text("Jim Henson was nice .\nHe was born .\n")
    (folder / "questions.jsonl").write_text(json.dumps({"question": QUESTION, "context": ARTICLE}) + "\n")
    (folder / "articles").mkdir()
    (folder / "articles" / "first.txt").write_text(ARTICLE)
    (folder / "bench").symlink_to(documents.ROOT / "bench")


@pytest.fixture(scope="session")
def filled_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    fill(folder)
    return folder
