"""Two folders side by side: verdicts, their symmetry, what only one measured, and machines that differ."""

import dataclasses
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from longformer_triton.bench.cases import FORWARD, Case
from longformer_triton.bench.compare import FASTER, NO_DIFFERENCE, SLOWER, Comparison, Pair, Spread, as_table, compare
from longformer_triton.bench.measure import Measurement
from longformer_triton.bench.record import OK, Record

ORIGIN = {"device": "a processor", "threads": "2", "torch": "2.0", "date": "2026-01-01"}
OPPOSITE = {FASTER: SLOWER, SLOWER: FASTER, NO_DIFFERENCE: NO_DIFFERENCE}


def fill(folder, times, origin=ORIGIN, memory=8.0):
    """A folder with a cell for each (length, median); p20 and p80 are 10 % away."""
    record = Record(folder)
    for length, time in times.items():
        measured = Measurement(0.9 * time, time, 1.1 * time, 5, time, memory, 0.1, 1e-7)
        record.append(Case("ours-torch", FORWARD, length, 8), OK, origin, measured)
    return folder


spreads = st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=3).map(sorted).map(lambda cuts: Spread(*cuts))


@given(spreads, spreads)
def test_swapping_inverts_the_ratio_and_turns_the_verdict_round(first, second):
    pair, swapped = Pair({}, first, second), Pair({}, second, first)
    assert swapped.ratio == pytest.approx(1 / pair.ratio)
    assert swapped.verdict == OPPOSITE[pair.verdict]
    assert swapped.interval == pytest.approx((1 / pair.interval[1], 1 / pair.interval[0]))


@given(spreads, spreads)
def test_the_interval_holds_the_ratio_and_a_claim_keeps_clear_of_one(first, second):
    pair = Pair({}, first, second)
    low, high = pair.interval
    assert low <= pair.ratio * (1 + 1e-12)
    assert pair.ratio <= high * (1 + 1e-12)
    assert {FASTER: high <= 1, SLOWER: low >= 1, NO_DIFFERENCE: low <= 1 <= high}[pair.verdict]


@given(st.lists(st.tuples(spreads, spreads), min_size=1, max_size=6))
def test_swapping_inverts_the_geometric_mean(times):
    def comparison(pairs):
        return Comparison((), tuple(Pair({}, *pair) for pair in pairs), (), (), (), ())

    there, back = comparison(times), comparison([(second, first) for first, second in times])
    assert (there.count(FASTER), there.count(SLOWER)) == (back.count(SLOWER), back.count(FASTER))
    if there.geometric_mean is None:
        assert back.geometric_mean is None
    else:
        assert back.geometric_mean == pytest.approx(1 / there.geometric_mean)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((1, 2, 3), (3, 4, 5), NO_DIFFERENCE),
        ((1, 2, 3), (3.01, 4, 5), SLOWER),
        ((3.01, 4, 5), (1, 2, 3), FASTER),
        ((1, 5, 9), (4, 5, 6), NO_DIFFERENCE),
    ],
    ids=["touching", "above", "below", "inside"],
)
def test_verdicts(first, second, verdict):
    assert Pair({}, Spread(*first), Spread(*second)).verdict == verdict


def test_the_summary_counts_and_means_over_claims_alone(tmp_path):
    first = fill(tmp_path / "a", {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0})
    second = fill(tmp_path / "b", {1: 2.0, 2: 8.0, 3: 1.05, 4: 0.5})
    found = compare(first, second)
    assert (
        found.summary
        == "4 cells, second against first: 1 faster, 2 slower, 1 no difference; geometric mean of the 3 ratios 2.000"
    )
    assert not list(found.caveats)


def test_memory_is_compared_too(tmp_path):
    pairs = compare(fill(tmp_path / "a", {1: 1.0}), fill(tmp_path / "b", {1: 1.0}, memory=4.0)).pairs
    assert [pair.memory for pair in pairs] == [0.5]


def test_cells_of_one_folder_alone_are_listed(tmp_path):
    found = compare(fill(tmp_path / "a", {1: 1.0, 2: 1.0}), fill(tmp_path / "b", {2: 1.0, 3: 1.0}))
    assert [cell["seq_len"] for cell in found.only_first] == ["1"]
    assert [cell["seq_len"] for cell in found.only_second] == ["3"]
    assert [caveat.split(":")[0] for caveat in found.caveats] == [
        "measured in the first folder only", "measured in the second folder only",
    ]  # fmt: skip


def test_many_cells_of_one_folder_alone_are_told_by_their_values(tmp_path):
    """A sweep of another window lists no hundred cells: what varies in neither folder is left out too."""
    lengths = dict.fromkeys(range(2, 9), 1.0)
    found = compare(fill(tmp_path / "a", {1: 1.0, **lengths}), fill(tmp_path / "b", {1: 1.0}))
    assert list(found.caveats) == ["measured in the first folder only: 7 cells (seq_len 2, 3, 4, 5, 6, 7, 8)"]


def test_other_machines_and_other_software_are_called_out(tmp_path):
    first = fill(tmp_path / "a", {1: 1.0})
    second = fill(tmp_path / "b", {1: 1.0}, {**ORIGIN, "threads": "4", "torch": "2.1"})
    found = compare(first, second)
    assert found.other_machine == ("threads: 2 against 4",)
    assert found.other_software == ("torch: 2.0 against 2.1",)
    assert next(found.caveats).startswith("different machines")


def test_other_variables_are_called_out(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    first = fill(tmp_path / "a", {1: 1.0})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS=3" in compare(first, fill(tmp_path / "b", {1: 1.0})).other_software[0]


def test_an_older_file_without_an_axis_is_at_its_default(tmp_path):
    first, second = fill(tmp_path / "a", {1: 1.0}), fill(tmp_path / "b", {1: 2.0})
    lines = [line.split(",") for line in (first / "results.csv").read_text().splitlines()]
    gone = lines[0].index("num_globals")
    (first / "results.csv").write_text("".join(",".join(line[:gone] + line[gone + 1 :]) + "\n" for line in lines))
    (pair,) = compare(first, second).pairs
    assert pair.cell["num_globals"] == "0"
    assert pair.ratio == pytest.approx(2.0)


@dataclasses.dataclass(frozen=True)
class OtherCase:
    provider: str
    colour: str


def test_results_of_another_kind_are_refused(tmp_path):
    record = Record(tmp_path / "b", OtherCase)
    record.append(OtherCase("ours", "red"), OK, ORIGIN, Measurement(1, 1, 1, 3, 1, 1, 1, 0))
    with pytest.raises(ValueError, match="same kind"):
        compare(fill(tmp_path / "a", {1: 1.0}), tmp_path / "b")


def test_folders_that_share_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share no measured cell"):
        compare(fill(tmp_path / "a", {1: 1.0}), fill(tmp_path / "b", {2: 1.0}))


def test_the_table_shows_hostile_names_as_they_are(tmp_path):
    pair = Pair({"provider": "[red]evil"}, Spread(1, 1, 1), Spread(2, 2, 2))
    other = Pair({"provider": "[/]"}, Spread(1, 1, 1), Spread(2, 2, 2))
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table(Comparison(("provider",), (pair, other), (), (), (), ())))
    assert "[red]evil" in console.file.getvalue()
    assert "2.000 (2.000 to 2.000)" in console.file.getvalue()
