"""Objects as crops: instance maps, tables, polygons and run lengths."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from object_models import NAMES, draw_spots, spot_segmenter
from PIL import Image, ImageDraw

from hf_vit_seg.drawing.object_overlays import draw_numbers, object_colors
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.found_segments import FoundObject, FoundSegments

PALETTE = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)


def random_segments(seed: int, size=(23, 31)) -> FoundSegments:
    random = np.random.default_rng(seed)
    numbers = random.integers(0, 6, size) * (random.random(size) < 0.7)
    return FoundSegments.from_map(
        numbers, random.integers(0, 2, 5).tolist(), random.random(5).tolist(), names=NAMES, palette=PALETTE
    )


@given(seed=st.integers(0, 10_000))
def test_instance_maps_and_areas(seed):
    found = random_segments(seed)
    numbers = found.instance_map()
    assert numbers.dtype == np.uint16 and numbers.shape == found.size
    for number, each in enumerate(found.objects, 1):
        own = numbers == number
        rows, columns = np.nonzero(own)
        assert each.area == own.sum() > 0
        assert each.centroid == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))
        assert each.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert np.array_equal(numbers[each.slices] == number, each.mask)
    assert np.array_equal(found.instance_map(slice(5, 9)), numbers[5:9])
    labels = found.label_map(9)
    assert np.array_equal(labels == 9, numbers == 0)


@given(seed=st.integers(0, 10_000))
def test_run_lengths_equal_pycocotools(seed):
    mask = pytest.importorskip("pycocotools.mask")
    found = random_segments(seed)
    numbers = found.instance_map()
    rows = found.coco("a.png")["annotations"]
    for number, row in enumerate(rows, 1):
        expected = mask.encode(np.asfortranarray((numbers == number).astype(np.uint8)))
        assert row["segmentation"]["counts"] == expected["counts"].decode()
        assert row["area"] == mask.area(expected)
        assert row["bbox"] == mask.toBbox(expected).tolist()
        assert row["category_id"] == found.objects[number - 1].label


@given(seed=st.integers(0, 1000))
def test_one_feature_per_object(seed):
    """The polygons of an object, drawn again, are its pixels."""
    found = random_segments(seed, (12, 14))
    numbers = found.instance_map()
    features = found.geojson()["features"]
    assert len(features) == len(found.objects)
    for number, feature in enumerate(features, 1):
        geometry = feature["geometry"]
        polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        assert (geometry["type"] == "MultiPolygon") == (len(polygons) > 1)
        drawn = np.zeros(found.size, bool)
        for outer, *holes in polygons:
            drawn |= fill(outer, found.size)
            for hole in holes:
                drawn &= ~fill(hole, found.size)
        assert np.array_equal(drawn, numbers == number)
        assert feature["properties"]["id"] == number and feature["properties"]["pixels"] == drawn.sum()


def fill(ring: list, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers are inside of a ring, at 8 times the size."""
    image = Image.new("L", (8 * size[1], 8 * size[0]))
    ImageDraw.Draw(image).polygon([(8 * x - 0.5, 8 * y - 0.5) for x, y in ring], fill=1)
    return np.asarray(image)[4::8, 4::8] > 0


def test_table_and_counts():
    numbers = np.zeros((10, 10), np.int64)
    numbers[1:3, 2:6], numbers[5:9, 5:6], numbers[0, 9] = 1, 2, 3
    found = FoundSegments.from_map(numbers, [1, 0, 1], [0.25, 1.0, 0.5], names=NAMES, palette=PALETTE)
    assert found.counts() == {"bright": 2, "dark": 1}
    assert found.table()[0] == {
        "id": 1, "class": 1, "name": "bright", "score": 0.25, "area": 8, "centroid_x": 4.0, "centroid_y": 2.0,
        "left": 2, "top": 1, "width": 4, "height": 2,
    }  # fmt: skip
    image = found.instance_image()
    assert np.array_equal(np.asarray(image), numbers)


def test_no_objects():
    found = FoundSegments.from_map(np.zeros((4, 5), np.int64), [], [], names=NAMES, palette=PALETTE)
    assert found.objects == [] and not found.instance_map().any() and found.counts() == {} and found.table() == []
    assert found.geojson() == {"type": "FeatureCollection", "features": []}
    assert found.coco()["annotations"] == []
    with pytest.raises(HfVitSegError):
        FoundObject.from_mask(0, 1.0, 0, 0, np.zeros((2, 2), bool))


def test_many_objects_need_more_than_16_bits():
    pixel = FoundObject.from_mask(0, 1.0, 1, 2, np.ones((1, 1), bool))
    found = FoundSegments((2, 3), [pixel] * 65536, NAMES, PALETTE)
    assert found.instance_map().dtype == np.uint32 and found.instance_map()[1, 2] == 65536
    with pytest.raises(HfVitSegError):
        found.instance_image()


def test_segmenter_finds_objects():
    image = draw_spots(50, 60, 30, 12)
    found = spot_segmenter()(image)
    assert np.array_equal(found.instance_map() > 0, image > 0)
    assert all(0.5 <= each.score <= 1 and each.label == (each.score > 0.7) for each in found.objects)
    assert json.loads(json.dumps(found.geojson())) == found.geojson()
    assert set(found.timings) == {"prepare", "model", "segments"}
    batch = spot_segmenter()([image, image[:20]])
    assert batch[0].counts() == found.counts() and batch[1].size == (20, 60)


def test_overlay_keeps_the_background():
    image = Image.new("RGB", (30, 20), (10, 20, 30))
    numbers = np.zeros((20, 30), np.int64)
    numbers[5:15, 5:15], numbers[0, 0] = 1, -1
    drawn = np.asarray(draw_numbers(image, numbers, object_colors(1), opacity=0.5))
    assert tuple(drawn[18, 28]) == (10, 20, 30)
    assert tuple(drawn[10, 10]) != (10, 20, 30) and len(np.unique(drawn[7:13, 7:13].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(object_colors(50), axis=0)) == 50


def test_scores_decide_overlaps_of_queries():
    """Of two queries with the same mask, the one with the higher score has the pixels, in any order."""
    from types import SimpleNamespace

    masks = torch.full((1, 2, 8, 8), -9.0)
    masks[0, :, 2:6, 2:6] = 9
    masks[0, 1, 2:6, 6] = 9
    for order in ([0, 1], [1, 0]):
        kinds = torch.tensor([[[9.0, 0, 0], [2.0, 0, 0]]])
        outputs = SimpleNamespace(class_queries_logits=kinds[:, order], masks_queries_logits=masks[:, order])
        numbers, classes, scores = spot_segmenter().segments(outputs, 0, (8, 8))
        best = 1 + int(np.argmax(scores))
        assert (numbers == best).sum() == 16 and (numbers == 3 - best).sum() == 4 and classes == [0, 0]
