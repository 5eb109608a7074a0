"""Masks in which a class has a value that is ignored."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vit_seg.data.checks.check import BadDataError, check, require_valid_data
from hf_vit_seg.data.checks.report import CheckReport
from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe

SIDE = 10


def open_recipe(folder: Path, value: int, count: int, *overrides: str) -> Recipe:
    """Two samples, each with `count` pixels of a value other than 0."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(2):
        values = np.zeros(SIDE * SIDE, np.uint8)
        values[:count] = value
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(folder / "images" / f"{number}.png")
        Image.fromarray(values.reshape(SIDE, SIDE)).save(folder / "masks" / f"{number}.png")
    source = f"{{kind: folders, images: '{folder}/images', masks: '{folder}/masks'}}"
    none = ["data.validation=null", "data.validation_share=null", "data.test=null"]
    return load_recipe("nuclei", [f"data.train={source}", "data.classes=[back, cell]", *none, *overrides])


def mentions_value(messages: list[str], value: int) -> int:
    return sum(f"values: [{value}]" in message and "cell" in message for message in messages)


def build_report(*arguments) -> CheckReport:
    return check(open_recipe(*arguments))


@pytest.mark.parametrize("count", [1, 30])
def test_black_and_white_masks_of_two_classes_are_rejected(tmp_path, count):
    recipe = open_recipe(tmp_path, 255, count)
    report = check(recipe)
    assert mentions_value(report.problems, 255) == 1 and mentions_value(report.warnings, 255) == 0
    with pytest.raises(BadDataError):
        require_valid_data(recipe, {"train": open_split(recipe, "train")})


def test_advised_classes_are_accepted(tmp_path):
    report = build_report(tmp_path, 255, 30, "data.classes=[back, {name: cell, values: [255]}]")
    assert report.problems == [] and mentions_value(report.warnings, 255) == 0
    assert report.class_counts() == [140, 60]


def test_frequent_ignored_value_with_an_absent_class_warns(tmp_path):
    report = build_report(tmp_path, 7, 30, "data.ignore=[7]")
    assert report.problems == [] and mentions_value(report.warnings, 7) == 1


def test_frequent_ignored_value_with_more_classes_is_a_warning(tmp_path):
    report = build_report(tmp_path, 255, 30, "data.classes=[back, cell, wall]")
    assert report.problems == [] and mentions_value(report.warnings, 255) == 1


def test_rare_ignored_value_does_not_warn(tmp_path):
    report = build_report(tmp_path, 7, 0, "data.ignore=[7]")
    assert mentions_value(report.warnings, 7) == 0


def test_ignored_value_with_all_classes_present_does_not_warn(tmp_path):
    recipe = open_recipe(tmp_path, 255, 30)
    values = np.ones((SIDE, SIDE), np.uint8)
    Image.fromarray(values).save(tmp_path / "masks" / "0.png")
    report = check(recipe)
    assert report.problems == [] and mentions_value(report.warnings, 255) == 0
