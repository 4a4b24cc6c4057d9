"""What ``longformer-triton doctor`` says of a machine, before it checks the kernels."""

import io

import pytest
from rich.console import Console

from longformer_triton.bench import doctor


@pytest.mark.parametrize(("threads", "said"), [(1, "cpu (1 thread)"), (2, "cpu (2 threads)")])
def test_threads_are_counted_in_words(monkeypatch, threads, said):
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: threads)
    out = io.StringIO()
    doctor.report(Console(file=out, width=200))
    assert said in out.getvalue()
