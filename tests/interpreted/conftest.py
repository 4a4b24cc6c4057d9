"""Tests of the Triton kernels in Triton's interpreter: float64 on the CPU. They need a process of their own.

TRITON_INTERPRET is read when triton is imported, so ``tests/test_triton_processes.py`` runs this folder in a child process;
``TRITON_INTERPRET=1 pytest tests/interpreted`` runs it directly.
"""

import importlib.metadata
import os

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETING:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config):
    """Rows that see nothing divide by zero and take its logarithm, as on a GPU; a selection drops what comes of that."""
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(scope="session", autouse=True)
def need_an_interpreter_that_works():
    """Triton 3.6's interpreter makes scalars of arrays of one element, which newer versions of NumPy refuse."""
    triton_is_3_6 = importlib.metadata.version("triton").startswith("3.6.")
    numpy_version = tuple(int(part) for part in importlib.metadata.version("numpy").split(".")[:2])
    if triton_is_3_6 and numpy_version >= (2, 4):
        pytest.skip("Triton 3.6's interpreter needs numpy below 2.4: pip install 'numpy<2.4', or triton 3.7")


@pytest.fixture
def use_tiles(monkeypatch):
    """A function that makes the kernels run with tiles of (own axis, other axis), by pointers or by descriptors."""
    from longformer_triton.kernels.triton_impl import launch
    from longformer_triton.kernels.triton_impl.tuning import INTERPRETER, KERNELS, Config, Target

    def use(block_m: int, block_n: int, *, descriptors: bool = False) -> None:
        trial = dict.fromkeys(KERNELS, Config(block_m, block_n))
        monkeypatch.setattr(launch, "target_of", lambda device: Target(INTERPRETER, descriptors, trial))

    return use
