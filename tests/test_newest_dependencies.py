"""What users get who have no transformers: the newest of every dependency, which the oracle of the tests holds back."""

import pathlib

import pytest
from own_environment import Environment

HERE = pathlib.Path(__file__).resolve().parent
# Held back by transformers 4.56, or young enough to rename an argument, as tokenizers 0.23 did.
PACKAGES = ("accelerate", "huggingface_hub", "numpy", "rich", "safetensors", "tokenizers", "typer")
TESTS = ("tokenization", "pipelines", "heads/test_collators.py", "model/test_hub_names.py", "model/test_damaged_checkpoints.py")


@pytest.mark.extended
def test_the_newest_dependencies_do(tmp_path):
    environment = Environment(tmp_path, *PACKAGES)
    # The one that is borrowed refuses the newest tokenizers with another error than one that is not there.
    (environment.site / "transformers.py").write_text("raise ModuleNotFoundError(name='transformers')\n")
    print({name: environment.version(name) for name in PACKAGES})
    assert environment.passes(*(HERE / name for name in TESTS))
