"""Named suites: their plans, their pictures, and how they are run, stopped and gone on with."""

import dataclasses
import io
import re

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from longformer_triton.bench import memory, suites
from longformer_triton.bench.cases import FORWARD, TRAINING, Case
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.model_sweep import ModelPlan
from longformer_triton.bench.plot import draw_all, load, usual
from longformer_triton.bench.record import OK, SKIPPED, Record
from longformer_triton.bench.sweep import Plan, notes, unavailable
from longformer_triton.cli import app

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "date": "2026-01-01T00:00:00+00:00", "commit": "abc"}
QUIET = Console(file=io.StringIO(), width=200)
SWEPT = [name for name in suites.SUITES if name != suites.MODEL]


def measured(time, mib=1.0):
    return Measurement(0.9 * time, time, 1.1 * time, 5, time, mib, 0.1, 1e-7)


def made_up(name, folder, **replaced):
    """Every cell of a suite that a CPU could run, with made-up times and memory: linear with a window, else quadratic."""
    record = Record(folder)
    for plan in suites.plans_of(name, "cpu", replaced):
        for case in plan.cases():
            if case.provider in ("sdpa", "sdpa-math", "chunks", "flex", "transformers", "ours-torch"):
                work = case.batch * case.seq_len * (case.window or case.seq_len) * (1 + case.num_globals / 100) / 2**20
                quadratic = case.provider == "sdpa-math"
                record.append(case, OK, ORIGIN, measured(work, case.seq_len * (case.seq_len if quadratic else 512) / 2**18))
    (folder / suites.SUITE_NAME).write_text(f"{name}\n")


@pytest.mark.parametrize("name", SWEPT)
def test_plans_are_sound_and_name_each_cell_once_or_alike(name):
    plans = suites.plans_of(name, "cpu", {})
    for plan in plans:
        plan.validate()
    assert any(case.provider.startswith("ours-") for plan in plans for case in plan.cases())


@pytest.mark.parametrize("name", [name for name in suites.SUITES if name not in ("all", "gpu")])
def test_a_suite_says_how_long_it_takes(name):
    assert re.search(r"\d minutes|[Tt]hree minutes", suites.SUITES[name].__doc__)


def test_the_suite_of_global_tokens_has_counts_and_places():
    plans = suites.plans_of("globals", "cpu", {})
    assert [(plan.num_globals, plan.globals_at) for plan in plans] == [
        (0, "prefix"),
        *((count, place) for count in (1, 16, 64) for place in ("prefix", "scattered")),
    ]
    assert "flex" in notes(plans)
    assert set(unavailable(plans)) == {"ours-triton"}


def test_the_paper_suite_has_full_attention_chunks_and_ours():
    (plan,) = suites.plans_of("paper", "cpu", {})
    assert {"sdpa-math", "sdpa", "chunks", "ours-torch"} <= set(plan.providers)


def test_options_replace_axes_and_foreign_ones_are_refused():
    plans = suites.plans_of("short", "cpu", {"lengths": (8,), "heads": 1})
    assert [(plan.lengths, plan.heads, plan.batch) for plan in plans] == [((8,), 1, 1), ((8,), 1, 32)]
    assert isinstance(suites.plans_of("model", "cpu", {"heads": 1}), ModelPlan)
    with pytest.raises(ValueError, match="padding: the suite model has no such axis"):
        suites.plans_of("model", "cpu", {"padding": 5})
    with pytest.raises(ValueError, match="suite: got everything, expected one of all, quick, paper"):
        suites.plans_of("everything", "cpu", {})


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("quick", ["scaling", "windows", "speedup"]),
        ("paper", ["paper"]),
        ("windows", ["windows", "speedup"]),
        ("globals", ["globals"]),
        ("short", ["short"]),
        ("memory", ["memory"]),
        ("gpu", ["rates", "globals"]),
    ],
)
def test_every_suite_is_drawn_from_its_folder(tmp_path, name, pictures):
    replaced = {"providers": ("sdpa", "flex", "ours-torch"), "lengths": (1024, 2048, 65536)} if name == "gpu" else {}
    made_up(name, tmp_path, **replaced)
    drawn = [path.name for path in draw_all(tmp_path)]
    described = ["memory.md"] if name == "memory" else []
    assert drawn == described + [f"{picture}.{suffix}" for picture in pictures for suffix in ("png", "svg")]


def test_a_picture_shows_one_value_of_the_axes_that_it_does_not_draw(tmp_path):
    made_up("globals", tmp_path)
    frame = load(tmp_path)
    plain = usual(frame)
    assert set(plain["num_globals"]) == {0}
    assert "sdpa" in set(plain["provider"])
    assert len(usual(frame, "num_globals", "globals_at")) == len(frame)
    with_globals = frame[frame["num_globals"].isin((16, 64)) | frame["window"].isna()]
    assert set(usual(with_globals)["num_globals"]) == {0, 16}


def test_files_with_fewer_axes_are_read_with_the_usual_values(tmp_path):
    made_up("paper", tmp_path)
    path = tmp_path / "results.csv"
    frame = load(tmp_path)
    frame.drop(columns=["globals_at", "padding", "dropout", "is_causal", "dilation", "key_heads", "graph"]).to_csv(
        path, index=False
    )
    again = load(tmp_path)
    for field in dataclasses.fields(Case)[9:]:
        assert again[field.name].isna().all() if field.default is None else set(again[field.name]) == {field.default}
    assert draw_all(tmp_path)


def test_memory_is_extrapolated_from_an_exact_law(tmp_path):
    record = Record(tmp_path)
    states = 4 * 12 * 64 * 4  # bytes a token of query, key, value and the gradient of the output
    for name, window, extra in (("ours-torch", 512, lambda n: 1000 * n + 5e6), ("sdpa-math", None, lambda n: 10 * n * n)):
        for length in (1024, 2048, 3072, 4096):
            record.append(Case(name, TRAINING, length, window), OK, ORIGIN, measured(1.0, extra(length) / 2**20))
    linear, quadratic = memory.fits(load(tmp_path))
    assert (linear.provider, quadratic.provider) == ("ours-torch", "sdpa-math")
    assert (linear.linear, linear.quadratic) == (pytest.approx(1000 + states), 0)
    assert (quadratic.linear, quadratic.quadratic) == (pytest.approx(states, rel=1e-3), pytest.approx(10))
    assert max(linear.off, quadratic.off) < 1e-6
    for fit in (linear, quadratic):
        tokens = fit.longest(8 * 2**30)
        assert fit.at(tokens) <= 8 * 2**30 < fit.at(tokens + 2)
    text = memory.as_markdown(load(tmp_path))
    assert f"| {memory.rounded(linear.longest(8 * 2**30)):,} |" in text
    assert "1024, 2048, 3072, 4096 tokens" in text


def test_memory_needs_three_lengths(tmp_path):
    record = Record(tmp_path)
    for length in (1024, 2048):
        record.append(Case("ours-torch", FORWARD, length, 512), OK, ORIGIN, measured(1.0))
    with pytest.raises(ValueError, match="three lengths"):
        memory.fits(load(tmp_path))


def test_the_longest_attention_on_a_gpu_is_found_by_trying(tmp_path, monkeypatch):
    tried = []

    class Cell:
        def __init__(self, case, device):
            tried.append(case)
            if case.seq_len > (20000 if case.window else 5000):
                raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(memory, "Cell", Cell)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    plan = Plan(lengths=(1024,), windows=(512,), providers=("ours-torch", "sdpa", "natten"), directions=(FORWARD,))
    memory.run_longest_attention(plan, tmp_path, QUIET)
    rows = Record(tmp_path, memory.LongestCase, memory.Longest).rows()
    assert [(row["provider"], row["status"], row["seq_len"]) for row in rows] == [
        ("ours-torch", OK, "18432"),
        ("sdpa", OK, "4608"),
        ("natten", SKIPPED, ""),
    ]
    count = len(tried)
    memory.run_longest_attention(plan, tmp_path, QUIET)
    assert len(tried) == count


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "sweep", *map(str, arguments)])


TINY = ("--device", "cpu", "--threads", 1, "--cell-seconds", 0, "--heads", 1, "--head-dim", 4, "--providers", "ours-torch,sdpa")


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("globals", ("--lengths", 96, "--windows", 8)),
        ("short", ("--lengths", "8,16", "--windows", 16)),
        ("memory", ("--lengths", "32,64,96,128", "--windows", 8, "--direction", "forward")),
    ],
)
def test_command_runs_a_suite_and_a_rerun_finds_it_done(tmp_path, monkeypatch, name, axes):
    monkeypatch.chdir(tmp_path)
    result = run("--suite", name, *axes, *TINY)
    assert result.exit_code == 0, result.output
    assert "note: sdpa: full attention" in result.output
    folder = tmp_path / "results" / name
    assert (folder / f"{name}.png").stat().st_size > 5000
    before = (folder / "results.csv").read_text()
    assert all(row["status"] == OK for row in Record(folder).rows())
    assert run("--suite", name, *axes, *TINY).exit_code == 0
    assert (folder / "results.csv").read_text() == before


def test_command_takes_the_new_axes(tmp_path):
    axes = ("--globals-at", "scattered", "--num-globals", 2, "--padding", 25, "--dropout", 10, "--dilation", 2, "--causal")
    heads = ("--heads", 2, "--key-heads", 1)
    result = run("--lengths", "32,64,96", "--windows", 8, "--out", tmp_path, *axes, *TINY, *heads, "--providers", "ours-torch")
    assert result.exit_code == 0, result.output
    row = Record(tmp_path).rows()[0]
    names = ("globals_at", "num_globals", "padding", "dropout", "dilation", "is_causal", "key_heads", "status")
    assert [row[name] for name in names] == ["scattered", "2", "25", "10", "2", "1", "1", OK]


def test_command_delegates_to_the_sweep_of_models(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(suites, "run_models", lambda plan, folder, console: asked.append((plan, folder)) or True)
    monkeypatch.setattr("longformer_triton.bench.plot_suites.draw_suite", lambda folder: [])
    (tmp_path / "out").mkdir()
    result = run("--suite", "model", "--lengths", "8,16", "--heads", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ((plan, folder),) = asked
    assert (plan.lengths, plan.heads, folder) == ((8, 16), 2, tmp_path / "out")


def test_an_interruption_keeps_the_suite_s_name(tmp_path, monkeypatch):
    def stop(plans, folder, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "run_sweep", stop)
    with pytest.raises(KeyboardInterrupt):
        suites.run_suite("paper", suites.plans_of("paper", "cpu", {}), tmp_path, QUIET)
    assert suites.suites_of(tmp_path) == ["paper"]


def test_a_folder_of_two_suites_has_the_pictures_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "run_sweep", lambda plans, folder, console: True)
    for name in ("windows", "paper", "windows"):
        suites.run_suite(name, suites.plans_of(name, "cpu", {}), tmp_path, QUIET)
    made_up("windows", tmp_path)
    made_up("paper", tmp_path)
    suites.note_suite("windows", tmp_path)
    assert {path.stem for path in draw_all(tmp_path)} == {"windows", "speedup", "paper"}


def test_a_suite_leaves_no_note_in_a_folder_of_other_results(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        suites.run_suite("paper", suites.plans_of("paper", "cpu", {}), tmp_path, QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "everything"), "expected one of all, quick, paper"),
        (("--quick", "--suite", "paper"), "expected one of them"),
        (("--suite", "model", "--padding", 5), "has no such axis"),
        (("--globals-at", "middle"), "expected one of prefix, scattered"),
    ],
    ids=["unknown_suite", "two_suites", "foreign_axis", "unknown_place"],
)
def test_bad_input_is_refused_in_words(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["sweep", "core", "model", "longest"])
def test_a_device_that_is_not_here_is_refused_in_words(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for device, message in (("foo", "device: got 'foo', expected a torch.device"), ("xpu:9", "expected one that is here")):
        result = CliRunner().invoke(app, ["bench", command, "--device", device])
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())
