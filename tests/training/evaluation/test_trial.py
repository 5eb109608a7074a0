"""`train` refuses what its evaluations would fail on, before the first step."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import run, settings, write_data, write_recipe

from hf_vit_seg.data.checks.check import BadDataError
from hf_vit_seg.data.checks.sample_facts import SampleFacts
from hf_vit_seg.errors import OutOfMemory
from hf_vit_seg.training.evaluation import tasks
from hf_vit_seg.training.evaluation.trial import extreme_samples


@pytest.fixture
def data(tmp_path) -> Path:
    return write_data(tmp_path / "data")


def cut(data: Path, split: str, name: str, size: tuple[int, int]) -> Path:
    """Cut an image and its mask to (height, width)."""
    for kind in ("images", "masks"):
        path = data / split / kind / name
        with Image.open(path) as image:
            pixels = np.array(image)[: size[0], : size[1]]
        Image.fromarray(pixels).save(path)
    return data / split / "images" / name


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("size", [(20, 48), (48, 20)])
def test_image_smaller_than_the_model_needs_raises(data, tmp_path, split, size):
    recipe = settings(data)
    if split == "test":
        recipe["data"]["test"] = recipe["data"]["validation"]
        recipe["data"]["validation"], recipe["loop"]["evaluate_every"] = None, None
    small = cut(data, "validation", "01.png", size)
    with pytest.raises(BadDataError) as error:
        run(write_recipe(tmp_path, recipe), tmp_path / "run")
    assert str(small) in str(error.value) and f"data.{split}" in str(error.value)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_image_that_is_too_large_for_the_memory_raises(data, tmp_path, monkeypatch):
    evaluate = tasks.evaluate_segmentation

    def limited(context, dataset):
        if dataset.read(0).image.shape[-1] == 48:
            raise MemoryError
        return evaluate(context, dataset)

    for name in ("00.png", "02.png"):
        cut(data, "validation", name, (40, 40))
    monkeypatch.setitem(tasks.EVALUATIONS, "segmentation", limited)
    with pytest.raises(OutOfMemory, match=r"01\.png"):
        run(write_recipe(tmp_path, settings(data)), tmp_path / "run")


def test_small_images_are_evaluated_if_the_processor_resizes_them(data, tmp_path):
    cut(data, "validation", "01.png", (20, 20))
    recipe = settings(data)
    recipe["processor"] = {"size": {"height": 32, "width": 32}}
    run(write_recipe(tmp_path, recipe), tmp_path / "run", "loop.steps=1")


def test_extreme_samples():
    sizes = [(40, 40), (20, 60), (60, 30), (80, 80), (80, 70)]
    facts = [SampleFacts(str(size), shape=(3, *size)) for size in sizes]
    assert extreme_samples(facts) == [1, 2, 3]
    assert extreme_samples([SampleFacts("broken", fault="cannot be read")]) == []
    assert extreme_samples(facts[:1]) == [0]
