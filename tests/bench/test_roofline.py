"""Rooflines: compulsory bytes by hand, ceilings that belong to their machine, pictures."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from longformer_triton.bench import roofline
from longformer_triton.bench.cases import FORWARD, TRAINING, Case, useful_flops
from longformer_triton.bench.folder import read
from longformer_triton.bench.machine import copy_bandwidth, provenance
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.record import OK, Record
from longformer_triton.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
CEILING = roofline.Ceiling("float32", 1e11, 1e10, 2048, 1 << 20, {})


def fill(folder, origin=None):
    record = Record(folder)
    for length in (64, 128):
        for provider, window, time in (("ours-torch", 8, 1.0), ("sdpa", None, 2.0)):
            case = Case(provider, FORWARD, length, window)
            record.append(
                case, OK, origin or {"device": "a processor", "date": ""}, Measurement(time, time, time, 3, 1, 1, 1, 0)
            )
    return folder


@pytest.mark.parametrize(
    ("change", "bytes_a_token_and_head"),
    [
        ({}, 8 * 64 + 4),
        ({"direction": TRAINING}, 8 * 64 + 4 + 16 * 64 + 4),
        ({"dtype": "float32"}, 16 * 64 + 4),
        ({"num_globals": 1}, 12 * 64 + 4),
        ({"num_globals": 1, "direction": TRAINING}, 12 * 64 + 4 + 24 * 64 + 4),
        ({"num_globals": 1, "window": None}, 8 * 64 + 4),
        ({"num_globals": 1, "is_causal": 1}, 8 * 64 + 4),
    ],
)
def test_compulsory_bytes(change, bytes_a_token_and_head):
    case = dataclasses.replace(Case("x", FORWARD, 100, 8, batch=2, heads=3, dtype="bfloat16"), **change)
    assert roofline.compulsory_bytes(case) == 2 * 3 * 100 * bytes_a_token_and_head


def test_grouped_heads_share_keys():
    case = Case("x", FORWARD, 100, 8, heads=4, dtype="bfloat16", key_heads=1)
    assert roofline.compulsory_bytes(case) == 100 * (4 * (4 * 64 + 4) + 4 * 64)


def test_intensity_of_the_floors_in_bfloat16():
    """Base-sized heads, window (256, 256): 254 useful operations a byte."""
    case = Case("x", FORWARD, 65536, 512, dtype="bfloat16")
    assert useful_flops(case) / roofline.compulsory_bytes(case) == pytest.approx(254, abs=1)


def test_the_roof_is_the_lower_of_two():
    assert CEILING.ridge == 10
    assert [CEILING.at(intensity) for intensity in (1, 10, 100)] == [1e10, 1e11, 1e11]


def test_points_are_useful_rates(tmp_path):
    point = roofline.points(read(fill(tmp_path)))[0]
    assert point.rate == pytest.approx(useful_flops(Case("ours-torch", FORWARD, 64, 8)) / 1e-3)


def test_points_above_the_roof_are_counted(tmp_path):
    found = roofline.points(read(fill(tmp_path)))
    assert roofline.above_the_roof(found, [dataclasses.replace(CEILING, matmul_flops=1e20, copy_bytes=1e20)]) == 0
    assert roofline.above_the_roof(found, [dataclasses.replace(CEILING, matmul_flops=1.0)]) == 4


@pytest.mark.parametrize(("count", "said"), [(1, "1 point lies above the roof"), (2, "2 points lie above the roof")])
def test_the_command_says_how_many_points_lie_above(tmp_path, monkeypatch, count, said):
    monkeypatch.setattr(roofline, "above_the_roof", lambda found, ceilings: count)
    monkeypatch.setattr(roofline, "draw", lambda folder: [])
    roofline.save_ceilings(fill(tmp_path), [CEILING])
    result = CliRunner().invoke(app, ["bench", "roofline", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert said in result.output


@pytest.mark.parametrize(("threads", "said"), [("1", "1 thread,"), ("2", "2 threads,")])
def test_the_picture_counts_threads(tmp_path, threads, said):
    results = read(fill(tmp_path, {"device": "a processor", "threads": threads, "date": ""}))
    figure = roofline.draw_roofline(roofline.points(results), [CEILING], results)
    assert f"a processor, {said}" in figure._supxlabel.get_text()


def test_ceilings_are_measured_kept_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "_SIZES", {"cpu": (32, 1 << 16)})
    monkeypatch.setattr(roofline, "_TRIES", 1)
    fill(tmp_path, provenance(torch.device("cpu")))
    (ceiling,) = roofline.measure_ceilings(tmp_path, "cpu")
    assert ceiling.dtype == "float32"
    assert ceiling.matmul_flops > 0
    assert ceiling.origin["torch"] == torch.__version__
    assert roofline.load_ceilings(tmp_path) == [ceiling]
    assert [path.name for path in roofline.draw(tmp_path)] == ["roofline.png", "roofline.svg"]
    assert (tmp_path / "roofline.png").stat().st_size > 5000


def test_ceilings_of_another_machine_are_refused(tmp_path):
    with pytest.raises(ValueError, match="belong to the machine"):
        roofline.measure_ceilings(fill(tmp_path), "cpu")
    assert not (tmp_path / "ceilings.json").exists()


@pytest.mark.parametrize("text", [None, "{", '[{"dtype": "float32"}]'], ids=["missing", "no json", "other fields"])
def test_missing_or_foreign_ceilings_are_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "ceilings.json").write_text(text)
    with pytest.raises(ValueError, match="--measure"):
        roofline.draw(fill(tmp_path))


def test_a_dtype_without_ceiling_is_refused(tmp_path):
    roofline.save_ceilings(fill(tmp_path), [dataclasses.replace(CEILING, dtype="float64")])
    with pytest.raises(ValueError, match="lacks float32"):
        roofline.draw(tmp_path)


def test_a_copy_counts_what_it_reads_and_writes(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("longformer_triton.bench.machine.time.perf_counter", lambda: next(ticks))
    assert copy_bandwidth(torch.device("cpu"), 1 << 12) == 2 * (1 << 12)
