"""Tests that compile the Triton kernels ahead of time, for GPUs that are not here, in a process that does not interpret.

``tests/test_triton_processes.py`` runs this folder in a child process; ``TRITON_INTERPRET=0 pytest -n 2 tests/compiled`` runs
it directly. Without the variable it is left out, so that one ``pytest`` does not run it twice.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "0":
    collect_ignore_glob = ["test_*.py"]
