import dataclasses
import io
import time

import pytest
from bench_stubs import die_on_the_first_case, meet_a_fault, never_answer
from rich.console import Console

from longformer_triton.bench import sweep as sweep_module
from longformer_triton.bench.cases import FORWARD, Case
from longformer_triton.bench.measure import Measurement, measure
from longformer_triton.bench.record import DIED, ERROR, OK, OUT_OF_MEMORY, SKIPPED, Record
from longformer_triton.bench.suites import quick
from longformer_triton.bench.sweep import Plan, label, run_sweep, unavailable, why_skip
from longformer_triton.bench.worker import Worker

TINY = Plan(
    lengths=(32, 64),
    windows=(8,),
    providers=("ours-torch", "sdpa"),
    directions=(FORWARD,),
    heads=1,
    head_dim=4,
    threads=1,
    cell_seconds=0.0,
)
FIXED = Measurement(1.0, 2.0, 3.0, 3, 4.0, 5.0, 6.0, 1e-7)


class FakeWorker:
    """Answers at once, and remembers what it was asked."""

    asked: list[Case]
    answer = (OK, "", FIXED)

    def __init__(self, *_):
        type(self).asked = []

    def run(self, case, cell_seconds, deadline):
        type(self).asked.append(case)
        return self.answer

    def stop(self):
        pass


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def fake_worker(monkeypatch):
    monkeypatch.setattr(sweep_module, "Worker", FakeWorker)
    return FakeWorker


def test_a_sweep_measures_every_cell_in_a_child_process(tmp_path, console):
    assert run_sweep(TINY, tmp_path, console)
    rows = Record(tmp_path).rows()
    assert [(row["provider"], row["seq_len"], row["status"]) for row in rows] == [
        ("ours-torch", "32", OK),
        ("sdpa", "32", OK),
        ("ours-torch", "64", OK),
        ("sdpa", "64", OK),
    ]
    assert all(row["device"] and row["torch"] and row["date"] and row["threads"] == "1" for row in rows)


def test_a_rerun_measures_only_what_is_missing(tmp_path, console, fake_worker):
    run_sweep(dataclasses.replace(TINY, lengths=(32,)), tmp_path, console)
    run_sweep(TINY, tmp_path, console)
    assert [case.seq_len for case in fake_worker.asked] == [64, 64]


def test_an_interruption_keeps_every_finished_row(tmp_path, console, fake_worker, monkeypatch):
    def interrupt_at_the_third(self, case, cell_seconds, deadline):
        if len(fake_worker.asked) == 2:
            raise KeyboardInterrupt
        fake_worker.asked.append(case)
        return fake_worker.answer

    monkeypatch.setattr(fake_worker, "run", interrupt_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(TINY, tmp_path, console)
    assert len(Record(tmp_path).rows()) == 2


def test_out_of_memory_is_a_row_and_not_the_end(tmp_path, console, fake_worker, monkeypatch):
    monkeypatch.setattr(fake_worker, "answer", (OUT_OF_MEMORY, "tried to allocate 80 GiB", None))
    assert run_sweep(TINY, tmp_path, console)
    assert {row["status"] for row in Record(tmp_path).rows()} == {OUT_OF_MEMORY}


def test_the_time_limit_stops_between_cells(tmp_path, console, fake_worker):
    assert not run_sweep(dataclasses.replace(TINY, time_limit=0.0), tmp_path, console)
    assert fake_worker.asked == []


def test_a_killed_child_is_recorded_and_replaced():
    worker = Worker("cpu", 1, measure, serve=die_on_the_first_case)
    case = Case("ours-torch", FORWARD, 32, 8)
    for _ in range(2):
        status, reason, measurement = worker.run(case, 0.0, None)
        assert (status, measurement) == (DIED, None)
        assert "exit code -9" in reason
        assert "memory" in reason
    worker.stop()


def test_a_child_that_is_gone_cannot_go_on_and_is_replaced_for_another_case():
    # What a child measures with has to be importable there, which this module is not.
    worker = Worker("cpu", 1, "{0}".format)
    assert worker.run("first", 0.0, None) == (OK, "", "first")
    worker._process.kill()
    worker._process.join()
    status, reason, _ = worker.run(None, 0.0, None)
    assert (status, "exit code -9" in reason) == (DIED, True)
    assert worker.run("second", 0.0, None) == (OK, "", "second")
    child = worker._process
    worker.stop()
    # An idle child leaves by itself, and so cleans up what it made.
    assert child.exitcode == 0


def test_a_fault_of_a_gpu_ends_its_process():
    worker = Worker("cpu", 1, meet_a_fault)
    first = worker.run("fine", 0.0, None)[2]
    assert worker.run("fine", 0.0, None)[2] == first
    status, reason, _ = worker.run("fault", 0.0, None)
    assert (status, "illegal memory access" in reason) == (ERROR, True)
    assert worker.run("fine", 0.0, None)[2] != first
    worker.stop()


def test_a_deadline_stops_a_running_cell():
    worker = Worker("cpu", 1, measure, serve=never_answer)
    assert worker.run(Case("ours-torch", FORWARD, 32, 8), 0.0, time.monotonic()) is None


def test_cells_that_do_not_fit_in_memory_are_skipped_with_the_numbers(monkeypatch):
    monkeypatch.setattr(sweep_module, "free_bytes", lambda device: 2**30)
    case = Case("reference", FORWARD, 16384, 512)
    assert why_skip(case, TINY, {}) == "needs about 60.0 GiB, more than 80% of the 1.0 GiB that are free"


def test_calls_that_would_take_too_long_are_skipped_with_the_prediction():
    plan = dataclasses.replace(TINY, max_call_seconds=1.0)
    done = {Case("sdpa", FORWARD, 1024, None): {"status": OK, "p50_ms": "100"}}
    assert why_skip(Case("sdpa", FORWARD, 2048, None), plan, done) is None
    assert why_skip(Case("sdpa", FORWARD, 4096, None), plan, done) == "about 1.6 s a call, more than --max-call-seconds 1"
    linear = {Case("ours-torch", FORWARD, 1024, 64): {"status": OK, "p50_ms": "100"}}
    assert why_skip(Case("ours-torch", FORWARD, 8192, 64), plan, linear) is None


def test_a_prediction_allows_for_another_batch():
    plan = dataclasses.replace(TINY, max_call_seconds=1.0)
    done = {Case("sdpa", FORWARD, 1024, None, batch=64): {"status": OK, "p50_ms": "1600"}}
    assert why_skip(Case("sdpa", FORWARD, 4096, None, batch=2), plan, done) is None
    assert why_skip(Case("sdpa", FORWARD, 4096, None, batch=4), plan, done).startswith("about 1.6 s a call")


def test_several_plans_share_a_folder_and_full_attention_is_one_cell(tmp_path, console, fake_worker):
    plans = [dataclasses.replace(TINY, lengths=(32,), num_globals=count, globals_at="scattered") for count in (0, 1, 2)]
    assert run_sweep(plans, tmp_path, console)
    asked = [(case.provider, case.num_globals, case.globals_at) for case in fake_worker.asked]
    assert asked == [
        ("ours-torch", 0, "prefix"),
        ("sdpa", 0, "prefix"),
        ("ours-torch", 1, "scattered"),
        ("ours-torch", 2, "scattered"),
    ]
    assert set(Record(tmp_path).finished()) == set(fake_worker.asked)


def test_a_label_names_what_is_unusual():
    plain = Case("sdpa", FORWARD, 512, None)
    assert label(plain) == "sdpa forward 512 full"
    odd = Case(
        "flex",
        FORWARD,
        512,
        64,
        2,
        num_globals=4,
        globals_at="scattered",
        padding=5,
        dropout=10,
        is_causal=1,
        dilation=2,
        graph=1,
    )
    text = "flex forward 512 window 64 batch 2 4 globals scattered padding 5 % dropout 10 % causal dilation 2 in a graph"
    assert label(odd) == text


def test_skipped_cells_are_looked_at_again(tmp_path, console, fake_worker, monkeypatch):
    monkeypatch.setattr(sweep_module, "free_bytes", lambda device: 1)
    run_sweep(TINY, tmp_path, console)
    assert {row["status"] for row in Record(tmp_path).rows()} == {SKIPPED}
    monkeypatch.undo()
    monkeypatch.setattr(sweep_module, "Worker", FakeWorker)
    run_sweep(TINY, tmp_path, console)
    assert {row["status"] for row in Record(tmp_path).rows()} == {OK}


def test_why_a_cell_was_skipped_is_printed(tmp_path, console, fake_worker):
    run_sweep(dataclasses.replace(TINY, max_call_seconds=1e-6), tmp_path, console)
    text = console.file.getvalue()
    assert "ours-torch forward 64 window 8: skipped: about" in text
    assert "more than --max-call-seconds" in text


def test_a_rerun_on_another_machine_says_so(tmp_path, console, fake_worker):
    run_sweep(TINY, tmp_path, console)
    assert "holds cells of" not in console.file.getvalue()
    run_sweep(dataclasses.replace(TINY, threads=2), tmp_path, console)
    assert "holds cells of" in console.file.getvalue()
    assert "1 thread," in console.file.getvalue()


def test_failures_are_counted_and_tried_again_on_request(tmp_path, console, fake_worker, monkeypatch):
    monkeypatch.setattr(fake_worker, "answer", (ERROR, "why", None))
    run_sweep(TINY, tmp_path, console)
    monkeypatch.setattr(fake_worker, "answer", (OK, "", FIXED))
    run_sweep(TINY, tmp_path, console)
    assert fake_worker.asked == []
    assert "4 done before (4 of them failed; --retry measures these again)" in console.file.getvalue()
    run_sweep(dataclasses.replace(TINY, retry=True), tmp_path, console)
    assert len(fake_worker.asked) == 4


def test_unavailable_providers_are_listed_with_their_reasons():
    plan = dataclasses.replace(TINY, providers=("ours-torch", "ours-triton"))
    (name, reason), *others = unavailable(plan).items()
    assert name == "ours-triton"
    assert reason.startswith("Triton drives GPUs, not cpu devices")
    assert not others


def test_peers_can_be_limited_to_some_windows():
    plan = dataclasses.replace(
        TINY, windows=(8, 16), lengths=(32,), providers=("ours-torch", "transformers", "sdpa"), peer_windows=(16,)
    )
    assert [(case.provider, case.window) for case in plan.cases()] == [
        ("ours-torch", 8),
        ("ours-torch", 16),
        ("transformers", 16),
        ("sdpa", None),
    ]


def test_the_quick_plan_reaches_16k_and_includes_full_attention():
    (plan,) = quick("cpu")
    cases = list(plan.cases())
    assert max(case.seq_len for case in cases) == 16384
    assert any(case.provider == "sdpa" for case in cases)
    assert plan.time_limit < 180


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"providers": ("ours-torch", "nobody")}, r"providers: got 'nobody', expected some of"),
        ({"directions": ("sideways",)}, r"direction: got 'sideways'"),
        ({"dtype": "int8"}, r"dtype: got int8"),
        ({"lengths": ()}, r"lengths: got \[\]"),
        ({"windows": (0,)}, r"windows: got \[0\]"),
        ({"windows": (7,)}, r"windows: got \[7\], expected even totals"),
        ({"globals_at": "anywhere"}, r"globals_at: got anywhere, expected one of prefix, scattered"),
        ({"padding": 100}, r"padding: got 100, expected percent"),
        ({"dropout": -1}, r"dropout: got -1, expected percent"),
        ({"dilation": 0}, r"dilation: got 0"),
        ({"key_heads": 2}, r"key_heads: got 2, expected a divisor of 1"),
        ({"num_globals": 20, "padding": 50}, r"num_globals: got 20, expected at most the tokens of the shortest text, 16"),
        ({"num_globals": 33}, r"num_globals: got 33, expected at most the tokens of the shortest text, 32"),
    ],
    ids=[
        *(
            "provider",
            "direction",
            "dtype",
            "no_lengths",
            "window_zero",
            "window_odd",
            "place",
            "padding",
            "dropout",
            "dilation",
        ),
        *("key_heads", "globals_in_padding", "too_many_globals"),
    ],
)
def test_plans_that_cannot_be_are_refused_before_any_work(tmp_path, console, fake_worker, change, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(dataclasses.replace(TINY, **change), tmp_path, console)
    assert not (tmp_path / "results.csv").exists()
