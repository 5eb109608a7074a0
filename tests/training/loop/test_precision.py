"""Precisions that a device does not support, and the loss scaler of fp16."""

import logging
import math
from pathlib import Path

import pytest
import torch
from tiny_runs import forget_accelerate, log, run, settings, weights, write_data, write_recipe

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.state import checkpoints, read_manifest
from hf_vit_seg.training.evaluate_saved import accelerator_for
from hf_vit_seg.training.loop import optimizer_step
from hf_vit_seg.training.loop import setup as preparation
from hf_vit_seg.training.loop import trainer as module
from hf_vit_seg.training.recipe_loading import load_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_half_precision_on_a_cpu_raises(data, tmp_path):
    with pytest.raises(RecordError, match=r"loop\.precision"):
        run(write_recipe(tmp_path, settings(data)), tmp_path / "run", "loop.precision=fp16")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_half_precision_of_the_configuration_on_a_cpu_raises(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(RecordError, match=r"loop\.precision"):
        run(write_recipe(tmp_path, settings(data)), tmp_path / "run")


def test_half_precision_model_is_evaluated_in_float32_on_a_cpu(data, tmp_path, caplog):
    forget_accelerate()
    loaded = load_recipe(write_recipe(tmp_path, settings(data)), ["loop.precision=fp16"])
    with caplog.at_level(logging.WARNING):
        accelerator_for(loaded)
    assert [record.levelname for record in caplog.records if "fp16" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_skipped_step_with_a_loss_scaler(data, tmp_path, monkeypatch, value):
    accumulate, calls = optimizer_step.accumulate, []

    def corrupted(accelerator, model, objective, window):
        calls.append(1)
        part = accumulate(accelerator, model, objective, window)
        if len(calls) == 2:  # as an overflow by the scale: a finite loss with an infinite gradient
            next(model.parameters()).grad.fill_(value)
        return part

    def prepare(recipe, accelerator, facts, start):
        parts = preparation.prepare_training(recipe, accelerator, facts, start)
        accelerator.scaler = parts.optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        parts.optimizer._accelerate_step_called = False
        parts.optimizer._optimizer_original_step_method = parts.optimizer.optimizer.step
        parts.optimizer._optimizer_patched_step_method = note_call(parts.optimizer)
        return parts

    def note_call(optimizer):
        step = optimizer.optimizer.step

        def patched(*arguments, **options):
            optimizer._accelerate_step_called = True
            return step(*arguments, **options)

        return patched

    monkeypatch.setattr(module, "prepare_training", prepare)
    monkeypatch.setattr(optimizer_step, "accumulate", corrupted)
    recipe = settings(data)
    recipe["model"]["norm"] = "batch"
    recipe["loop"] |= {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 9, "ema": {"decay": 0.9}}
    run(write_recipe(tmp_path, recipe), tmp_path / "run")
    first, second, third = checkpoints(tmp_path / "run" / "checkpoints")
    before, after, last = weights(first), weights(second), weights(third)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], last[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in last.values())
    assert [read_manifest(path).loss_scale_overflows for path in (first, second, third)] == [0, 1, 1]
    assert not log(tmp_path / "run", "skipped_steps")
