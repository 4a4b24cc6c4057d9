"""``bench gpu`` runs its steps in order, stops when time is up, and goes on from there."""

import json
import os
import subprocess
import sys

import psutil
import pytest
import torch
from rich.console import Console

from longformer_triton.bench import doctor, gpu, kernel_checks, suites


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

    monkeypatch.setattr(gpu, "steps", lambda done: ((name, stand_in(name, outcome)) for name, outcome in outcomes.items()))
    well = gpu.run_gpu(folder, Console(quiet=True), options.get("time_limit"))
    return well, called


def test_there_has_to_be_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="there is no GPU here"):
        gpu.run_gpu(tmp_path, Console(quiet=True), None)


def test_results_are_named_after_the_gpu(monkeypatch, pretend_gpu):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert gpu.default_folder().as_posix() == "results/nvidia-h100-80gb-hbm3"


def test_a_rerun_goes_on_where_time_was_up(tmp_path, monkeypatch, pretend_gpu):
    assert run(monkeypatch, tmp_path, {"first": True, "second": None}) == (True, ["first", "second"])
    assert json.loads((tmp_path / "steps.json").read_text()) == {"first": True}
    assert run(monkeypatch, tmp_path, {"first": True, "second": True, "third": True}) == (True, ["second", "third"])
    assert run(monkeypatch, tmp_path, {"first": True, "second": True, "third": True}) == (True, [])


def test_what_is_not_well_is_remembered_and_does_not_stop_the_rest(tmp_path, monkeypatch, pretend_gpu):
    assert run(monkeypatch, tmp_path, {"first": False, "second": True}) == (False, ["first", "second"])
    assert run(monkeypatch, tmp_path, {"first": False, "second": True}) == (False, [])


def test_what_took_longer_than_its_share_makes_room_and_is_tried_again(tmp_path, monkeypatch, pretend_gpu):
    assert run(monkeypatch, tmp_path, {"first": None, "second": True}) == (True, ["first", "second"])
    assert run(monkeypatch, tmp_path, {"first": True, "second": True}) == (True, ["first"])


def test_checks_have_a_share_of_the_time_alone(tmp_path, monkeypatch):
    waited = []

    class Waits(subprocess.Popen):
        def wait(self, timeout=None):
            waited.append(timeout)
            return super().wait()

    monkeypatch.setattr(gpu.subprocess, "Popen", Waits)
    assert gpu._command("half", [sys.executable, "-c", ""], share=0.5)(tmp_path, Console(quiet=True), 100.0) is True
    assert gpu._command("all", [sys.executable, "-c", ""])(tmp_path, Console(quiet=True), None) is True
    assert waited == [50.0, None]


def test_tests_leave_out_what_a_content_doctor_has_checked(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        gpu, "_command", lambda name, command, **_: lambda *_: ran.append((name, "not shipped" in str(command)))
    )
    for done in ({}, {"doctor": False}, {"doctor": True}):
        dict(gpu.steps(done))["tests"](tmp_path, Console(quiet=True), None)
    assert ran == [("tests", False), ("tests", False), ("tests", True)]


def test_the_steps_begin_with_correctness():
    names = [name for name, _ in gpu.steps({})]
    assert names[:2] == ["doctor", "tests"]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("sweep") for name in names) == 2 * 4 + 4
    measured = [index for index, name in enumerate(names) if name.startswith(("graph", "targets", "sweep"))]
    assert names.index("tests") < min(measured)
    last = ["pictures of the sweeps", "model, bfloat16", "model, float32", "longest", "tuning, float16", "tuning, tf32"]
    assert names[max(measured) + 1 :] == last


@pytest.mark.parametrize("installed", [False, True])
def test_the_sanitizer_is_run_or_missed_aloud(installed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/opt/{name}" if installed else None)
    found = {name: step for name, step in gpu.steps({}) if name in ("sanitizer", "memcheck", "racecheck")}
    assert list(found) == (["memcheck", "racecheck"] if installed else ["sanitizer"])
    if not installed:
        assert found["sanitizer"](tmp_path, Console(), None) is True
        assert "compute-sanitizer is not on the PATH" in capsys.readouterr().out


def test_what_the_sanitizer_watches_runs_every_check(monkeypatch):
    """Small, and windows that cover the text still do: these run other kernels."""
    ran = []
    monkeypatch.setattr(kernel_checks, "run_check", lambda *arguments: ran.append(arguments))
    exec(gpu._TINY, {})
    for check, (tiny, *rest) in zip(kernel_checks.CHECKS, ran, strict=True):
        assert rest == ["float16", 32, torch.device("cuda")]
        assert (tiny.name, tiny.seq_len) == (check.name, 66)
        assert (tiny.window[0] >= tiny.seq_len) == (check.window[0] >= check.seq_len)


@pytest.mark.parametrize(
    ("name", "said"), [("doctor", "Say what is installed"), ("tuning, tf32", "Find launch configurations")]
)
def test_commands_of_this_package_run_in_processes_of_their_own(name, said, tmp_path, monkeypatch):
    start = subprocess.Popen

    def ask_for_help(command, **options):
        return start([*command, "--help"], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", ask_for_help)
    assert dict(gpu.steps({}))[name](tmp_path, Console(quiet=True), None) is True
    assert said in (tmp_path / f"{name.replace(', ', '-')}.txt").read_text()


def test_what_runs_out_of_time_ends_with_all_that_it_started(tmp_path, monkeypatch):
    reported, report = os.pipe()
    grandchild = f"import os, signal; os.write({report}, str(os.getpid()).encode()); signal.pause()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], pass_fds=[{report}])"

    class OutOfTime(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options, pass_fds=[report])

        def wait(self, timeout=None):
            """Time is up as soon as the grandchild has reported."""
            if timeout is None:
                return super().wait()
            self.grandchild = psutil.Process(int(os.read(reported, 20)))
            raise subprocess.TimeoutExpired("child", timeout)

    started = []
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda *args, **options: started.append(OutOfTime(*args, **options)) or started[0]
    )
    assert gpu._command("child", [sys.executable, "-c", child])(tmp_path, Console(quiet=True), 1.0) is None
    # Gone, or waiting for a system that buries the orphans of others.
    gone, alive = psutil.wait_procs([started[0].grandchild], timeout=10)
    assert gone or alive[0].status() == psutil.STATUS_ZOMBIE


def test_what_a_compiler_says_is_printed_as_it_is(monkeypatch, capsys):
    """With brackets, which are markup to the console."""
    outcomes = [
        kernel_checks.Outcome("window", "float16", 64, 1e-3),
        kernel_checks.Outcome("holes", "float16", 64, failure="RuntimeError: near [/bold] of [%r1]"),
    ]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(doctor, "why_not", lambda *arguments: None)
    monkeypatch.setattr(kernel_checks, "run_all", lambda device, jobs: outcomes)
    assert not doctor._examine_gpus(Console(width=200), jobs=1)
    assert capsys.readouterr().out.splitlines() == [
        "ok cuda:0 float16 head_dim 64, window: error 1.0e-03 of 4e-03 allowed, repeats",
        "WRONG cuda:0 float16 head_dim 64, holes: RuntimeError: near [/bold] of [%r1]",
    ]


def test_sweeps_cover_the_axes_and_put_cheap_cells_first():
    plans = dict(suites.gpu_plans())
    cells = [case for each in plans.values() for plan in each for case in plan.cases()]
    sweeps = [case for case in cells if not case.graph]
    assert {case.window for case in sweeps if case.window} == {128, 512, 2048}
    assert {case.seq_len for case in sweeps} == {2**power for power in range(10, 21)}
    assert all(case.seq_len * case.batch >= 65536 for case in sweeps)
    windowed = {(case.num_globals, case.globals_at) for case in sweeps if case.window}
    assert windowed == {(0, "prefix"), (1, "prefix"), (64, "prefix"), (64, "scattered")}
    assert {case.dropout for case in sweeps} == {0, 10}
    assert {case.direction for case in sweeps} == {"forward", "forward+backward"}
    assert {"ours-triton", "varlen", "flex-tuned", "natten", "xformers", "flash-attn", "sdpa-cudnn"} <= {
        c.provider for c in sweeps
    }
    lengths = [case.seq_len for plan in plans["sweep, 1 globals"] for case in plan.cases()]
    assert lengths == sorted(lengths)
    names = list(plans)
    slow = [name for name, each in plans.items() if any(c.provider == "flex-tuned" for plan in each for c in plan.cases())]
    assert names[2:5] == ["targets, 0 globals", "targets, 1 globals", "targets, tuned flex_attention"]
    assert slow == ["targets, tuned flex_attention", *names[-4:]], "minutes of compiling come after the rest"
    in_graphs = [case for case in cells if case.graph]
    assert {(case.provider, case.seq_len, case.batch) for case in in_graphs} == {("ours-triton", 4096, 1)}


def test_sweeps_share_a_folder_that_the_suite_goes_on_in(tmp_path, monkeypatch):
    ran = []

    def stand_in(plans, folder, console):
        folder.mkdir(exist_ok=True)
        ran.append(folder)
        return plans[0].time_limit == 7.0

    monkeypatch.setattr(gpu, "run_sweep", stand_in)
    steps = dict(gpu.steps({}))
    console = Console(quiet=True)
    assert steps["sweep, 0 globals"](tmp_path, console, 7.0) is True
    assert steps["sweep, 64 scattered globals, dropout 10 %"](tmp_path, console, 1.0) is None
    assert ran == [tmp_path / "sweep"] * 2
    assert suites.suites_of(tmp_path / "sweep") == ["gpu"]


def test_correctness_needs_neither_transformers_nor_assets():
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from longformer_triton.bench import gpu\n"
        "names = [name for name, _ in gpu.steps({})]\n"
        "assert names[0] == 'doctor' and 'LONGFORMER_TEST_ASSETS' not in __import__('os').environ"
    )
    environment = {name: value for name, value in os.environ.items() if name != "LONGFORMER_TEST_ASSETS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert done.returncode == 0, done.stderr


def test_commands_keep_what_they_print(tmp_path):
    step = gpu._command("hello", [gpu.sys.executable, "-c", "print('to the log')"])
    assert step(tmp_path, Console(quiet=True), None) is True
    assert "to the log" in (tmp_path / "hello.txt").read_text()
    environment = gpu._command(
        "environment", [gpu.sys.executable, "-c", "import os; print(os.environ['SET'])"], SET="for it alone"
    )
    assert environment(tmp_path, Console(quiet=True), None) is True
    assert "for it alone" in (tmp_path / "environment.txt").read_text()
    failing = gpu._command("failing", [gpu.sys.executable, "-c", "raise SystemExit(3)"])
    assert failing(tmp_path, Console(quiet=True), None) is False
