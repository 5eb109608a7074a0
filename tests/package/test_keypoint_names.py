"""Sides and COCO's keypoints, by their names."""

import json
from importlib.resources import files

import pytest

from hf_vit_seg.keypoint_names import COCO_KEYPOINTS, are_coco_keypoints, find_flip_pairs
from hf_vit_seg.models.configuration_vit import COCO_FLIP_PAIRS


def test_names_and_pairs_match_the_label_set_and_the_config():
    content = json.loads((files("hf_vit_seg.configs") / "labels" / "coco-keypoints.json").read_text())
    assert tuple(content["names"]) == COCO_KEYPOINTS
    assert find_flip_pairs(COCO_KEYPOINTS) == COCO_FLIP_PAIRS


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"),
        ("Eye Left", "Eye Right"),
        ("L_Eye", "R_Eye"),
        ("eye.l", "eye.r"),
        ("leftEye", "rightEye"),
        ("LEye", "REye"),
        ("lefteye", "righteye"),
        ("eyeL", "eyeR"),
        ("front-left-paw", "front-right-paw"),
    ],
)
def test_pairs_are_found_by_names_that_differ_by_side(left, right):
    assert find_flip_pairs([right, "nose", left]) == ((2, 0),)


def test_other_names_have_no_pairs():
    assert find_flip_pairs(["nose", "left_eye", "right_ear", "tail", "l1", "bright", "bleft2"]) == ()
    assert find_flip_pairs(["left_eye", "right_eye", "L_Eye"]) == ()  # two left eyes
    assert find_flip_pairs([f"point {number}" for number in range(17)]) == ()


def test_spellings_of_coco_keypoints():
    hub = [name.replace("left_", "L_").replace("right_", "R_").title() for name in COCO_KEYPOINTS]
    assert hub[:3] == ["Nose", "L_Eye", "R_Eye"]
    assert are_coco_keypoints(COCO_KEYPOINTS) and are_coco_keypoints(hub)
    assert not are_coco_keypoints(COCO_KEYPOINTS[::-1])
    assert not are_coco_keypoints(COCO_KEYPOINTS[:-1])
    assert not are_coco_keypoints([f"point {number}" for number in range(17)])
