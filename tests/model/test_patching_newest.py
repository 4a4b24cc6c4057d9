"""The tests of patching with the newest transformers, in an environment of its own."""

import pathlib

import pytest
from own_environment import Environment

HERE = pathlib.Path(__file__).resolve().parent


@pytest.mark.extended
def test_patching_under_the_newest_transformers(tmp_path):
    environment = Environment(tmp_path, "transformers>=5")
    assert int(environment.version("transformers").split(".")[0]) >= 5
    assert environment.passes(HERE / "test_patching.py", HERE / "test_patching_modules.py")
