"""Georeferenced results of `predict`, whole and in tiles: TIFFs, and polygons in WGS 84 or the image's CRS."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_segmenters import save_segmenter
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.data.images.georeference import file_georeference
from hf_vit_seg.drawing.outlines import extract_regions
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.files.antimeridian import contains, signed_area
from hf_vit_seg.inference.files.map_coordinates import PolygonCoordinates, add_corners, map_coordinates

warp = pytest.importorskip("rasterio.warp")
features = pytest.importorskip("rasterio.features")
rasterio = pytest.importorskip("rasterio")

SIZE = (150, 210)
MODES = {"whole": (), "window": ("--window", 64), "tiles": ("--tile", 64), "other tiles": ("--tile", 100)}
SHORT, DOUBLE = 3, 12
MODEL_TYPE, RASTER_TYPE, GEOGRAPHIC, PROJECTED, GEOGRAPHIC_CODE, PROJECTED_CODE = 1024, 1025, 2, 1, 2048, 3072
CODES = dict.fromkeys((32633, 32601, 3031, 3995, 3857, 3832, 4087), PROJECTED) | {4326: GEOGRAPHIC, 4267: GEOGRAPHIC}


def keys(code: int) -> tuple:
    kind = CODES[code]
    place = PROJECTED_CODE if kind == PROJECTED else GEOGRAPHIC_CODE
    values = (1, 1, 0, 3, MODEL_TYPE, 0, 1, kind, RASTER_TYPE, 0, 1, 1, place, 0, 1, code)
    return (34735, SHORT, len(values), values, True)


def scale(x: float, y: float, step: float) -> list[tuple]:
    return [
        (33550, DOUBLE, 3, (step, step, 0.0), True),
        (33922, DOUBLE, 6, (0.0, 0.0, 0.0, float(x), float(y), 0.0), True),
    ]


def matrix(*rows: float) -> list[tuple]:
    a, b, c, d, e, f = map(float, rows)
    return [(34264, DOUBLE, 16, (a, b, 0.0, c, d, e, 0.0, f, *[0.0] * 7, 1.0), True)]


def tie_points() -> list[tuple]:
    height, width = SIZE
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    values = [v for x, y in corners for v in (x, y, 0.0, 500000 + 10 * x + y, 5400000 - 10 * y + x, 0.0)]
    return [(33922, DOUBLE, len(values), tuple(map(float, values)), True)]


PLACES = {
    "scale": [*scale(500000, 5400000, 10), keys(32633)],
    "matrix": [*matrix(8, 3, 500000, 3, -8, 5400000), keys(32633)],
    "mirrored": [*matrix(8, 0, 500000, 0, 8, 5400000), keys(32633)],
    "degrees": [*scale(11.5, 48.25, 0.001), keys(4326)],
    "tie points": [*tie_points(), keys(32633)],
}


def image(path: Path, tags: list[tuple], **options: object) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (15, 21, 3))
    array = np.kron(coarse, np.ones((10, 10, 1))).astype(np.uint8)
    tifffile.imwrite(path, array, photometric="rgb", tile=(64, 64), metadata=None, extratags=tags, **options)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("model"))


def predict(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return found.exit_code, " ".join(found.output.split())


def features_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["features"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PLACES)
def test_polygons_in_the_crs_rasterize_to_the_labels(model, tmp_path, name, mode):
    path, out = image(tmp_path / "scene.tif", PLACES[name]), tmp_path / "out"
    extra = (*MODES[mode], "--polygons", "geojson", "--coordinates", "image", "--scores", "--entropy")
    assert predict(model, path, "--out", out, *extra)[0] == 0
    labels = np.asarray(Image.open(out / "scene.png"))
    assert len(np.unique(labels)) > 1
    with rasterio.open(path) as scene:
        wanted, points = (scene.crs, scene.transform), scene.gcps
    for kind in ("labels", "scores", "entropy"):
        with rasterio.open(out / f"scene.{kind}.tif") as found:
            assert (found.crs, found.transform) == wanted
            assert [vars(p) | {"id": 0} for p in found.gcps[0]] == [vars(p) | {"id": 0} for p in points[0]]
            expected = labels if kind == "labels" else np.asarray(Image.open(out / f"scene.{kind}.png"))
            np.testing.assert_array_equal(found.read(1), expected)
    content = json.loads((out / "scene.geojson").read_text())
    code = 4326 if name == "degrees" else 32633
    assert content["crs"]["properties"]["name"] == f"urn:ogc:def:crs:EPSG::{code}"
    transform = rasterio.transform.from_gcps(points[0]) if points[0] else wanted[1]
    shapes = [(feature["geometry"], feature["properties"]["class"]) for feature in content["features"]]
    np.testing.assert_array_equal(features.rasterize(shapes, SIZE, fill=99, transform=transform), labels)
    assert sum(feature["properties"]["pixels"] for feature in content["features"]) == labels.size
    assert json.loads((out / "scene.json").read_text())["polygon_coordinates"] == "image"


@pytest.mark.parametrize("name", PLACES)
def test_polygons_are_in_wgs84_by_default(model, tmp_path, name):
    path = image(tmp_path / "scene.tif", PLACES[name])
    for kind in ("wgs84", "image"):
        coordinates = () if kind == "wgs84" else ("--coordinates", kind)
        assert predict(model, path, "--out", tmp_path / kind, "--polygons", "geojson", *coordinates)[0] == 0
    content = json.loads((tmp_path / "wgs84" / "scene.geojson").read_text())
    assert "crs" not in content  # RFC 7946, section 4
    code = 4326 if name == "degrees" else 32633
    others = features_of(tmp_path / "image" / "scene.geojson")
    for feature, other in zip(content["features"], others, strict=True):
        assert feature["properties"] == other["properties"]
        rings = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        # RFC 7946, section 3.1.6: closed, the outer ring counterclockwise, holes clockwise
        assert all((ring[0] == ring[-1]).all() for ring in rings)
        assert [signed_area(ring[:-1]) > 0 for ring in rings] == [True] + [False] * (len(rings) - 1)
        for ring, planar in zip(rings, other["geometry"]["coordinates"], strict=True):
            expected = np.stack(warp.transform(f"EPSG:{code}", "EPSG:4326", *np.array(planar).T), axis=1)
            assert np.abs(expected[:, None] - ring[None]).max(-1).min(1).max() < 1e-9


def test_polygons_do_not_depend_on_the_tiles(model, tmp_path):
    path = image(tmp_path / "scene.tif", PLACES["scale"])
    texts = []
    for side in (64, 77, 150, 1000):
        extra = ("--polygons", "geojson", "--polygons", "coco", "--scores", "--top-k", 2, "--window", 64)
        out = tmp_path / str(side)
        assert predict(model, path, "--out", out, "--tile", side, *extra)[0] == 0
        texts.append([(out / f"scene{kind}").read_text() for kind in (".geojson", ".coco.json")])
        with np.load(out / "scene.top.npz", allow_pickle=False) as top:
            np.testing.assert_array_equal(top["classes"][0], np.asarray(Image.open(out / "scene.png")))
            assert top["scores"].shape == (2, *SIZE) and top["scores"].dtype == np.float16
            assert (np.diff(top["scores"].astype(float), axis=0) <= 0).all()
    assert all(text == texts[0] for text in texts)
    # The same protocol on the whole image: scores differ only by the rounding of the maps on disk to 8 bits.
    assert predict(model, path, "--out", tmp_path / "whole", *extra)[0] == 0
    for kind, rows, text in zip((".geojson", ".coco.json"), ("features", "annotations"), texts[0], strict=True):
        whole, tiled = json.loads((tmp_path / "whole" / f"scene{kind}").read_text())[rows], json.loads(text)[rows]
        assert len(whole) == len(tiled) > 1
        for one, other in zip(whole, tiled, strict=True):
            scores = [row.get("properties", row).pop("score") for row in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=0.003)
            assert one == other


@pytest.mark.parametrize("mode", MODES)
def test_polygons_without_crs_are_in_pixels_with_one_note(model, tmp_path, mode):
    for name, tags in (("plain", []), ("scaled", scale(500000, 5400000, 10))):
        image(tmp_path / f"{name}.tif", tags)
    out, call = tmp_path / "out", ("--polygons", "geojson", *MODES[mode])
    code, text = predict(model, tmp_path / "plain.tif", tmp_path / "scaled.tif", "--out", out, *call)
    assert code == 0 and text.count("2 of 2 images have no known coordinate reference system") == 1
    for name in ("plain", "scaled"):
        labels = np.asarray(Image.open(out / f"{name}.png"))
        shapes = [(f["geometry"], f["properties"]["class"]) for f in features_of(out / f"{name}.geojson")]
        np.testing.assert_array_equal(features.rasterize(shapes, SIZE, fill=99), labels)
        assert json.loads((out / f"{name}.json").read_text())["polygon_coordinates"] == "pixels"
    assert tifffile.TiffFile(out / "scaled.labels.tif").pages.first.tags[33550].value == (10.0, 10.0, 0.0)
    code, text = predict(model, tmp_path / "plain.tif", "--out", out, *call, "--coordinates", "pixels", "--overwrite")
    assert code == 0 and "coordinate reference system" not in text


@pytest.mark.parametrize("mode", ["window", "tiles"])
def test_nodata_has_no_polygons(model, tmp_path, mode):
    path = image(tmp_path / "scene.tif", [*PLACES["scale"], (42113, 2, 2, "7", True)])
    array = tifffile.imread(path)
    array[20:90, 30:150] = 7
    tags = [*PLACES["scale"], (42113, 2, 2, "7", True)]
    tifffile.imwrite(path, array, photometric="rgb", tile=(64, 64), metadata=None, extratags=tags)
    out, call = tmp_path / "out", ("--polygons", "geojson", "--polygons", "coco", "--scores", "--top-k", 2)
    assert predict(model, path, "--out", out, *MODES[mode], *call)[0] == 0
    missing = (array == 7).all(-1)
    with rasterio.open(out / "scene.labels.tif") as found:
        np.testing.assert_array_equal(found.read(1) == 255, missing)
        assert found.nodata == 255
    np.testing.assert_array_equal(np.asarray(Image.open(out / "scene.png")) == 255, missing)
    report = json.loads((out / "scene.json").read_text())
    assert report["ignored_pixels"] == missing.sum()
    valid = missing.size - missing.sum()
    assert sum(row["pixels"] for row in report["classes"]) == valid
    assert sum(feature["properties"]["pixels"] for feature in features_of(out / "scene.geojson")) == valid
    assert sum(row["area"] for row in json.loads((out / "scene.coco.json").read_text())["annotations"]) == valid
    with np.load(out / "scene.top.npz", allow_pickle=False) as top:
        assert (top["classes"][:, missing] == 255).all() and (top["scores"][:, missing] == 0).all()


@pytest.mark.parametrize("mode", ["window", "tiles"])
def test_missing_rasterio_is_named_before_the_image_is_segmented(model, tmp_path, mode, monkeypatch):
    path, out = image(tmp_path / "scene.tif", PLACES["scale"]), tmp_path / "out"
    found = builtins.__import__

    def without_rasterio(name, *arguments, **settings):
        if name.partition(".")[0] == "rasterio":
            raise ImportError(name)
        return found(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without_rasterio)
    call = (model, path, "--out", out, "--polygons", "geojson", *MODES[mode])
    code, text = predict(*call)
    assert code == 1 and "pip install rasterio" in text and "--coordinates pixels" in text
    assert not out.exists() or not list(out.iterdir())
    assert predict(*call, "--coordinates", "pixels")[0] == 0
    assert file_georeference(out / "scene.labels.tif") == file_georeference(path)


@pytest.mark.parametrize("mode", ["whole", "tiles"])
def test_orientation_contradicts_a_georeference(model, tmp_path, mode):
    path = image(tmp_path / "scene.tif", [*PLACES["scale"], (274, SHORT, 1, 3, True)])
    code, text = predict(model, path, "--out", tmp_path / "out", *MODES[mode])
    assert code == 1 and "orientation" in text and "Traceback" not in text


WORLD = "8\n3\n3\n-8\n500005.5\n5399997.5\n"  # the matrix of PLACES, with coordinates of pixel centers


@pytest.mark.parametrize("name", ["scene.jpg", "scene.png", "scene.tif", "crs.tif", "points.tif"])
@pytest.mark.parametrize("suffix", ["gw", "wld", "GW"])
def test_world_files_georeference_images(model, tmp_path, name, suffix):
    path, out = tmp_path / name, tmp_path / "out"
    tags = [keys(32633)] if name != "scene.tif" else []
    if name == "points.tif":
        values = list(tags[0][3])
        values[values.index(1025) + 3] = 2
        tags = [(*tags[0][:3], tuple(values), True)]
    if name.endswith("tif"):
        image(path, tags)
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    first = path.suffix[1]
    world = {"gw": f".{first}{path.suffix[-1]}w", "wld": ".wld", "GW": f".{first}{path.suffix[-1]}w".upper()}[suffix]
    path.with_suffix(world).write_text(WORLD)
    with rasterio.open(path) as scene:
        wanted, crs = scene.transform, scene.crs  # GDAL reads world files too, if their names are in lower case
    assert suffix == "GW" or wanted == rasterio.Affine(8, 3, 500000, 3, -8, 5400000)
    for mode in ("window", *(["tiles"] if path.suffix == ".tif" else [])):
        assert predict(model, path, "--out", out / mode, *MODES[mode], "--polygons", "geojson")[0] == 0
        with rasterio.open(out / mode / f"{path.stem}.labels.tif") as found:
            assert found.transform == rasterio.Affine(8, 3, 500000, 3, -8, 5400000)
            assert found.crs == crs
        kind = "pixels" if crs is None else "wgs84"
        assert json.loads((out / mode / f"{path.stem}.json").read_text())["polygon_coordinates"] == kind


INVALID_WORLD = ["", "1 2 3", "a b c d e f", "1 1 1 1 0 0", "nan 0 0 1 0 0", "1e999 0 0 1 0 0", "9" * 20_000]


@pytest.mark.parametrize("text", INVALID_WORLD)
def test_invalid_world_files_are_rejected(model, tmp_path, text):
    path = image(tmp_path / "scene.tif", [])
    (tmp_path / "scene.tfw").write_text(text)
    for mode in ("window", "tiles"):
        code, output = predict(model, path, "--out", tmp_path / "out", *MODES[mode])
        assert code == 1 and "scene.tfw" in output.replace(" ", "") and "Traceback" not in output
    tags = PLACES["scale"]
    assert predict(model, image(path, tags), "--out", tmp_path / "out")[0] == 0  # tags precede world files


def test_points_outside_of_a_projection_are_rejected(tmp_path):
    tags = (*scale(1e12, 0, 1e9), keys(32633))
    with pytest.raises(HfVitSegError, match="--coordinates image"):
        map_coordinates(tmp_path / "a.tif", tags, SIZE, PolygonCoordinates.wgs84)


def degrees(tags: list[tuple], rings: list[list]) -> dict:
    place = map_coordinates(Path("a.tif"), tuple(tags), (100, 100), PolygonCoordinates.wgs84)
    assert place is not None
    return json.loads("".join(place.geometry_text([np.array(ring) for ring in rings])))


BOX = [[0, 0], [100, 0], [100, 100], [0, 100]]
HOLE = [[10, 10], [10, 20], [20, 20], [20, 10]]


def test_polygons_are_cut_at_the_antimeridian():
    found = degrees([*scale(100000, 300000, 3000), keys(32601)], [BOX, HOLE])
    assert found["type"] == "MultiPolygon"  # RFC 7946, section 3.1.9
    assert len(found["coordinates"]) == 2
    for polygon in found["coordinates"]:
        longitudes = np.array(polygon[0])[:, 0]
        assert np.abs(longitudes).max() <= 180 and np.ptp(longitudes) < 5
        assert signed_area(np.array(polygon[0])[:-1]) > 0


@pytest.mark.parametrize(
    ("west", "code", "wanted"),
    [
        (170, 4326, [(170, 180), (-180, -170)]),
        (175, 4326, [(175, 180), (-180, -165)]),
        (170, 4267, [(170, 180), (-180, -170)]),
        (190, 4326, [(-170, -150)]),
        (-200, 4326, [(160, 180)]),
        (-180, 4326, [(-180, -160)]),
    ],
)
def test_longitudes_beyond_the_antimeridian(west, code, wanted):
    found = degrees([*scale(west, 50, 0.2), keys(code)], [BOX, HOLE])
    polygons = found["coordinates"] if found["type"] == "MultiPolygon" else [found["coordinates"]]
    ranges = [(np.array(polygon[0])[:, 0].min(), np.array(polygon[0])[:, 0].max()) for polygon in polygons]
    assert np.array(ranges) == pytest.approx(np.array(wanted), abs=0.01)
    assert [len(polygon) for polygon in polygons] == [2, 1][: len(wanted)]  # the hole is in the western part
    assert [ring[0] == ring[-1] for polygon in polygons for ring in polygon] == [True] * (len(wanted) + 1)


EARTH = 20037508.342789244  # half the equator, in meters
CROSSING: dict[str, tuple[list[tuple], tuple[int, int]]] = {
    "pole at a corner of pixels": ([*scale(-200000, 200000, 20000), keys(3031)], (20, 20)),
    "pole inside of a pixel": ([*scale(-210000, 210000, 20000), keys(3031)], (21, 21)),
    "pole on a side of a pixel": ([*scale(-210000, 200000, 20000), keys(3031)], (21, 21)),
    "North Pole": ([*scale(-200000, 200000, 20000), keys(3995)], (20, 20)),
    "North Pole, mirrored": ([*matrix(20000, 0, -200000, 0, 20000, -200000), keys(3995)], (20, 20)),
    "North Pole, rotated": ([*matrix(14000, 14000, -200000, 14000, -14000, 10000), keys(3995)], (20, 20)),
    "UTM": ([*scale(100000, 300000, 12000), keys(32601)], (30, 30)),
    "Mercator": ([*scale(EARTH * 0.9, 1000000, 90000), keys(3857)], (30, 30)),
    "Mercator, world": ([*scale(-EARTH, EARTH * 0.8, EARTH / 18), keys(3857)], (28, 36)),
    "Mercator, world around the Pacific": ([*scale(-EARTH, EARTH * 0.8, EARTH / 18), keys(3832)], (28, 36)),
    "degrees, world from 0 to 360": ([*scale(0, 80, 10), keys(4326)], (16, 36)),
    "plate carree, world to the poles": ([*scale(-EARTH, EARTH / 2, EARTH / 18), keys(4087)], (18, 36)),
}


@pytest.mark.parametrize("coarse", [1, 3])
@pytest.mark.parametrize("name", CROSSING)
def test_polygons_across_the_antimeridian_and_poles_contain_the_pixels_of_their_class(name, coarse):
    tags, (height, width) = CROSSING[name]
    labels = np.random.default_rng(0).integers(0, 3, (-(-height // coarse), -(-width // coarse)))
    labels = np.kron(labels, np.ones((coarse, coarse), int))[:height, :width]
    place = map_coordinates(Path("a.tif"), tuple(tags), (height, width), PolygonCoordinates.wgs84)
    assert place is not None
    rows, columns = np.indices((height, width)).reshape(2, -1)
    points = place.to_degrees(place.to_crs(np.stack([columns + 0.37, rows + 0.37], axis=1)))
    points[:, 0] = (points[:, 0] + 180) % 360 - 180
    count = np.zeros((3, height * width), int)
    for region in extract_regions(labels):
        found = json.loads("".join(place.geometry_text(region.rings)))
        for polygon in found["coordinates"] if found["type"] == "MultiPolygon" else [found["coordinates"]]:
            for k, ring in enumerate(np.array(ring) for ring in polygon):
                assert (ring[0] == ring[-1]).all() and (np.abs(ring).max(0) <= (180, 90)).all()
                assert (signed_area(ring[:-1]) > 0) == (k == 0)
                count[region.label] += contains(ring[:-1], points) * (1 if k == 0 else -1)
    np.testing.assert_array_equal(count, labels.reshape(-1) == np.arange(3)[:, None])


def test_mercator_across_the_antimeridian_is_continuous():
    step = 111319.49 * 0.2
    found = degrees([*scale(850 * step, 50 * step, step), keys(3857)], [BOX])
    polygons = found["coordinates"] if found["type"] == "MultiPolygon" else [found["coordinates"]]
    assert sum(np.ptp(np.array(polygon[0])[:, 0]) for polygon in polygons) == pytest.approx(20, abs=1e-3)


def test_long_sides_follow_the_curve():
    """The edge of a scene of 100 km: along it, the polygon is less than a tenth of a pixel from the exact one."""
    tags = [*scale(600000, 7000000, 1000), keys(32633)]
    ring = np.array(degrees(tags, [BOX])["coordinates"][0])
    x = np.linspace(600000, 700000, 1001)
    exact = np.stack(warp.transform("EPSG:32633", "EPSG:4326", x, np.full(1001, 7e6)), axis=1)
    top = ring[np.argsort(ring[:, 0])]
    top = top[top[:, 1] > exact[:, 1].min() - 0.001]
    gap = np.abs(np.interp(exact[:, 0], top[:, 0], top[:, 1]) - exact[:, 1])
    assert gap.max() * 111_000 < 100


@settings(max_examples=100)
@given(st.lists(st.integers(-40, 40), min_size=2, max_size=2, unique=True), st.integers(1, 40), st.integers(1, 9))
def test_added_corners_lie_on_multiples(sides, height, step):
    left, right = sides
    ring = np.array([[left, 0], [right, 0], [right, height], [left, height]])
    found = add_corners(ring, step)
    assert signed_area(found.astype(float)) == signed_area(ring.astype(float))
    steps = np.abs(np.roll(found, -1, axis=0) - found).sum(1)
    assert steps.sum() == 2 * (abs(right - left) + height) and (steps > 0).all() and steps.max() <= step
    kept = {tuple(corner) for corner in ring.tolist()}
    assert kept <= {tuple(corner) for corner in found.tolist()}
    new = [corner for corner in found.tolist() if tuple(corner) not in kept]
    assert all(x % step == 0 if y in (0, height) and x not in (left, right) else y % step == 0 for x, y in new)
