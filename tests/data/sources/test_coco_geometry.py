"""Polygons and RLEs of COCO annotations that do not fit their image."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as drawing

from hf_vit_seg.data.checks.check import check_datasets
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.sources.coco_geometry import MAX_OUTLINE_LENGTH, decompress, encode_shape, run_lengths
from hf_vit_seg.data.sources.source import SourceError
from hf_vit_seg.data.sources.source_registry import open_source
from hf_vit_seg.training.recipe_loading import load_recipe

HEIGHT, WIDTH = 12, 10
TRIANGLE = [1, 1, 9, 1, 1, 9]
SQUARE = [2, 2, 6, 2, 6, 6, 2, 6]


def decode(shape) -> np.ndarray:
    return drawing.decode(encode_shape(shape, HEIGHT, WIDTH))


@pytest.mark.parametrize("number", [None, math.nan, math.inf, -math.inf, 2e8, -2e8, 10**400, "3", True])
@pytest.mark.parametrize("place", [0, 1, 5])
def test_polygon_with_a_strange_number_raises(number, place):
    points = list(TRIANGLE)
    points[place] = number
    with pytest.raises(SourceError):
        encode_shape([SQUARE, points], HEIGHT, WIDTH)


@pytest.mark.parametrize("count", [5, 7, 9])
def test_odd_number_of_coordinates_raises(count):
    with pytest.raises(SourceError, match=str(count)):
        encode_shape([[*SQUARE, 3][:count]], HEIGHT, WIDTH)


@pytest.mark.parametrize("part", [[], [1, 1], [1, 1, 8, 8]])
def test_polygons_of_less_than_three_points_enclose_no_area(part):
    """pycocotools takes four numbers for a box."""
    assert encode_shape([part], HEIGHT, WIDTH) is None
    assert np.array_equal(decode([part, SQUARE]), decode([SQUARE]))
    assert decode([SQUARE]).sum() == 16


def test_polygon_may_reach_beyond_the_image():
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[4:, :5] = 1
    assert np.array_equal(decode([[-30, 4, 5, 4, 5, 50, -30, 50]]), expected)


def test_outline_of_too_many_pixels_raises():
    zigzag = [0, 0, 90, 0] * (MAX_OUTLINE_LENGTH // 180 + 1)
    with pytest.raises(SourceError, match="length"):
        encode_shape([zigzag], HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "counts",
    [
        [0, HEIGHT * WIDTH + 1],
        [HEIGHT * WIDTH - 1],
        [-1, HEIGHT * WIDTH + 1],
        [None, 3],
        [2.0, 118.0],
        [2**32, 0],
        [],
        None,
        "",
        "\x00",
        "o" * 100,
        "1",
        "é",
    ],
)
def test_run_lengths_that_do_not_cover_the_image_raise(counts):
    with pytest.raises(SourceError):
        encode_shape({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)


@pytest.mark.parametrize("shape", [{}, {"size": None, "counts": []}, {"size": [WIDTH, HEIGHT], "counts": [120]}, 5])
def test_shapes_of_another_kind_raise(shape):
    with pytest.raises(SourceError):
        encode_shape(shape, HEIGHT, WIDTH)


@pytest.mark.parametrize("seed", range(5))
def test_compressed_counts_are_decoded_as_by_pycocotools(seed):
    height, width = 90, 130
    mask = np.random.default_rng(seed).random((height, width)) < (0.001 if seed else 0.5)
    text = drawing.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    counts = run_lengths({"size": [height, width], "counts": text}, height, width)
    assert counts == decompress(text)
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    assert np.array_equal(values.reshape(width, height).T, mask)


def open_masks(folder, segmentations, **settings):
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "segmentation": shape}
            for i, shape in enumerate(segmentations, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    places = {"annotations": str(folder / "a.json"), "images": str(folder)}
    return open_source({"kind": "coco_masks", **places, **settings}, "segmentation")


def test_fault_names_annotation_and_image(tmp_path):
    source = open_masks(tmp_path, [[SQUARE], [[1, 1, None, 2, 3, 4]]])
    with pytest.raises(SourceError, match=r"annotation 2 \(a\.png\).*None"):
        source.read(0)


def test_coordinates_as_shares_of_the_sides_raise(tmp_path):
    shares = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]
    with pytest.raises(SourceError, match=r"in 0 \.\. 1"):
        open_masks(tmp_path, [shares, shares])
    assert open_masks(tmp_path, [shares, [SQUARE]]).read(0).target.sum() == 16


def test_map_coordinates_raise(tmp_path):
    source = open_masks(tmp_path, [[[500000, 4649776, 500010, 4649776, 500010, 4649786]]])
    with pytest.raises(SourceError, match="500000"):
        source.read(0)


def test_keypoints_as_shares_or_far_away_raise(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")

    def open_people(x: float, **fields):
        person = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "keypoints": [x, 0.5, 2]}
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
            "annotations": [{**person, **fields}],
            "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        places = {"annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
        return open_source({"kind": "coco_keypoints", **places}, "pose")

    assert len(open_people(3)) == 1
    for number in (0.5, 2e8):
        with pytest.raises(SourceError):
            open_people(number)
    for area in (-1, 1e9):
        with pytest.raises(SourceError, match="area"):
            open_people(3, area=area)
    with pytest.raises(SourceError, match="visibility 7"):
        open_people(3, keypoints=[3, 0.5, 7])
    with pytest.raises(SourceError, match="200000000"):
        open_people(3, bbox=[0, 0, 2e8, 5])
    for bbox in ([4, 0, -2, 5], [0, 4, 5, -2]):
        with pytest.raises(SourceError, match="bbox"):
            open_people(3, bbox=bbox)
    with pytest.raises(SourceError, match=str(2**63)):
        open_people(3, id=2**63)
    assert open_people(3, id=2**63 - 1).person(0).annotation_id == 2**63 - 1


def test_unlabeled_keypoint_coordinates_are_not_checked(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "keypoints": [1e39, -1e39, 0, 3, 4, 2]}
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose", "tail"]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = {"kind": "coco_keypoints", "annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    target = open_source(source, "pose").read(0).target
    assert target.keypoints.tolist() == [[0, 0, 0], [3, 4, 2]]  # infinite in float32 otherwise


def test_check_warns_of_annotations_without_pixels(tmp_path):
    away = [[20, 1, 30, 1, 30, 9]]
    recipe = load_recipe("nuclei")
    for shapes, expected in (([[SQUARE]], 0), ([[SQUARE], away], 1), ([[SQUARE], [[1, 1, 2, 2]]], 1)):
        source = open_masks(tmp_path, shapes)
        table = ClassTable(("background", "cat"), ((0, 0), (1, 1)))
        report = check_datasets(recipe, {"train": RawDataset(source, table)})
        assert report.problems == []
        assert sum("cover no pixel" in warning for warning in report.warnings) == expected
