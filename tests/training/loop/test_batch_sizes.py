"""Batches that are too small for BatchNorm."""

from typing import Any

import pytest
from tiny_runs import run, write_recipe

from hf_vit_seg.errors import OutOfMemory
from hf_vit_seg.training.loop.batch_size_search import largest_batch_size
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.model.normalization import BatchNormError
from hf_vit_seg.training.recipe_loading import load_recipe


def recipe() -> dict[str, Any]:
    """The last stage of this CvT has one pixel."""
    return {
        "task": "classification",
        "model": {"architecture": "cvt", "variant": "tiny", "fields": {"strides": [2, 2, 2]}},
        "processor": {"size": {"height": 8, "width": 8}},
        "data": {"train": {"kind": "sklearn_digits", "split": "test"}, "workers": 0},
        "loop": {"steps": 1, "batch_size": 1},
    }


def test_batch_of_one_image_raises(tmp_path):
    with pytest.raises(BatchNormError, match=r"loop\.batch_size"):
        run(write_recipe(tmp_path, recipe()), tmp_path / "run")


def test_search_starts_at_two_images(tmp_path):
    out = tmp_path / "run"
    assert run(write_recipe(tmp_path, recipe()), out, "loop.batch_size=auto") is RunStatus.finished
    assert load_recipe(out / "recipe.yaml").loop.batch_size == 16


@pytest.mark.parametrize(("limit", "most", "size"), [(5, 100, 4), (2, 100, 2), (100, 3, 2), (100, 8, 8)])
def test_largest_size_without_a_batch_of_one(limit, most, size):
    def fits(tried):
        if tried == 1:
            raise BatchNormError
        return tried <= limit

    assert largest_batch_size(fits, most) == size
    with pytest.raises(OutOfMemory):
        largest_batch_size(lambda tried: fits(tried) and False, most)
    with pytest.raises(BatchNormError):
        largest_batch_size(fits, 1)
