"""The tests that need a process of their own: Triton decides once, when it is imported, whether it interprets or compiles."""

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).resolve().parent


@pytest.mark.parametrize(
    ("folder", "interpret"), [("interpreted", "1"), ("compiled", "0")], ids=["interpreted", "compiled_ahead_of_time"]
)
def test_kernels(folder, interpret, pytestconfig):
    pytest.importorskip("triton", reason="triton is not installed, so that there are no kernels to run or compile")
    selection = ["-m", pytestconfig.option.markexpr] if pytestconfig.option.markexpr else []
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "--durations=5",
        *selection,
        str(TESTS / folder),
    ]
    child = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    # Shown when the test fails, and with -rA or -s when it does not.
    print(child.stdout[-20_000:], child.stderr[-5_000:])
    nothing_selected = 5
    assert child.returncode in (0, nothing_selected)
