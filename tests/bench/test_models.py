"""Whole models: the plan, resuming, what the rows say, and the longest text."""

import dataclasses
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from longformer_triton.bench import longest as longest_module
from longformer_triton.bench import model_sweep
from longformer_triton.bench.longest import longest, run_longest
from longformer_triton.bench.model_cells import (
    FORWARD,
    FULL,
    MODELS,
    OURS,
    PATCHED,
    PEER,
    TRAINING,
    UNABSORBED,
    ModelCase,
    ModelMeasurement,
    Prepared,
)
from longformer_triton.bench.model_findings import as_markdown, crossover, findings, load_models
from longformer_triton.bench.model_plot import draw_and_describe
from longformer_triton.bench.model_rounds import measure_in_turns, needed_bytes, that_fit
from longformer_triton.bench.model_sweep import ModelPlan, run_models, why_skip
from longformer_triton.bench.record import DIED, ERROR, OK, OUT_OF_MEMORY, SKIPPED, WRONG, Record
from longformer_triton.cli import app

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "transformers": "4", "commit": "abc", "date": "2026-01-01"}
TINY = ModelPlan(lengths=(16, 32), window=8, layers=1, heads=2, head_dim=8, threads=1, cell_seconds=0.0)


def measured(milliseconds, mib, tokens):
    return ModelMeasurement(milliseconds, milliseconds, milliseconds, 3, milliseconds, mib, tokens / milliseconds * 1e3, None)


def fill(folder):
    """Made-up rows with exact laws: ours N milliseconds and MiB, transformers 3 N, patched 2 N, full attention N^2 / 1024."""
    record = Record(folder, ModelCase, ModelMeasurement)
    for direction in (FORWARD, TRAINING):
        for length in (64, 512, 1024, 2048, 4096):
            laws = ((OURS, length, 512), (PEER, 3 * length, 512), (PATCHED, 2 * length, 512), (FULL, length**2 / 1024, None))
            for name, value, window in laws:
                record.append(ModelCase(name, direction, length, window), OK, ORIGIN, measured(value, value, length))
        record.append(ModelCase(UNABSORBED, direction, 4096, 512), OK, ORIGIN, measured(5120, 6144, 4096))
    return record


def values(frame):
    return {finding.what: finding.values for finding in findings(frame)}


def test_rows_give_speedups_growth_and_crossovers(tmp_path):
    fill(tmp_path)
    found = values(load_models(tmp_path))
    assert found["4096 tokens: faster than transformers Longformer"] == {FORWARD: "3.00x", TRAINING: "3.00x"}
    assert found["4096 tokens: memory of transformers RoBERTa, SDPA, over ours"][FORWARD] == "4.00x"
    assert found["4096 tokens: transformers Longformer, patched: faster than unpatched"][TRAINING] == "1.50x"
    assert found["4096 tokens: transformers Longformer, patched: memory unpatched, over patched"][FORWARD] == "1.50x"
    assert found["4096 tokens: time with global projections of all tokens, over absorbed ones"][FORWARD] == "1.25x"
    assert found["4096 tokens: memory with global projections of all tokens, over absorbed ones"][FORWARD] == "1.50x"
    assert found["ours: 64 tokens faster than 512"][FORWARD] == "8.00x"
    assert found["ours: peak memory grows as length to the power of"][TRAINING] == "1.00"
    assert found["faster than transformers RoBERTa, SDPA, from"][FORWARD] == "1024 tokens"


def test_a_crossover_between_two_lengths_is_interpolated(tmp_path):
    fill(tmp_path)
    frame = load_models(tmp_path)
    frame.loc[frame["provider"] == OURS, "p50_ms"] *= 1.5
    assert crossover(frame, FORWARD, "p50_ms") == pytest.approx(1536)


@pytest.mark.parametrize(("factor", "expected"), [(1e-3, 64.0), (1e3, None)], ids=["always_faster", "never_faster"])
def test_a_crossover_outside_the_lengths_is_said(tmp_path, factor, expected):
    fill(tmp_path)
    frame = load_models(tmp_path)
    frame.loc[frame["provider"] == OURS, "p50_ms"] *= factor
    assert crossover(frame, FORWARD, "p50_ms") == expected


def test_findings_need_no_peer(tmp_path):
    fill(tmp_path)
    frame = load_models(tmp_path)
    found = values(frame[frame["provider"] == OURS])
    assert list(found) == ["ours: 64 tokens faster than 512", "ours: peak memory grows as length to the power of"]


def test_pictures_and_tables_come_from_the_rows_alone(tmp_path):
    fill(tmp_path)
    written = {path.name: path.read_bytes() for path in draw_and_describe(tmp_path)}
    assert set(written) == {"model.md", "model.png", "model.svg"}
    assert written["model.png"].startswith(b"\x89PNG")
    text = written["model.md"].decode()
    assert text == as_markdown(load_models(tmp_path))
    for part in ("| 3.00x | 3.00x |", "a processor, 2 threads", "commit abc"):
        assert part in text


def test_an_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="longformer-triton bench model --out"):
        load_models(tmp_path)


def test_models_agree_and_a_rerun_measures_nothing_again(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    plan = dataclasses.replace(TINY, lengths=(16,))
    assert run_models(plan, tmp_path, Console(quiet=True))
    rows = Record(tmp_path, ModelCase, ModelMeasurement).rows()
    assert [(row["provider"], row["direction"]) for row in rows] == [
        (name, direction) for direction in (FORWARD, TRAINING) for name in MODELS
    ]
    assert {row["status"] for row in rows} == {OK}
    errors = {row["provider"]: row["relative_error"] for row in rows if row["direction"] == TRAINING}
    assert float(errors[OURS]) < 1e-4
    assert float(errors[PATCHED]) < 1e-4
    assert errors[FULL] == ""
    monkeypatch.setattr(model_sweep.Worker, "run", lambda *arguments: pytest.fail("measured again"))
    assert run_models(plan, tmp_path, Console(quiet=True))


class Puppet:
    """A worker that answers at once: logits that agree, a millisecond a call; ``spoilt`` says what else happens, and when."""

    def __init__(self, monkeypatch, spoilt=lambda request: None):
        self.spoilt, self.asked = spoilt, []
        monkeypatch.setattr(model_sweep.Worker, "run", lambda worker, request, *rest: self.answer(worker, request))

    def answer(self, worker, request):
        self.asked.append(request)
        if request is not None:
            worker.case = request
        ready = Prepared([[1.0, 1.0]], 2.0, 2**20)
        return self.spoilt(request or worker.case) or (OK, "", ready if request else 1.0)


FORWARD_AT_16 = dataclasses.replace(TINY, lengths=(16,), directions=(FORWARD,))


def statuses(folder):
    return {row["provider"]: row["status"] for row in Record(folder, ModelCase, ModelMeasurement).rows()}


@pytest.mark.parametrize("status", [ERROR, WRONG, DIED, OUT_OF_MEMORY])
def test_one_that_fails_leaves_the_others_their_rows(status, tmp_path, monkeypatch):
    Puppet(monkeypatch, lambda case: (status, "spoilt", None) if case.provider == PEER else None)
    output = io.StringIO()
    run_models(FORWARD_AT_16, tmp_path, Console(file=output))
    assert statuses(tmp_path) == {OURS: OK, PEER: status, PATCHED: OK, FULL: OK, UNABSORBED: OK}
    assert ("again, alone" in output.getvalue()) == (status in (DIED, OUT_OF_MEMORY))


def test_what_the_others_left_no_memory_for_is_measured_alone(tmp_path, monkeypatch):
    others = [PEER]
    Puppet(monkeypatch, lambda case: (DIED, "killed", None) if case.provider in others and others.pop() else None)
    run_models(FORWARD_AT_16, tmp_path, Console(quiet=True))
    assert statuses(tmp_path) == dict.fromkeys(MODELS, OK)


def test_models_take_turns(monkeypatch):
    puppet = Puppet(monkeypatch)
    cases = next(TINY.groups())
    workers = {case: model_sweep.Worker("cpu", 1, None) for case in cases}
    found = measure_in_turns(workers, 0.0, None, {})
    assert puppet.asked == [*cases, *[None] * (3 * len(cases))]
    assert {case: outcome[2].repeats for case, outcome in found.items()} == dict.fromkeys(cases, 3)


@pytest.mark.parametrize("apart", [False, True], ids=["in_one_set", "in_sets_of_their_own"])
def test_logits_that_disagree_are_wrong(apart, monkeypatch):
    cases = sorted(next(TINY.groups()), key=lambda case: case.provider != PEER)
    far = {case.provider: 2.0 if case.provider in (OURS, FULL) else 1.0 for case in cases}

    def run(worker, request, *rest):
        return OK, "", 1.0 if request is None else Prepared([[far[request.provider], 1.0]], 2.0, 0)

    monkeypatch.setattr(model_sweep.Worker, "run", run)
    found, logits = {}, {}
    for together in [[case] for case in cases] if apart else [cases]:
        found |= measure_in_turns({case: model_sweep.Worker("cpu", 1, None) for case in together}, 0.0, None, logits)
    # Full attention is another model, and is not compared.
    assert {case.provider: outcome[0] for case, outcome in found.items() if outcome[0] != OK} == {OURS: WRONG}


@given(
    active=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    free=st.integers(1, 120),
    device_type=st.sampled_from(["cpu", "cuda"]),
)
def test_models_that_are_there_at_once_fit_together(active, free, device_type):
    gib = 2**30
    cases = [ModelCase(name, TRAINING, 4096, 512) for name in "abcdef"[: len(active)]]
    needs = {case: number * gib for case, number in zip(cases, active, strict=True)}
    assert needed_bytes(cases[:1], needs, device_type) == cases[0].static_bytes + (0.5 + 1.5 * active[0]) * gib
    sets = list(that_fit(cases, needs, device_type, free * gib))
    assert [case for together in sets for case in together] == cases
    for together, following in zip(sets, [*sets[1:], None], strict=True):
        held = sum(case.static_bytes + gib / 2 for case in together)
        of_each = [1.5 * needs[case] for case in together]
        assert held + (max(of_each) if device_type == "cpu" else sum(of_each)) <= free * gib or len(together) == 1
        assert following is None or needed_bytes([*together, following[0]], needs, device_type) > free * gib


def test_what_a_model_takes_between_calls():
    case = ModelCase(OURS, TRAINING, 4096, 512)
    weights = MODELS[OURS].build(case, None).num_parameters() * 4
    assert case.static_bytes == pytest.approx(4 * weights, rel=0.01)
    assert dataclasses.replace(case, direction=FORWARD).static_bytes == pytest.approx(weights, rel=0.01)


def test_projections_of_all_tokens_are_measured_at_the_length_compared_alone():
    groups = {group[0].seq_len: {case.provider for case in group} for group in TINY.groups()}
    assert groups == {16: {*MODELS} - {UNABSORBED}, 32: {*MODELS}}


def test_time_that_is_up_leaves_the_rest_for_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(model_sweep.Worker, "run", lambda *arguments: None)
    assert not run_models(TINY, tmp_path, Console(quiet=True))
    assert Record(tmp_path, ModelCase, ModelMeasurement).rows() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_call_seconds": 1.0}, "about 4 s a call"),
        ({}, "needs about 25.0 GiB"),
    ],
    ids=["time", "memory"],
)
def test_a_cell_that_would_take_too_much_is_foreseen(monkeypatch, changes, reason):
    monkeypatch.setattr(model_sweep, "free_bytes", lambda device: 16 * 2**30)
    done = {ModelCase(FULL, FORWARD, 1024, None): {"status": OK, "p50_ms": "1000", "peak_extra_mib": "8192"}}
    assert reason in why_skip(ModelCase(FULL, FORWARD, 2048, None), dataclasses.replace(ModelPlan(), **changes), done)


@pytest.mark.parametrize(
    ("peaks", "gibibytes"),
    [({1024: 1024}, 4), ({512: 1024, 1024: 1024}, 4), ({512: 256, 1024: 1024}, 16), ({128: 9999, 512: 512, 1024: 1024}, 4)],
    ids=["one", "constant_is_taken_as_linear", "quadratic", "the_two_longest"],
)
def test_memory_is_foreseen_from_how_it_grew(peaks, gibibytes):
    done = {ModelCase(FULL, FORWARD, n, None): {"status": OK, "peak_extra_mib": str(mib)} for n, mib in peaks.items()}
    assert model_sweep._active_bytes(ModelCase(FULL, FORWARD, 4096, None), done) == pytest.approx(gibibytes * 2**30)


def test_a_package_that_is_absent_skips_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Puppet(monkeypatch)
    run_models(FORWARD_AT_16, tmp_path, Console(quiet=True))
    rows = {row["provider"]: row for row in Record(tmp_path, ModelCase, ModelMeasurement).rows()}
    for name in (PEER, PATCHED):
        assert rows[name]["status"] == SKIPPED
        assert rows[name]["reason"] == "transformers is not installed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 3}, "window: got 3"),
        ({"lengths": ()}, "lengths: got"),
        ({"dtype": "int8"}, "dtype: got int8"),
        ({"directions": ("sideways",)}, "direction: got sideways"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_axes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes).validate()


def test_the_command_refuses_an_odd_window():
    result = CliRunner().invoke(app, ["bench", "model", "--window", "3", "--device", "cpu"])
    assert result.exit_code == 2
    assert "expected an even total" in result.output


@pytest.mark.parametrize("limit", [4096, 5000, 6144, 8191, 8192, 100_000])
def test_the_longest_text_is_found_to_an_eighth(limit):
    found = longest(lambda seq_len: seq_len <= limit)
    assert found <= limit < found * 1.125 + 1


def test_nothing_fits():
    assert longest(lambda seq_len: False) == 0


def test_the_longest_text_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="expected a GPU"):
        run_longest(tmp_path, Console(quiet=True), "cpu")


def test_the_longest_texts_are_recorded_once(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    fits = {0: 8192, 1: 16384}
    monkeypatch.setattr(longest_module, "provenance", lambda place: ORIGIN)
    monkeypatch.setattr(longest_module, "_fits", lambda case, seq_len, device: seq_len <= fits[case.checkpointing])
    run_longest(tmp_path, Console(quiet=True), "cuda")
    rows = Record(tmp_path, longest_module.LongestCase, longest_module.Longest).rows()
    assert [(row["checkpointing"], row["seq_len"]) for row in rows] == [("0", "8192"), ("1", "16384")] * 3
    monkeypatch.setattr(longest_module, "_fits", lambda *arguments: pytest.fail("measured again"))
    run_longest(tmp_path, Console(quiet=True), "cuda")
