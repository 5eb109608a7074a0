"""Steps that are not finite: they are skipped, leave no trace in the model, and are counted and named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_people import pose_recipe, write_people
from tiny_runs import finish, log, run, settings, start, weights, write_data, write_recipe

from hf_vit_seg.training.checkpoints.state import checkpoints, read_manifest
from hf_vit_seg.training.loop import optimizer_step
from hf_vit_seg.training.loop.trainer import RunStatus

# One process of several gets pixels that overflow in the first forward pass of a step.
CORRUPTED = """
import sys
from pathlib import Path
from hf_vit_seg.training.train_commands import train_command
from hf_vit_seg.training.loop import optimizer_step
recipe, out, *settings = sys.argv[1:]
accumulate, calls = optimizer_step.accumulate, []
def corrupted(accelerator, model, objective, window):
    calls.append(1)
    if len(calls) == 2 and accelerator.process_index == 1:
        window[0]["pixel_values"][0] = float("inf")
    return accumulate(accelerator, model, objective, window)
optimizer_step.accumulate = corrupted
sys.exit(train_command(recipe, settings, Path(out), False, False))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def segmentation(data: Path, folder: Path) -> dict[str, Any]:
    recipe = settings(data)
    return recipe | {"model": recipe["model"] | {"norm": "batch"}, "loop": recipe["loop"] | {"steps": 3}}


def classification(data: Path, folder: Path) -> dict[str, Any]:
    digits = {"kind": "sklearn_digits"}
    return {
        "task": "classification",
        "model": {"architecture": "cvt", "variant": "tiny"},
        "processor": {"size": {"height": 8, "width": 8}},
        "data": {"train": digits | {"split": "test"}, "validation": None, "workers": 0},
        "loop": {"steps": 3, "batch_size": 4, "log_every": 1},
    }


def pose(data: Path, folder: Path) -> dict[str, Any]:
    write_people(folder, images=4)
    recipe = pose_recipe(folder)
    return recipe | {"loop": recipe["loop"] | {"steps": 3}}


TASKS = {"segmentation": segmentation, "classification": classification, "pose": pose}


def spoil_step(monkeypatch, step: int, value: float) -> None:
    """Set a pixel of a step to a value."""
    accumulate, calls = optimizer_step.accumulate, []

    def corrupted(accelerator, model, objective, window):
        calls.append(1)
        if len(calls) == step:
            window[0]["pixel_values"][0] = value
        return accumulate(accelerator, model, objective, window)

    monkeypatch.setattr(optimizer_step, "accumulate", corrupted)


@pytest.mark.parametrize("value", [math.inf, 3e38])
@pytest.mark.parametrize("task", TASKS)
def test_skipped_step_leaves_buffers_and_average_finite(task, value, data, tmp_path, monkeypatch, capsys):
    recipe = TASKS[task](data, tmp_path)
    recipe["loop"] |= {"ema": {"decay": 0.9}, "checkpoint_every": 1, "keep_checkpoints": 9}
    spoil_step(monkeypatch, 2, value)
    assert run(write_recipe(tmp_path, recipe), tmp_path / "run") is RunStatus.finished
    assert any("running_mean" in name for name in weights(tmp_path / "run" / "last"))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "last").values())
    first, second, third = checkpoints(tmp_path / "run" / "checkpoints")
    before, after = weights(first), weights(second)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [read_manifest(path).skipped_steps for path in (first, second, third)] == [0, 1, 1]
    assert [step for step, count in log(tmp_path / "run", "skipped_steps") if count] == [2]
    assert "step 2 was skipped" in capsys.readouterr().err


def test_skipped_steps_are_counted_in_the_report(data, tmp_path, monkeypatch):
    spoil_step(monkeypatch, 2, math.nan)
    run(write_recipe(tmp_path, segmentation(data, tmp_path)), tmp_path / "run", "loop.evaluate_every=3")
    report = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert report["skipped_steps"] == 1 and report["loss_scale_overflows"] == 0


def test_step_with_non_finite_gradient_is_skipped_without_clipping(data, tmp_path, monkeypatch):
    accumulate, calls = optimizer_step.accumulate, []

    def corrupted(accelerator, model, objective, window):
        part = accumulate(accelerator, model, objective, window)
        calls.append(1)
        if len(calls) == 2:
            next(model.parameters()).grad.fill_(math.inf)
        return part

    monkeypatch.setattr(optimizer_step, "accumulate", corrupted)
    run(write_recipe(tmp_path, segmentation(data, tmp_path)), tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "last").values())
    assert [step for step, _ in log(tmp_path / "run", "skipped_steps")] == [2]


def test_skipped_step_on_several_processes(data, tmp_path):
    recipe = segmentation(data, tmp_path)
    recipe["loop"] |= {"checkpoint_every": 1, "keep_checkpoints": 9}
    (tmp_path / "corrupted.py").write_text(CORRUPTED)
    out = tmp_path / "run"
    output = finish(start([str(write_recipe(tmp_path, recipe)), str(out)], 2, str(tmp_path / "corrupted.py")))
    assert output.count("step 2 was skipped") == 1
    first, second, third = checkpoints(out / "checkpoints")
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())
    assert all(tensor.isfinite().all() for tensor in weights(third).values())
