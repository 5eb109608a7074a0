"""Polygons, GeoJSON and COCO run lengths, compared with brute force, GDAL and pycocotools."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_vit_seg.drawing.joined_regions import join_regions
from hf_vit_seg.drawing.outlines import Region, extract_regions
from hf_vit_seg.drawing.palettes import generate_palette
from hf_vit_seg.inference.annotations import coco, coco_dataset, geojson

NAMES = ("sky", "road", "car", "tree")
MAPS = st.integers(1, 4).flatmap(
    lambda classes: hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, classes - 1)
    )
)


def rasterize(region: Region, shape: tuple[int, int]) -> np.ndarray:
    """The pixels with an odd number of vertical edges of the region to their left."""
    inside = np.zeros(shape, bool)
    for ring in region.rings:
        for (x, y), (next_x, next_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x == next_x) != (y == next_y)
            inside[min(y, next_y) : max(y, next_y), x:] ^= True
    return inside


def signed_area(ring: np.ndarray) -> float:
    (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
    return float((x * next_y - next_x * y).sum() / 2)


@settings(max_examples=300)
@given(MAPS)
def test_polygons_rasterize_back_to_the_label_map(labels):
    count = np.zeros(labels.shape, int)
    for region in extract_regions(labels):
        inside = rasterize(region, labels.shape)
        assert (labels[inside] == region.label).all()
        assert inside.sum() == region.pixels > 0
        count += inside
        assert signed_area(region.rings[0]) > 0
        assert all(signed_area(hole) < 0 for hole in region.rings[1:])
        for ring in region.rings:  # required for polygons: no ring touches itself
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)
    assert (count == 1).all()


@settings(max_examples=100)
@given(MAPS)
def test_polygons_match_gdal(labels):
    features = pytest.importorskip("rasterio.features")

    def sorted_rings(label, rings):
        return int(label), sorted(sorted({(int(x), int(y)) for x, y in ring}) for ring in rings)

    wanted = [sorted_rings(label, shape["coordinates"]) for shape, label in features.shapes(labels, connectivity=4)]
    assert sorted(sorted_rings(region.label, region.rings) for region in extract_regions(labels)) == sorted(wanted)


def test_region_touching_itself_at_a_corner_has_a_hole():
    labels = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
    ones = [region for region in extract_regions(labels) if region.label == 1]
    assert [(region.pixels, len(region.rings)) for region in ones] == [(12, 2)]
    assert ones[0].rings[1].tolist() in [
        np.roll([[2, 1], [2, 2], [3, 2], [3, 1]], k, axis=0).tolist() for k in range(4)
    ]


def test_nested_holes():
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8], labels[2:7, 2:7], labels[4, 4] = 1, 0, 1
    found = [(region.label, region.pixels, len(region.rings)) for region in extract_regions(labels)]
    assert sorted(found) == [(0, 24, 2), (0, 32, 2), (1, 1, 1), (1, 24, 2)]


def test_empty_map_has_no_regions():
    assert extract_regions(np.zeros((0, 4), np.uint8)) == []


@settings(max_examples=50)
@given(MAPS, st.integers(0, 99))
def test_geojson_lists_every_region(labels, seed):
    scores = np.random.default_rng(seed).random(labels.shape).astype(np.float32)
    content = json.loads(json.dumps(geojson(labels, NAMES, generate_palette(4), scores)))
    assert content["type"] == "FeatureCollection"
    found = list(join_regions([(labels, None)]))
    assert len(content["features"]) == len(found)
    for feature, region in zip(content["features"], found, strict=True):
        assert feature["type"] == "Feature" and feature["geometry"]["type"] == "Polygon"
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] for ring in rings)
        assert [ring[:-1] for ring in rings] == [ring.tolist() for ring in region.rings]
        properties = feature["properties"]
        assert (properties["class"], properties["name"]) == (region.label, NAMES[region.label])
        assert properties["pixels"] == region.pixels
        assert properties["score"] == pytest.approx(scores[rasterize(region, labels.shape)].mean(), abs=1e-5)
    assert "score" not in geojson(labels, NAMES, generate_palette(4))["features"][0]["properties"]


@settings(max_examples=200)
@given(MAPS, st.integers(1, 12))
def test_run_lengths_match_pycocotools(labels, columns):
    mask = pytest.importorskip("pycocotools.mask")
    content = json.loads(json.dumps(coco(labels, NAMES, "a.png")))
    blocks = ((labels[:, first : first + columns], None) for first in range(0, labels.shape[1], columns))
    assert coco_dataset(blocks, labels.shape, NAMES, "a.png") == content
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": labels.shape[0], "width": labels.shape[1]}]
    assert [row["category_id"] for row in content["annotations"]] == np.unique(labels).tolist()
    for row in content["annotations"]:
        wanted = mask.encode(np.asfortranarray(labels == row["category_id"], dtype=np.uint8))
        assert row["segmentation"] == {"size": wanted["size"], "counts": wanted["counts"].decode()}
        assert row["area"] == mask.area(wanted)
        assert row["bbox"] == mask.toBbox(wanted).tolist()


def test_long_runs_are_encoded_as_in_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    labels = np.zeros((3000, 40), np.uint8)
    labels[5:2990, 7:9] = labels[100, 20:] = 1
    for row in coco(labels, NAMES)["annotations"]:
        wanted = mask.encode(np.asfortranarray(labels == row["category_id"], dtype=np.uint8))
        assert row["segmentation"]["counts"] == wanted["counts"].decode()


def test_pycocotools_loads_the_file(tmp_path):
    module = pytest.importorskip("pycocotools.coco")
    labels = np.array([[0, 1, 1], [2, 1, 1]], np.uint8)
    scores = np.array([[0.5, 1, 0.5], [0.25, 0.5, 0.5]], np.float32)
    (tmp_path / "a.coco.json").write_text(json.dumps(coco(labels, NAMES, "a.png", scores)))
    opened = module.COCO(tmp_path / "a.coco.json")
    rows = opened.loadAnns(opened.getAnnIds())
    assert [(opened.loadCats(row["category_id"])[0]["name"], row["score"]) for row in rows] == [
        ("sky", 0.5),
        ("road", 0.625),
        ("car", 0.25),
    ]
    assert all((opened.annToMask(row) == (labels == row["category_id"])).all() for row in rows)
