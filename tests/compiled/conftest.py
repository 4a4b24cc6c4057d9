"""Tests that compile the Triton kernels ahead of time, for GPUs that are not here, in a process that does not interpret.

``tests/test_triton_processes.py`` runs this folder in a child process; ``TRITON_INTERPRET=0 pytest -n 2 tests/compiled`` runs
it directly. Without the variable it is left out, so that one ``pytest`` does not run it twice.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "0":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def on_machine(monkeypatch):
    """A function that lets the Triton backend run on CPU tensors as on a GPU of a named architecture, by ``ptx_machine``."""
    from longformer_triton.bench.ptx_machine.launches import run_launch
    from longformer_triton.kernels import backends
    from longformer_triton.kernels.triton_impl import launch, problem, steps
    from longformer_triton.kernels.triton_impl.tuning import Target

    def use(architecture: str, *, find_races: bool = True) -> None:
        for module in (launch, problem):
            monkeypatch.setattr(module, "target_of", lambda device: Target.named(architecture))
        monkeypatch.setattr(backends, "why_not", lambda *args, **options: None)
        monkeypatch.setattr(steps.Launch, "run", lambda self: run_launch(self, architecture, find_races=find_races))

    return use
