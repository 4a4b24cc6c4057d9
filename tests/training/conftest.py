"""What tests of training share."""

import pytest


@pytest.fixture(autouse=True)
def _first_accelerator():
    """accelerate keeps what the first Accelerator of a process was told; here each test is the first."""
    state = pytest.importorskip("accelerate", reason="accelerate is not installed").state
    state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)
