"""What tests of training share."""

import pytest
from pretraining_cases import make_model, make_texts, options_of, run


@pytest.fixture(autouse=True)
def _first_accelerator():
    """accelerate keeps what the first Accelerator of a process was told; here each test is the first."""
    state = pytest.importorskip("accelerate", reason="accelerate is not installed").state
    state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return make_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def whole(model, texts, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(options_of(model, texts, out))
    return out
