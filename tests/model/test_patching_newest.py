"""The tests of patching with the newest transformers, in an environment of its own."""

import os
import pathlib
import subprocess
import sys
import sysconfig
import venv

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Torch and this package come from the environment that runs this test; what the new environment installs goes before them.
BORROW = "import site; site.addsitedir({!r})\n"


@pytest.mark.extended
def test_patching_under_the_newest_transformers(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (packages / "borrow.pth").write_text(BORROW.format(sysconfig.get_paths()["purelib"]))
    install = [python, "-m", "pip", "install", "--upgrade", "transformers>=5"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"pip cannot get transformers 5: {installed.stderr[-300:]}")
    version = subprocess.run(
        [python, "-c", "import transformers; print(transformers.__version__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(version.split(".")[0]) >= 5, version
    # Not in the root: there transformers 5 would find our folder `kernels` instead of the package of that name.
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT]
    tests = [HERE / "test_patching.py", HERE / "test_patching_modules.py"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    child = subprocess.run([*command, *tests], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    print(sys.version, version, child.stdout[-20_000:], child.stderr[-5_000:])
    assert child.returncode == 0
