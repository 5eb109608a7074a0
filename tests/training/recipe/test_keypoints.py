"""Sigmas and flip pairs of keypoints that are not COCO's."""

import json

import pytest
from tiny_people import COCO_NAMES, pose_recipe, write_people
from tiny_runs import run, write_recipe
from transformers import AutoModelForPoseEstimation

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.metrics.keypoint_similarity import COCO_SIGMAS
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.model.building import build_model
from hf_vit_seg.training.recipe.keypoints import describe_sigmas, flip_pairs, oks_sigmas
from hf_vit_seg.training.recipe.schema import Recipe

FISH = ("snout", "L_fin", "R_fin", "tail")
POINTS = tuple(f"point {number}" for number in range(17))


def recipe(folder, fields=None, **data) -> Recipe:
    content = pose_recipe(folder)
    content["data"] |= data
    content["model"]["fields"] = fields or {}
    return read_record(Recipe, content)


def test_coco_sigmas_require_coco_names(tmp_path):
    assert oks_sigmas(recipe(tmp_path), COCO_NAMES) == COCO_SIGMAS
    assert oks_sigmas(recipe(tmp_path), POINTS) == (0.05,) * 17
    assert "COCO's" in describe_sigmas(recipe(tmp_path), COCO_NAMES)
    assert "default" in describe_sigmas(recipe(tmp_path), POINTS)


@pytest.mark.parametrize("given", [[0.1, 0.2, 0.2, 0.3], {"tail": 0.3, "L_fin": 0.2, "R_fin": 0.2, "snout": 0.1}])
def test_sigmas_are_in_the_order_of_the_keypoints(given, tmp_path):
    assert oks_sigmas(recipe(tmp_path, oks_sigmas=given), FISH) == (0.1, 0.2, 0.2, 0.3)
    assert "0.1, 0.2, 0.2, 0.3" in describe_sigmas(recipe(tmp_path, oks_sigmas=given), FISH)
    assert oks_sigmas(recipe(tmp_path, oks_sigmas=0.2), FISH) == (0.2,) * 4


@pytest.mark.parametrize("given", [[0.1], {"snout": 0.1}, {"fin": 0.1}])
def test_sigmas_that_do_not_fit_raise(given, tmp_path):
    with pytest.raises(RecordError, match=r"data\.oks_sigmas"):
        oks_sigmas(recipe(tmp_path, oks_sigmas=given), FISH)


@pytest.mark.parametrize("given", [0, [-0.1], [float("nan")], {"snout": "wide"}])
def test_sigmas_are_positive(given, tmp_path):
    with pytest.raises(RecordError, match="oks_sigmas"):
        recipe(tmp_path, oks_sigmas=given)


def test_pairs_are_given_or_found(tmp_path):
    assert flip_pairs(recipe(tmp_path), FISH) == ((1, 2),)
    assert flip_pairs(recipe(tmp_path), POINTS) is None
    assert flip_pairs(recipe(tmp_path, flip_pairs=[]), FISH) == ()
    assert flip_pairs(recipe(tmp_path, flip_pairs=[["snout", "tail"], [1, 2]]), FISH) == ((0, 3), (1, 2))


@pytest.mark.parametrize("given", [[["snout", "fin"]], [[0, 4]], [[1, 2], ["L_fin", "tail"]], [[1, 1]]])
def test_pairs_that_do_not_fit_raise(given, tmp_path):
    with pytest.raises(RecordError, match=r"data\.flip_pairs"):
        flip_pairs(recipe(tmp_path, flip_pairs=given), FISH)


def pairs_of(made: Recipe, names) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, build_model(made, names).model.config.pose_flip_pairs))


def test_models_get_the_pairs_of_their_keypoints(tmp_path):
    assert pairs_of(recipe(tmp_path), FISH) == ((1, 2),)
    assert pairs_of(recipe(tmp_path), POINTS) == ()
    assert pairs_of(recipe(tmp_path, flip_pairs=[[3, 4]]), POINTS) == ((3, 4),)
    own = {"pose_flip_pairs": [[0, 3]]}
    assert pairs_of(recipe(tmp_path, own), FISH) == ((0, 3),)
    assert pairs_of(recipe(tmp_path, own, flip_pairs=[["tail", "snout"]]), FISH) == ((0, 3),)
    with pytest.raises(RecordError, match=r"data\.flip_pairs"):
        build_model(recipe(tmp_path, own, flip_pairs=[[1, 2]]), FISH)
    with pytest.raises(RecordError, match="pose_flip_test"):
        build_model(recipe(tmp_path, {"pose_flip_test": True}), POINTS)


def test_stored_pairs_are_preserved_for_the_same_keypoints(tmp_path):
    build_model(recipe(tmp_path, flip_pairs=[[3, 4]]), POINTS).model.save_pretrained(tmp_path / "model")
    build_model(recipe(tmp_path), POINTS).processor.save_pretrained(tmp_path / "model")
    again = recipe(tmp_path)
    again = again.model_copy(
        update={
            "model": again.model.model_copy(
                update={"architecture": None, "variant": None} | {"from_pretrained": str(tmp_path / "model")}
            )
        }
    )
    assert pairs_of(again, POINTS) == ((3, 4),)
    assert pairs_of(again, POINTS[:4]) == ()
    assert pairs_of(again, FISH) == ((1, 2),)


def test_training_uses_and_reports_sigmas_and_pairs(tmp_path):
    write_people(tmp_path, 3, FISH, skeleton=[[1, 2], [1, 3], [1, 4], [9, 9]])
    content = pose_recipe(tmp_path)
    content["data"]["oks_sigmas"] = {"snout": 0.5, "L_fin": 0.5, "R_fin": 0.5, "tail": 1.5}
    run(write_recipe(tmp_path, content), tmp_path / "run")
    best = tmp_path / "run" / "best"
    assert AutoModelForPoseEstimation.from_pretrained(best).config.pose_flip_pairs == [[1, 2]]
    report = json.loads((best / "metrics.json").read_text())
    assert "0.5, 0.5, 0.5, 1.5" in report["protocol"]
    content["data"]["oks_sigmas"] = 1e-4
    run(write_recipe(tmp_path, content), tmp_path / "strict")
    strict = json.loads((tmp_path / "strict" / "best" / "metrics.json").read_text())
    assert strict["scores"]["oks_ap"] < report["scores"]["oks_ap"]


def test_flips_need_known_pairs(tmp_path):
    write_people(tmp_path, 2, POINTS)
    content = pose_recipe(tmp_path)
    with pytest.raises(HfVitSegError, match=r"data\.flip_pairs"):
        run(write_recipe(tmp_path, content), tmp_path / "run")
    content["data"]["flip_pairs"] = []
    run(write_recipe(tmp_path, content), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert "default OKS sigma 0.05" in report["protocol"]
