"""Samples for which the outputs of a model are NaN, in the evaluations of a training."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny_runs import run, settings, write_data, write_recipe

from hf_vit_seg.training.evaluation import tasks
from hf_vit_seg.training.train_commands import evaluate_command

EVERY = ["00.tif", "01.tif", "02.tif"]


@pytest.mark.parametrize(
    ("batch_size", "protocol", "expected"),
    [
        (1, {}, ["01.tif"]),
        (3, {}, ["01.tif"]),
        (1, {"window": [32, 32]}, ["01.tif"]),
        (3, {"flip": True}, EVERY),  # rows of a batch are views, not samples
    ],
)
def test_samples_with_nan_outputs_are_named(tmp_path, monkeypatch, batch_size, protocol, expected):
    messages = []
    monkeypatch.setattr(tasks.logger, "warning", lambda text, *values: messages.append(text % values))
    data = write_data(tmp_path / "data")
    for split in ("train", "validation"):
        for file in (data / split / "images").glob("*.png"):
            tifffile.imwrite(file.with_suffix(".tif"), np.asarray(Image.open(file)).astype(np.float32) / 255)
            file.unlink()
    corrupted = data / "validation" / "images" / "01.tif"
    pixels = tifffile.imread(corrupted)
    pixels[:8, :8] = -3.4e38
    tifffile.imwrite(corrupted, pixels)
    recipe = settings(data)
    recipe["processor"] |= {"do_rescale": False}
    recipe["evaluation"] |= {"batch_size": batch_size, "protocol": protocol}
    path = write_recipe(tmp_path, recipe)
    out = tmp_path / "run"
    run(path, out, "loop.steps=2", "loop.evaluate_every=2")
    assert json.loads((out / "best" / "metrics.json").read_text())["nan_samples"] == expected
    assert len(messages) == 1 and expected[-1] in messages[0]
    assert evaluate_command(str(out / "best"), [], None, "validation", tmp_path / "scores") == 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["nan_samples"] == expected
    assert len(messages) == 2 and expected[-1] in messages[1]
    assert torch.is_grad_enabled()
