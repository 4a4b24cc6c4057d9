"""The documents keep their word: their code runs, and what they point to exists."""

import pathlib
import re

import documents
import pytest
import torch
from model_cases import Texts, ours

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIFFERENCES = ROOT / "docs" / "differences.md"


@pytest.mark.parametrize("document", [page for page in documents.pages() if page.parts[0] == "docs"], ids=str)
def test_files_that_documents_name_exist(document):
    text = (ROOT / document).read_text()
    named = re.findall(r"`((?:tests|model|heads|kernels|bench|docs)/[\w/.]+)`", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("name", ["LongformerForMaskedLM", "LongformerForSequenceClassification"])
def test_the_trainer_of_the_document_saves_checkpoints_that_load(tmp_path, name):
    """Tied weights, which transformers' own saving of a foreign model refuses, and configurations, which it leaves out."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    namespace = {}
    exec(re.search(r"^```python\n(.*?)^```", DIFFERENCES.read_text(), flags=re.M | re.S).group(1), namespace)
    model = ours(name)
    inputs = Texts(batch=2).inputs(name)
    dataset = [{key: value[row] for key, value in inputs.items()} for row in range(2)]
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    namespace["LongformerTrainer"](model=model, args=arguments, train_dataset=dataset).train()
    loaded = type(model).from_pretrained(tmp_path / "checkpoint-2")
    model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_a_model_that_accelerate_wrapped_is_saved_by_the_main_process_alone(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(ours("LongformerForTokenClassification"))
    whole = accelerator.unwrap_model(model)
    whole.save_pretrained(tmp_path / "other", is_main_process=False, save_function=accelerator.save)
    assert not (tmp_path / "other").exists()
    whole.save_pretrained(tmp_path / "main", is_main_process=accelerator.is_main_process, save_function=accelerator.save)
    assert type(whole).from_pretrained(tmp_path / "main").config.hidden_size == whole.config.hidden_size
