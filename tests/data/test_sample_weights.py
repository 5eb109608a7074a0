"""Weights of training samples: rare class sampling, and weights from a file."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import log, run, settings, weights, write_data, write_recipe

from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.checks.report import Occurrence
from hf_vit_seg.data.sample_weights import rare_class_weights, read_weights
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.state import CheckpointError
from hf_vit_seg.training.recipe.location import RecipeFileError
from hf_vit_seg.training.recipe_loading import load_recipe


def split(*classes: tuple[int, tuple[int, ...]], samples: int):
    """A split whose classes have these counts and samples."""
    return SimpleNamespace(
        split="train", facts=[None] * samples, classes=[Occurrence(count, where) for count, where in classes]
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_rare_class_weights_match_dense_draws(temperature):
    """DAFormer: draw a class with softmax((1 - f) / T), then one of the samples that contain it."""
    part = split((900, (0, 1, 2, 3)), (90, (1, 2)), (10, (3,)), (0, ()), samples=5)
    frequencies = np.array([0.9, 0.09, 0.01])
    probabilities = np.exp((1 - frequencies) / temperature)
    probabilities /= probabilities.sum()
    expected = np.zeros(5)
    for probability, where in zip(probabilities, ([0, 1, 2, 3], [1, 2], [3]), strict=True):
        for sample in where:
            expected[sample] += probability / len(where)
    assert rare_class_weights(part, temperature) == pytest.approx(expected, rel=1e-12)


def test_rare_class_weights_do_not_overflow():
    found = rare_class_weights(split((10**9, (0,)), (1, (1,)), samples=2), 1e-4)
    assert found == pytest.approx([0, 1])


def test_no_labels_raise():
    with pytest.raises(SourceError):
        rare_class_weights(split((0, ()), samples=3), 0.1)


def test_weights_of_a_file_follow_the_order_of_the_samples(tmp_path):
    path = tmp_path / "weights.csv"
    path.write_text("weight, name, source\n2,b.png,x\n0.5,a.png,y\n0,c.png,z\n", encoding="utf-8-sig")
    assert read_weights(path, ["a.png", "b.png", "c.png"]).tolist() == [0.5, 2, 0]


@pytest.mark.parametrize(
    "text",
    [
        "name\na.png\n",
        "name,weight\na.png,1\n",
        "name,weight\na.png,1\nb.png,-1\n",
        "name,weight\na.png,1\nb.png,nan\n",
        "name,weight\na.png,1\nb.png,inf\n",
        "name,weight\na.png,1\nb.png,much\n",
        "name,weight\na.png,1\nb.png\n",
        "name,weight\na.png,1\nb.png,1\na.png,2\n",
        "name,weight\na.png,0\nb.png,0\n",
        "",
    ],
)
def test_invalid_weights_raise(tmp_path, text):
    path = tmp_path / "weights.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"data\.sampling\.file"):
        read_weights(path, ["a.png", "b.png"])


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, settings(write_data(tmp_path / "data")))


SAMPLING = "data.sampling={name: rare_classes, temperature: 0.5}"


def test_resume_of_weighted_sampling_is_bit_identical(recipe, tmp_path):
    few = [SAMPLING, "loop.log_every=1", "loop.checkpoint_every=3", "transforms.0.random_crop.class_probability=0.5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(recipe, whole, *few, "schedule.name=constant", "loop.steps=6")
    run(recipe, parts, *few, "schedule.name=constant", "loop.steps=3")
    run(recipe, parts, *few, "schedule.name=constant", "loop.steps=6", resume=True)
    assert log(whole) == log(parts)
    ours, theirs = weights(whole / "last"), weights(parts / "last")
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_resume_with_other_weights_raises(recipe, tmp_path):
    names = [f"{i:02}.png" for i in range(10)]
    table = tmp_path / "weights.csv"
    table.write_text("name,weight\n" + "".join(f"{name},{i + 1}\n" for i, name in enumerate(names)))
    sampling = f"data.sampling={{name: weights, file: {table}}}"
    run(recipe, tmp_path / "run", sampling, "loop.steps=1")
    table.write_text(table.read_text().replace("00.png,1\n", "00.png,9\n"))
    with pytest.raises(CheckpointError, match="weights"):
        run(recipe, tmp_path / "run", sampling, "loop.steps=2", resume=True)


def test_frequent_samples_match_rare_classes(recipe):
    part = check(load_recipe(recipe), ["train"]).splits["train"]
    rarest = min((found for found in part.classes if found.count), key=lambda found: found.count)
    found = rare_class_weights(part, 0.05)
    assert len(found) == 10 and set(rarest.samples) & set(np.flatnonzero(found == found.max()).tolist())


def test_partial_checks_and_pose_are_rejected(recipe, tmp_path):
    with pytest.raises(RecordError, match=r"data\.check"):
        run(recipe, tmp_path / "run", SAMPLING, "data.check=3")


@pytest.mark.parametrize(
    "sampling", ["{name: weights}", "{name: rare_classes, file: x.csv}", "{name: other}", "{temperature: 0}"]
)
def test_invalid_sampling_raises(recipe, sampling):
    with pytest.raises(RecipeFileError, match=r"data\.sampling"):
        load_recipe(recipe, [f"data.sampling={sampling}"])
