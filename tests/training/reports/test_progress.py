import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hf_vit_seg.training.reports.progress import MovingAverage, Progress


def console(terminal=False, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def plain_output(where):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", where.file.getvalue())


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(math.nan), min_size=1))
def test_smoothed_value_is_within_the_input_range(values):
    average = MovingAverage()
    last = [average.update(value) for value in values][-1]
    finite = [value for value in values if not math.isnan(value)]
    if not finite:
        assert math.isnan(last)
    else:
        slack = 1e-9 * max(map(abs, finite))
        assert min(finite) - slack <= last <= max(finite) + slack


def test_first_value_is_not_smoothed():
    assert MovingAverage().update(0.7) == pytest.approx(0.7)


def test_plain_lines_are_printed_at_the_start_at_intervals_and_at_the_end():
    where = console()
    with Progress(25, console=where, log_every=10) as progress:
        for step in range(1, 26):
            progress.update(step, epoch=step / 10, loss=0.5, learning_rate=1e-4, images_per_second=20.0)
    lines = plain_output(where).splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 1/25", "step 10/25", "step 20/25", "step 25/25"]
    assert lines[1].startswith("step 10/25 · epoch 1.00 · loss 0.5000 · lr 1.00e-04 · 20.0 images/s")
    assert lines[0].endswith("left") and not lines[-1].endswith("left")


def test_plain_lines_are_not_wrapped():
    where = console(width=20)
    with Progress(10, console=where) as progress:
        progress.update(10, epoch=1.0, loss=0.5, learning_rate=1e-4, images_per_second=20.0)
    assert len(plain_output(where).splitlines()) == 1


def test_missing_values_keep_the_last_one():
    where = console()
    with Progress(4, console=where, log_every=2) as progress:
        progress.update(1, loss=0.25, epoch=0.5)
        progress.update(2, loss=None)
        progress.show_score("mean_iou", 0.5, best=True)
        progress.update(4)
    assert plain_output(where).splitlines()[2] == "step 2/4 · mean_iou 0.5000 (best)"
    assert plain_output(where).splitlines()[3] == "step 4/4 · epoch 0.50 · loss 0.2500 · mean_iou 0.5000 (best)"


def test_terminal_shows_bars_for_training_and_evaluation():
    where = console(terminal=True, width=80)
    with Progress(100, 40, console=where) as progress:
        progress.update(50, loss=0.5, epoch=1.5)
        with progress.evaluation_progress(20) as advance:
            advance(5)
            progress.bar.refresh()
            text = plain_output(where)
        progress.log("[brackets] are no markup")
    assert "50/100" in text and "epoch 1.50 · loss 0.5000" in text
    assert "evaluating" in text and "5/20" in text
    assert "[brackets] are no markup" in plain_output(where)


def test_other_processes_print_nothing():
    where = console(terminal=True)
    with Progress(4, console=where, enabled=False) as progress:
        progress.update(4, loss=1.0)
        progress.show_score("mean_iou", 0.5)
        with progress.evaluation_progress(3) as advance:
            advance(3)
        progress.log("nothing")
    assert plain_output(where) == ""


def test_bar_is_closed_when_a_run_fails():
    where = console(terminal=True)
    progress = Progress(4, console=where)
    with pytest.raises(RuntimeError), progress:
        raise RuntimeError
    assert progress.bar is None
    assert where.file.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in where.file.getvalue()  # cursor is visible
