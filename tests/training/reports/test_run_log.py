import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.reports.json_values import json_line, json_value
from hf_vit_seg.training.reports.run_log import FILE, RunLog, RunLogError, read_run_log
from hf_vit_seg.training.reports.trackers import check_trackers, flatten_settings

OTHER_PROCESS = SimpleNamespace(is_main_process=False)


def test_log_round_trip(tmp_path):
    log = RunLog(tmp_path)
    log.step({"step": 1, "loss": torch.tensor(0.5), "learning_rate": np.float64(6e-5)})
    log.evaluation(1, {"mean_iou": 0.25, "per_category_iou": np.array([0.5, np.nan]), "matrix": np.eye(2)})
    assert read_run_log(tmp_path) == [
        {"step": 1, "loss": 0.5, "learning_rate": 6e-5},
        {"step": 1, "evaluation": {"mean_iou": 0.25, "per_category_iou": [0.5, None]}},
    ]


def test_lines_are_flushed_before_the_call_returns(tmp_path):
    log = RunLog(tmp_path)
    for step in range(3):
        log.step({"step": step})
        assert len((tmp_path / FILE).read_text().splitlines()) == step + 1


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_any_value_is_one_line_of_strict_json(value):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    line = json_line(value)
    assert "\n" not in line
    assert json.loads(line, parse_constant=refuse) == json_value(value)


def test_non_finite_numbers_are_null():
    assert json_value([math.nan, math.inf, torch.tensor(-math.inf), np.float32("nan")]) == [None] * 4
    with pytest.raises(TypeError, match="found object, expected numbers"):
        json_value(object())


@given(
    steps=st.lists(st.integers(0, 30), max_size=12).map(sorted),
    evaluated=st.booleans(),
    where=st.integers(0, 30),
)
def test_truncation_keeps_earlier_lines(tmp_path_factory, steps, evaluated, where):
    folder = tmp_path_factory.mktemp("run")
    log = RunLog(folder)
    for step in steps:
        log.step({"step": step, "loss": step / 7})
        log.evaluation(step, {"mean_iou": 0.5})
    before = read_run_log(folder)
    log.truncate(where, evaluated)
    again = [line for line in before if line["step"] == where and "evaluation" in line and not evaluated]
    assert read_run_log(folder) == [line for line in before if line["step"] <= where and line not in again]
    log.step({"step": where + 1})
    assert read_run_log(folder)[-1] == {"step": where + 1}
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_truncated_last_line_is_dropped(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_run_log(tmp_path) == [{"step": 1}]
    RunLog(tmp_path).step({"step": 2})
    assert read_run_log(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("text", ["no json\n", "[1]\n", '{"loss": 1}\n'])
def test_unknown_file_raises(tmp_path, text):
    (tmp_path / FILE).write_text('{"step": 1}\n' + text)
    with pytest.raises(RunLogError, match="line 2: not a line of a run's log"):
        read_run_log(tmp_path)


def test_missing_log_has_no_lines(tmp_path):
    assert read_run_log(tmp_path) == []


def test_only_the_main_process_writes(tmp_path):
    folder = tmp_path / "run"
    log = RunLog(folder, OTHER_PROCESS)
    log.step({"step": 1})
    log.evaluation(1, {"mean_iou": 1.0})
    log.truncate(0)
    assert not folder.exists()


def test_unknown_tracker_suggests_the_closest_name():
    with pytest.raises(RecordError, match=r"unknown tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        check_trackers(["tensorbord"])


@pytest.mark.parametrize("name", ["trackio", "clearml"])
def test_missing_tracker_names_its_package(monkeypatch, name):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(RecordError, match=f"'{name}' is not installed: pip install {name}"):
        check_trackers([name])


def tensorboard_scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_tensorboard_drops_repeated_steps_after_resume(tmp_path):
    data = {"train": {"images": str(tmp_path / "janedoe77" / "images")}}
    settings = {"seed": 0, "loop": {"steps": 3}, "transforms": ["flip"], "data": data}
    for start in (0, 1):
        accelerator = Accelerator(cpu=True)
        log = RunLog(tmp_path, accelerator, ["tensorboard"], name="nuclei", settings=settings)
        log.truncate(start)
        for step in range(start + 1, 4):
            log.step({"step": step, "loss": step + start / 10, "note": "no number"})
        log.evaluation(3, {"mean_iou": 0.5, "per_category_iou": np.array([0.5, 0.5])})
        accelerator.trackers[0].finish()
    folder = tmp_path / "trackers" / "nuclei"
    assert tensorboard_scalars(folder, "train/loss") == [(1, 1.0), (2, 2.1), (3, 3.1)]
    assert tensorboard_scalars(folder, "evaluation/mean_iou")[-1] == (3, 0.5)
    written = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"./images" in written and b"janedoe77" not in written


def test_failing_tracker_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    accelerator = Accelerator(cpu=True)
    log = RunLog(tmp_path, accelerator, ["tensorboard"])

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(accelerator, "log", fail)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            log.step({"step": step})
    assert [record.getMessage() for record in caplog.records if "no network" in record.getMessage()] == [
        "trackers (tensorboard) failed and are disabled from step 1 on: no network"
    ]
    assert len(read_run_log(tmp_path)) == 2


def test_nested_settings_have_dotted_names():
    nested = {"loop": {"steps": 3, "ema": None}, "model": {}, "seed": 0}
    assert flatten_settings(nested) == {"loop.steps": 3, "loop.ema": "None", "model": "{}", "seed": 0}
