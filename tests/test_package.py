"""The package as a whole: its list of folders, what importing it brings in, and which room may import which."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "longformer_triton"
ROOMS = ("kernels", "model", "heads", "tokenization", "bench")
COMMANDS = (
    "cli", "cli_common", "cli_inputs", "cli_bench", "cli_kernels", "cli_tasks", "cli_checkpoints", "cli_pretrain",
    "cli_results",
)  # fmt: skip
NOT_PACKAGED = {"tests", "notebooks", "docs", "build", "dist"}
MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") or part in NOT_PACKAGED for part in path.relative_to(ROOT).parts)
    and (path.parent == ROOT or path.relative_to(ROOT).parts[0] in ROOMS)
)

HEAVY = ("triton", "transformers", "matplotlib", "pandas", "psutil", "typer", "rich", "tokenizers")
# As if they were not installed: every finder passes over them, so that importing raises and find_spec gives None.
ABSENT = f"""
    import sys

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] in {HEAVY!r} else self.finder.find_spec(name, path, target)

        def __getattr__(self, name):
            return getattr(self.finder, name)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
LOADED = f"""
    present = [name for name in {(*HEAVY, "torch._dynamo")!r} if name in sys.modules]
    assert not present, present
"""


def run_cold(*parts: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter running the parts one after the other; '' stands first on its path, as with any ``python -c``."""
    code = "\n".join(textwrap.dedent(part) for part in parts)
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def assert_ran(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_packages_are_the_folders_with_an_init():
    """A folder too few is missing from the wheel, and one too many ships the tests."""
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    packages = sorted(ast.literal_eval(f"[{listed[1]}]"))
    folders = {path.parent.relative_to(ROOT).parts for path in MODULES if path.name == "__init__.py"}
    assert packages == sorted(".".join((PACKAGE, *parts)) for parts in folders)


def test_every_folder_with_modules_is_a_package():
    assert {path.parent for path in MODULES} == {path.parent for path in MODULES if path.name == "__init__.py"}


@pytest.mark.parametrize("module", [PACKAGE, *(f"{PACKAGE}.{room}" for room in ("kernels", "model", "heads", "tokenization"))])
def test_import_needs_none_of_the_heavy_packages(module, tmp_path):
    """Neither to work, when they are absent, nor as a side effect, when they are there."""
    assert_ran(run_cold(ABSENT, f"import {module}", LOADED, cwd=tmp_path))
    assert_ran(run_cold(f"import sys, {module}", LOADED, cwd=tmp_path))


def test_attention_runs_without_the_heavy_packages(tmp_path):
    code = """
        import torch
        from longformer_triton import AttentionPattern, available_backends, longformer_attention, sliding_window_attention
        states = [torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(5)]
        sliding_window_attention(*states[:3], window=2).sum().backward()
        pattern = AttentionPattern.from_masks(None, torch.eye(1, 9), window=2)
        longformer_attention(*states[:3], pattern.gather_global(states[0]), *states[3:], pattern).sum().backward()
        assert all(tensor.grad is not None for tensor in states)
        assert available_backends("cpu")["torch"] is None
    """
    assert_ran(run_cold(ABSENT, code, "import sys; assert 'triton' not in sys.modules", cwd=tmp_path))


def test_a_model_is_saved_loaded_and_trained_without_the_heavy_packages(tmp_path):
    code = """
        import torch
        from longformer_triton import LongformerConfig, LongformerForSequenceClassification
        sizes = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        LongformerForSequenceClassification(LongformerConfig(**sizes)).save_pretrained("checkpoint")
        model = LongformerForSequenceClassification.from_pretrained("checkpoint").train()
        model(torch.randint(3, 20, (2, 30)), labels=torch.tensor([0, 1])).loss.backward()
    """
    assert_ran(run_cold(ABSENT, code, "import sys; assert 'triton' not in sys.modules", cwd=tmp_path))


def test_absent_packages_are_absent(tmp_path):
    """The premise of the tests above."""
    code = """
        import importlib.util
        assert importlib.util.find_spec("triton") is None
        try:
            import transformers
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("transformers was imported")
    """
    assert_ran(run_cold(ABSENT, code, cwd=tmp_path))


def test_import_changes_nothing_in_torch(tmp_path):
    code = """
        import logging, random, sys, torch, warnings
        before = (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), random.getstate(),
                  list(warnings.filters), list(logging.root.handlers), list(sys.path), torch.get_float32_matmul_precision())
        import longformer_triton.kernels, longformer_triton.model, longformer_triton.heads, longformer_triton.tokenization
        assert before == (torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), random.getstate(),
                          list(warnings.filters), list(logging.root.handlers), list(sys.path),
                          torch.get_float32_matmul_precision())
        assert not torch.cuda.is_initialized()
    """
    assert_ran(run_cold(code, cwd=tmp_path))


def test_kernels_and_transformers_in_the_repository_root():
    """transformers imports a registry package called ``kernels``; from the root, Python finds our folder under that name."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    code = """
        import sys
        assert sys.path[0] == "", sys.path
        import longformer_triton.kernels
        from transformers import LongformerConfig
        from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
        import longformer_triton
        assert longformer_triton.sliding_window_attention is longformer_triton.kernels.sliding_window_attention
    """
    assert_ran(run_cold(code, cwd=ROOT))


def test_plain_kernels_is_refused_with_a_hint():
    result = run_cold("import kernels", cwd=ROOT)
    assert result.returncode != 0
    assert "ImportError: import longformer_triton.kernels instead" in result.stderr


def test_root_init_works_as_a_stray_module(tmp_path):
    """pytest's importlib mode runs the root's ``__init__.py`` under a name of its own."""
    code = f"""
        import importlib.util, sys
        spec = importlib.util.spec_from_file_location("stray", {str(ROOT / "__init__.py")!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "torch" not in sys.modules
        from longformer_triton.kernels import AttentionPattern
        assert module.AttentionPattern is AttentionPattern
    """
    assert_ran(run_cold(code, cwd=tmp_path))


def test_public_names():
    import longformer_triton
    from longformer_triton import kernels

    assert set(longformer_triton.__all__) >= set(kernels.__all__)
    for name in longformer_triton.__all__:
        assert getattr(longformer_triton, name) is not None
        assert name in dir(longformer_triton)
    for name in kernels.__all__:
        assert getattr(longformer_triton, name) is getattr(kernels, name)
    assert "__version__" in dir(longformer_triton)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", longformer_triton.__version__)
    with pytest.raises(AttributeError, match="module 'longformer_triton' has no attribute 'sliding_windows'"):
        _ = longformer_triton.sliding_windows


def test_star_import_of_each_public_name(tmp_path):
    assert_ran(
        run_cold("from longformer_triton import *", "assert sliding_window_attention and AttentionPattern", cwd=tmp_path)
    )


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(absolute module name, whether it is imported when the module is) of each import; names of a package count as modules."""
    found = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = at_import and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = False
            if isinstance(child, ast.Import):
                found.extend((name.name, at_import) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import; the stray root module cannot follow it"
                found.append((child.module, at_import))
                found.extend((f"{child.module}.{name.name}", at_import) for name in child.names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
                found.extend((name.value, False) for name in child.args[:1] if isinstance(name, ast.Constant))
            visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return found


def rooms_imported(path: Path) -> set[str]:
    names = {name for name, _ in imports_of(path) if name.split(".")[0] == PACKAGE}
    return {name.split(".")[1] for name in names if "." in name and name.split(".")[1] in {*ROOMS, *COMMANDS}}


ALLOWED = {
    "kernels": {"kernels"},
    "model": {"kernels", "model"},
    "heads": {"kernels", "model", "heads", "tokenization"},
    "tokenization": {"tokenization"},
    "bench": {"kernels", "model", "heads", "tokenization", "bench"},
    "cli.py": {*COMMANDS},
    "cli_common.py": {"kernels"},
    "cli_bench.py": {"bench", "cli_common"},
    "cli_results.py": {"bench", "cli_common"},
    "cli_kernels.py": {"kernels", "bench", "cli_common"},
    "cli_inputs.py": {"cli_common"},
    "cli_tasks.py": {"heads", "tokenization", "cli_common", "cli_inputs"},
    "cli_checkpoints.py": {"model", "heads", "cli_common"},
    "cli_pretrain.py": {"heads", "model", "tokenization", "cli_common"},
    "__init__.py": {"kernels", "model", "heads", "tokenization"},
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    """kernels <- model <- heads; tokenization alone; only the command line imports the benchmarks."""
    assert rooms_imported(path) <= ALLOWED[path.relative_to(ROOT).parts[0]]


BACKENDS = {
    "reference": {"reference"},
    "torch": {"blockwise", "torch_impl"},
    "triton": {"triton_impl"},
}
KERNEL_MODULES = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "kernels"]


def backend_of(part: str) -> str | None:
    return next((name for name, parts in BACKENDS.items() if part in parts), None)


@pytest.mark.parametrize("path", KERNEL_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_backends_do_not_import_each_other(path):
    """A backend may import pattern, merge, dropout and the like; never another backend, nor what stands above backends."""
    own = backend_of(path.relative_to(ROOT / "kernels").parts[0].removesuffix(".py"))
    if own is None:
        return
    prefix = f"{PACKAGE}.kernels."
    parts = {name.removeprefix(prefix).split(".")[0] for name, _ in imports_of(path) if name.startswith(prefix)}
    assert {backend_of(part) for part in parts} <= {None, own}
    assert not parts & {"functional", "ops", "checks", "probabilities"}


@pytest.mark.parametrize("path", KERNEL_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_import_only_torch_and_late_triton(path):
    inside = "triton_impl" in path.parts
    for name, at_import in imports_of(path):
        top = name.split(".")[0]
        assert top in {PACKAGE, "torch", "triton"} or top in sys.stdlib_module_names, name
        assert inside or not (top == "triton" and at_import), f"{path}: triton is imported with the module"
        reaches_triton = name.startswith(f"{PACKAGE}.kernels.triton_impl")
        assert inside or not (reaches_triton and at_import), f"{path}: the Triton backend is imported with the module"


def test_operators_reach_their_backends_late():
    names = {name for name, at_import in imports_of(ROOT / "kernels" / "ops.py") if at_import}
    assert not any(backend_of(name.split(".")[-1]) for name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_too_long_to_read(path):
    assert len(path.read_text().splitlines()) <= 400


def test_no_test_file_is_too_long_to_read():
    for path in (ROOT / "tests").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
