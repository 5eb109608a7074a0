"""A few of the cases of `python -m tests.reliability`, and that its sandbox notices what must not happen."""

import shutil
import time
from pathlib import Path

import pytest

from hf_vit_seg.errors import HfVitSegError
from tests.reliability import kills, soak
from tests.reliability.checkpoints import Checkpoints
from tests.reliability.checkpoints import left_behind as left_by_conversion
from tests.reliability.images import Images
from tests.reliability.images import left_behind as left_by_prediction
from tests.reliability.record import table_of, write_section
from tests.reliability.sandbox import Case, Outcomes, judge, run_cases
from tests.reliability.soak import LongRun

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def cases(tmp_path) -> Path:
    (tmp_path / "cases").mkdir()
    return tmp_path / "cases"


@pytest.fixture
def patience(monkeypatch):
    """Judge durations by the commands only: a test must not fail on a busy machine."""
    monkeypatch.setattr("tests.reliability.sandbox.SECONDS", 300.0)


@pytest.mark.usefixtures("patience")
def test_hostile_checkpoints(tmp_path, cases):
    made = Checkpoints(tmp_path, seed=1)
    outcomes = run_cases(made, range(150), cases, left_by_conversion(made.marker))
    assert outcomes.failures == [] and outcomes.total == 150
    assert list(cases.iterdir()) == []


@pytest.mark.usefixtures("patience")
def test_hostile_images(cases):
    outcomes = run_cases(Images(seed=1), range(150), cases, left_by_prediction)
    assert outcomes.failures == [] and outcomes.total == 150


def refuse(folder: Path) -> None:
    raise HfVitSegError("a sentence")


def refuse_in_lines(folder: Path) -> None:
    raise HfVitSegError("two\nlines")


def fail(folder: Path) -> None:
    raise KeyError("x")


def take_memory(folder: Path) -> None:
    _ = b"x" * (1500 * 2**20)  # zeros would be pages without memory


BEHAVIORS = {
    "accepted": lambda folder: None,
    "refused": refuse,
    "not one sentence": refuse_in_lines,
    "exception": fail,
    "memory": take_memory,
    "slow": lambda folder: time.sleep(0.2),
}


@pytest.mark.parametrize("outcome", BEHAVIORS)
def test_judge_classifies_each_outcome(tmp_path, monkeypatch, outcome):
    monkeypatch.setattr("tests.reliability.sandbox.SECONDS", 0.1 if outcome == "slow" else 60.0)
    assert judge(Case("kind", 100, BEHAVIORS[outcome]), tmp_path)["outcome"] == outcome


def crash(folder: Path) -> None:
    import os

    os._exit(3)


def hang(folder: Path) -> None:
    time.sleep(600)


def test_crashes_and_hangs_are_failures_and_the_next_case_runs(cases, monkeypatch):
    monkeypatch.setattr("tests.reliability.sandbox.SECONDS", 5.0)
    monkeypatch.setattr("tests.reliability.sandbox.GRACE", 5.0)
    runs = (crash, hang, refuse)
    outcomes = run_cases(lambda number: Case(str(number), 1, runs[number]), range(3), cases, lambda folder: None)
    assert dict(outcomes.counts) == {("0", "crash"): 1, ("1", "slow"): 1, ("2", "refused"): 1}


def test_code_execution_and_partial_output_are_failures(tmp_path):
    marker, folder = tmp_path / "marker", tmp_path / "case"
    check = left_by_conversion(marker)
    folder.mkdir()
    assert check(folder) is None and not folder.exists()
    marker.touch()
    assert check(folder) == "code of the file was run" and not marker.exists()
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "config.json").touch()
    assert check(folder) == "a half-written directory"
    (folder / ".out.partial").mkdir(parents=True)
    assert "temporary" in (check(folder) or "")


def test_attacks_would_run_code(tmp_path):
    """Unpickled by Python, the attack creates the file that must never exist."""
    import pickle

    made = Checkpoints(tmp_path, seed=0)
    file = made.attacks["bare pickle, protocol 2"](tmp_path)
    pickle.loads(file.read_bytes())
    assert made.marker.exists()


def test_sections_of_the_page_are_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    outcomes = Outcomes()
    outcomes.add(0, "PNG", {"outcome": "accepted"})
    outcomes.add(1, "PNG", {"outcome": "crash"})
    assert table_of(outcomes).splitlines()[-1] == "| PNG | 2 | 1 | 0 | 1 |"
    write_section("images", "Images", "first", page)
    write_section("other", "Other", "else", page)
    write_section("images", "Images", r"second \1", page)
    text = page.read_text()
    assert text.startswith("# Page\n") and "first" not in text and r"second \1" in text and "else" in text
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize(("last", "failed"), [(100, False), (104, False), (106, True)])
def test_growth_of_memory(last, failed):
    samples = [40] * 20 + [100] * 60 + [last] * 20  # the start is not compared
    assert LongRun("work", 10, 1.0, tuple(each * 2**20 for each in samples)).failed == failed


@pytest.mark.slow
def test_long_runs(tmp_path):
    runs = soak.run(tmp_path, share=0.02)
    assert [run.count for run in runs] == [40, 10, 4]
    assert all(run.median(0, 1) > 100 for run in runs)


def test_missing_added_and_different_files_are_named():
    found, expected = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "x", "d": "4"}
    assert kills.differing_names(found, expected) == ("b", "c", "d")
