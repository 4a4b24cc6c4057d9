"""Pictures of folders that are not as a suite leaves them: parts missing, several machines, axes beside the usual ones."""

import dataclasses

import numpy as np
import pytest

from longformer_triton.bench import memory, plot, plot_suites
from longformer_triton.bench.cases import DIRECTIONS, FORWARD, TRAINING, Case
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.record import OK, Record
from longformer_triton.bench.suites import note_suite

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "date": "2026-01-01T00:00:00+00:00", "commit": "abc"}
LENGTHS = (64, 128, 256, 512)


def fill(folder, cases, origin=ORIGIN):
    """Cells with made-up times and memory that no polynomial goes through."""
    record = Record(folder)
    for case in cases:
        time = case.seq_len * (case.window or case.seq_len) / 2**10
        peak = case.seq_len / 2**8 * (1.3 if case.seq_len == 256 else 1)
        record.append(case, OK, origin, Measurement(0.9 * time, time, 1.1 * time, 5, time, peak, 0.1, 1e-7))
    return plot.load(folder)


def cells(*providers, windows=(32,), **axes):
    for provider in providers:
        for window in [None] if provider.startswith("sdpa") else windows:
            for direction in DIRECTIONS:
                yield from (Case(provider, direction, length, window, **axes) for length in LENGTHS)


@pytest.mark.parametrize("suite", ["all", "paper", "windows", "globals", "short", "memory", "gpu"])
@pytest.mark.parametrize("providers", [("sdpa",), ("chunks", "sdpa"), ("chunks",)], ids="-".join)
def test_pictures_need_neither_ours_nor_a_window(tmp_path, suite, providers):
    fill(tmp_path, cells(*providers))
    note_suite(suite, tmp_path)
    assert {path.suffix for path in plot.draw_all(tmp_path)} <= {".png", ".svg", ".md"}


def test_points_of_memory_are_what_was_measured(tmp_path):
    frame = fill(tmp_path, cells("ours-torch", "sdpa"))
    figure = plot_suites.draw_memory(frame)
    for axes, direction in zip(figure.axes, DIRECTIONS, strict=True):
        for provider in ("ours-torch", "sdpa"):
            rows = frame[(frame["provider"] == provider) & (frame["direction"] == direction)].sort_values("seq_len")
            inputs = (4 if direction == TRAINING else 3) * 12 * 64 * 4 * rows["seq_len"].to_numpy()
            expected = (rows["peak_extra_mib"].to_numpy() * 2**20 + inputs) / 2**30
            title = plot.title_of(provider)
            (points,) = [line for line in axes.lines if str(line.get_label()).startswith(title)]
            np.testing.assert_allclose(points.get_ydata(), expected)
            np.testing.assert_array_equal(points.get_xdata(), LENGTHS)


@pytest.mark.parametrize("draw", [plot_suites.draw_paper, plot_suites.draw_short, plot_suites.draw_memory, plot.draw_scaling])
def test_a_line_is_of_one_window(tmp_path, draw):
    frame = fill(tmp_path, cells("ours-torch", "sdpa", windows=(32, 128)))
    figure = draw(frame)
    lengths = [line.get_xdata() for axes in figure.axes for line in axes.lines if set(line.get_xdata()) == set(LENGTHS)]
    assert lengths
    assert all(list(line) == list(LENGTHS) for line in lengths)
    words = figure.get_suptitle() + figure.get_supxlabel()
    assert "128" in words
    assert "32" not in words.replace("float32", "")


def test_memory_is_fitted_for_one_window_and_the_table_says_which(tmp_path):
    frame = fill(tmp_path, cells("ours-torch", windows=(32, 128), batch=4))
    text = memory.as_markdown(frame)
    assert "batch 4" in text
    assert "window 128" in text


def test_other_numbers_of_key_heads_are_another_picture(tmp_path):
    frame = fill(tmp_path, [*cells("ours-torch", "sdpa"), *cells("ours-torch", "sdpa", key_heads=2)])
    assert plot.usual(frame)["key_heads"].isna().all()
    assert set(plot.usual(frame[frame["key_heads"].notna()])["key_heads"]) == {2}
    assert plot.draw_speedup(frame) is not None


def test_captions_say_what_is_not_usual(tmp_path):
    axes = {"is_causal": 1, "dropout": 10, "padding": 5, "dilation": 2, "key_heads": 1, "num_globals": 3, "graph": 1}
    frame = fill(tmp_path, cells("ours-torch", **axes))
    caption = plot.setting(frame)
    for words in ("causal", "dropout 10 %", "padding 5 %", "dilation 2", "1 key head,", "3 global tokens", "CUDA graph"):
        assert words in caption + ","
    assert plot.window_label(frame) == "window, tokens (before the query)"
    usual = plot.setting(fill(tmp_path / "usual", cells("ours-torch")))
    assert usual == "batch 1, 12 heads, head_dim 64, float32, no global token; a processor, 2 threads, torch 2.0"


def test_two_machines_in_a_folder_are_both_named(tmp_path):
    fill(tmp_path, [case for case in cells("ours-torch") if case.seq_len < 256])
    other = {**ORIGIN, "device": "another", "threads": "1", "torch": "2.1"}
    frame = fill(tmp_path, [case for case in cells("ours-torch") if case.seq_len >= 256], other)
    assert plot.setting(frame).endswith("; a processor, 2 threads, torch 2.0 and another, 1 thread, torch 2.1")
    (warning,) = Record(tmp_path).others(other)
    assert "holds cells of a processor, 2 threads, torch 2.0, which" in warning
    assert len(Record(tmp_path).others({**ORIGIN, "device": "a third"})) == 2


def test_levels_of_full_attention_have_colours_of_their_own(tmp_path):
    frame = fill(tmp_path, cells("ours-torch", "sdpa", "sdpa-math"))
    (axes, _) = plot.draw_windows(frame).axes
    levels = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len({line.get_color() for line in levels}) == len(levels) == 2


def test_cells_are_told_apart_by_every_axis():
    """A picture that knows nothing of an axis would join its values in one line."""
    drawn = {"provider", "direction", "seq_len", "window"}
    assert {field.name for field in dataclasses.fields(Case)} == drawn | set(plot._USUAL)
    assert Case("sdpa", FORWARD, 1, None).key_heads is plot._USUAL["key_heads"]
