"""``bench gpu`` runs its steps in order, stops when time is up, and goes on from there."""

import json

import pytest
import torch
from rich.console import Console

from longformer_triton.bench import gpu


@pytest.fixture
def pretend_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def run(monkeypatch, folder, outcomes, **options):
    """Run stand-ins for the steps; which of them were called."""
    called = []

    def stand_in(name, outcome):
        def step(folder, console, left):
            called.append(name)
            return outcome

        return step

    monkeypatch.setattr(gpu, "steps", lambda: ((name, stand_in(name, outcome)) for name, outcome in outcomes.items()))
    well = gpu.run_gpu(folder, Console(quiet=True), options.get("time_limit"))
    return well, called


def test_there_has_to_be_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no GPU here"):
        gpu.run_gpu(tmp_path, Console(quiet=True), None)


def test_a_rerun_goes_on_where_time_was_up(tmp_path, monkeypatch, pretend_gpu):
    assert run(monkeypatch, tmp_path, {"first": True, "second": None, "third": True}) == (True, ["first", "second"])
    assert json.loads((tmp_path / "steps.json").read_text()) == {"first": True}
    assert run(monkeypatch, tmp_path, {"first": True, "second": True, "third": True}) == (True, ["second", "third"])
    assert run(monkeypatch, tmp_path, {"first": True, "second": True, "third": True}) == (True, [])


def test_what_is_not_well_is_remembered_and_does_not_stop_the_rest(tmp_path, monkeypatch, pretend_gpu):
    assert run(monkeypatch, tmp_path, {"first": False, "second": True}) == (False, ["first", "second"])
    assert run(monkeypatch, tmp_path, {"first": False, "second": True}) == (False, [])


def test_the_steps_begin_with_correctness():
    names = [name for name, _ in gpu.steps()]
    assert names[:2] == ["doctor", "tests"]
    assert sum(name.startswith("sweep") for name in names) == 33
    assert names.index("tests") < min(names.index(name) for name in names if name.startswith("sweep"))


def test_commands_keep_what_they_print(tmp_path):
    step = gpu._command("hello", [gpu.sys.executable, "-c", "print('to the log')"])
    assert step(tmp_path, Console(quiet=True), None) is True
    assert "to the log" in (tmp_path / "hello.txt").read_text()
    failing = gpu._command("failing", [gpu.sys.executable, "-c", "raise SystemExit(3)"])
    assert failing(tmp_path, Console(quiet=True), None) is False
