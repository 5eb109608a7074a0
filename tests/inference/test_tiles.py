"""Images read, segmented and written in tiles: equal labels, resumable, and within bounded memory."""

import io
import json
import struct
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from child_process import output_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_segmenters import job, save_segmenter, segmenter
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.inference import Protocol, Segmenter
from hf_vit_seg.inference.files.prediction import PredictOptions
from hf_vit_seg.inference.files.rasters import write_png, write_tiff
from hf_vit_seg.inference.tiles.region_reading import open_regions, region_size
from hf_vit_seg.inference.tiles.stored_regions import StoredSegments
from hf_vit_seg.inference.tiles.tiled_logits import TileGrid, tiling_protocol
from hf_vit_seg.inference.tiles.tiled_prediction import predict_tiled
from hf_vit_seg.inference.tiles.writing import Plane

SIZE = (170, 230)
WINDOWS = Protocol(window=64, stride=48, blend="gaussian")


def pixels(bands: int = 3, size: tuple[int, int] = SIZE, dtype: str = "uint8") -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (-(-size[0] // 10), -(-size[1] // 10), bands))
    return np.kron(coarse, np.ones((10, 10, 1)))[: size[0], : size[1]].astype(dtype)


def tiff(path: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, array, **{"tile": (32, 48), "compression": "zlib", **options})
    return path


def predict_tiled_labels(segmenter: Segmenter, path: Path, out: Path, **predict_options: object) -> np.ndarray:
    out.mkdir(parents=True, exist_ok=True)
    for _ in predict_tiled(segmenter, job(path, out), PredictOptions(**{"overlay": False, **predict_options})):
        pass
    return np.asarray(Image.open(out / f"{path.stem}.png"))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("blend", ["flat", "gaussian"])
def test_tiled_labels_match_the_whole_image(tmp_path, blend, flip):
    protocol = Protocol(window="64x80", stride="40x64", blend=blend, flip=flip)
    array = pixels()
    path = tiff(tmp_path / "image.tif", array, photometric="rgb")
    whole = segmenter(protocol)(Image.fromarray(array)).label_map
    assert len(np.unique(whole)) > 1
    for side in (64, 101, 500):
        found = predict_tiled_labels(segmenter(protocol), path, tmp_path / f"out{side}", tile=side)
        np.testing.assert_array_equal(found, whole)


@settings(max_examples=8)
@given(
    size=st.tuples(st.integers(30, 150), st.integers(30, 150)),
    side=st.integers(20, 160),
    window=st.integers(30, 80),
    step=st.floats(0.4, 1),
)
def test_any_tile_geometry(tmp_path_factory, size, side, window, step):
    folder = tmp_path_factory.mktemp("geometry")
    protocol = Protocol(window=window, stride=max(1, int(window * step)))
    array = pixels(size=size)
    path = tiff(folder / "image.tif", array, tile=(16, 16), photometric="rgb")
    whole = segmenter(protocol)(Image.fromarray(array)).label_map
    found = predict_tiled_labels(segmenter(protocol), path, folder, tile=side)
    # A window that covers the whole image is resized by another exact method (equal except for rounded ties).
    assert (found == whole).mean() > (0.999 if max(size) <= window else 1 - 1e-12)


def test_tiles_are_written_at_their_positions():
    grid = TileGrid((100, 130), 64)
    seen = np.zeros(grid.size, int)
    for i, tile in enumerate(grid):
        assert tile.index == i == grid.index_at(tile.rows.start, tile.columns.stop - 1)
        seen[tile.rows, tile.columns] += 1
    assert len(grid) == 6
    assert (seen == 1).all()


def pages(path: Path, array: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as writer:
        for page in array.transpose(2, 0, 1):
            writer.write(page, photometric="minisblack", contiguous=False)


FORMATS = {
    "8 bit.png": lambda path: Image.fromarray(pixels()).save(path),
    "gray.png": lambda path: Image.fromarray(pixels(bands=1)[..., 0]).save(path),
    "16 bit.tif": lambda path: tiff(path, pixels(dtype="uint16") * 257, photometric="rgb"),
    "float.tif": lambda path: tiff(path, pixels(dtype="float32") / 255, photometric="rgb"),
    "gray float.tif": lambda path: tiff(path, pixels(bands=1, dtype="float32")[..., 0] * 257),
    "pages.tif": lambda path: pages(path, pixels()),
    "planar.tif": lambda path: tiff(path, pixels().transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "8 bit.npy": lambda path: np.save(path, pixels()),
    "float.npy": lambda path: np.save(path, pixels(dtype="float32").transpose(2, 0, 1)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_training_and_prediction_read_the_same_pixels(tmp_path, name):
    FORMATS[name](path := tmp_path / name)
    seg = segmenter(WINDOWS)
    trained_on = read_pixels(path, 3)
    prepared = seg.prepare(path)
    torch.testing.assert_close(prepared.pixel_values, seg.prepare(trained_on).pixel_values, rtol=0, atol=0)
    assert prepared.picture.size == SIZE[::-1]
    whole = seg(path).label_map
    if path.suffix != ".png":
        np.testing.assert_array_equal(predict_tiled_labels(seg, path, tmp_path / "out", tile=101), whole)


KINDS = {
    "tiles": {"photometric": "rgb"},
    "strips": {"photometric": "rgb", "tile": None, "rowsperstrip": 7},
    "planar": {"photometric": "rgb", "planarconfig": "separate"},
    "uncompressed": {"photometric": "rgb", "tile": None, "compression": None, "rowsperstrip": SIZE[0]},
    "predictor": {"photometric": "rgb", "predictor": True, "compression": "lzw"},
    "big": {"photometric": "rgb", "bigtiff": True},
    "other byte order": {"photometric": "rgb", "byteorder": ">"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_region_reads_match_the_whole_file(tmp_path, kind):
    options = dict(KINDS[kind])
    writer = {name: options.pop(name) for name in ("bigtiff", "byteorder") if name in options}
    array = pixels()
    stored = array.transpose(2, 0, 1) if kind == "planar" else array
    path = tiff(tmp_path / "a.tif", stored, **options, **writer)
    check_regions(path, 3)


DEPTHS = {
    "gray": (pixels(1)[..., 0], {"photometric": "minisblack"}),
    "white is zero": (pixels(1)[..., 0], {"photometric": "miniswhite"}),
    "gray and transparency": (pixels(2), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
    "transparency": (pixels(4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "a fourth number": (pixels(4), {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "16 bits gray": (pixels(1, dtype="uint16")[..., 0] * 200, {"photometric": "minisblack"}),
    "16 bits color": (pixels(3, dtype="uint16") * 200, {"photometric": "rgb"}),
    "32 bits float": (pixels(3, dtype="float32"), {"photometric": "rgb"}),
    "bilevel": (pixels(1)[..., 0] > 128, {"photometric": "minisblack"}),
    "cmyk": (pixels(4), {"photometric": "separated"}),
    "palette": (
        pixels(1)[..., 0],
        {"photometric": "palette", "colormap": np.random.default_rng(1).integers(0, 2**16, (3, 256)).astype("uint16")},
    ),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_region_reads_of_every_bit_depth(tmp_path, depth):
    array, options = DEPTHS[depth]
    check_regions(tiff(tmp_path / "a.tif", array, tile=(32, 48), **options), 3)


def test_region_reads_of_five_channels_in_all_layouts(tmp_path):
    array = pixels(5, dtype="uint16")
    check_regions(tiff(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig"), 5)
    planar = np.ascontiguousarray(array.transpose(2, 0, 1))
    check_regions(tiff(tmp_path / "b.tif", planar, photometric="minisblack", planarconfig="separate"), 5)
    check_regions(tiff(tmp_path / "c.tif", planar, photometric="minisblack"), 5)
    np.save(tmp_path / "d.npy", array)
    check_regions(tmp_path / "d.npy", 5)


REGIONS = (
    (slice(0, 1), slice(0, 1)),
    (slice(30, 100), slice(47, 97)),
    (slice(0, SIZE[0]), slice(9, SIZE[1])),
)


def check_regions(path: Path, bands: int) -> None:
    whole = read_pixels(path, bands)
    assert region_size(path) == whole.shape[1:]
    with open_regions(path, bands) as image:
        assert image.size == whole.shape[1:]
        for rows, columns in REGIONS:
            found, missing = image.read(rows, columns)
            assert missing is None
            assert found.dtype == whole.dtype
            torch.testing.assert_close(found, whole[:, rows, columns], rtol=0, atol=0)


def test_region_reads_of_jpeg_tiles(tmp_path):
    """As written by slide scanners. Decoders round colors differently, by a few levels."""
    path = tiff(tmp_path / "a.tif", pixels(), tile=(64, 64), photometric="rgb", compression="jpeg")
    whole = read_pixels(path)
    with open_regions(path) as image:
        found, _ = image.read(slice(50, 170), slice(3, 130))
    assert (found.int() - whole[:, 50:170, 3:130].int()).abs().max() <= 3


def test_cache_respects_its_limit(tmp_path):
    path = tiff(tmp_path / "a.tif", pixels(), photometric="rgb")
    with tifffile.TiffFile(path) as file:
        stored = StoredSegments([file.pages[0]], cache_bytes=3 * 32 * 48 * 3)
        for rows, columns in (*REGIONS, *reversed(REGIONS)):
            np.testing.assert_array_equal(stored.read(rows, columns), pixels().transpose(2, 0, 1)[:, rows, columns])
            assert sum(segment.nbytes for segment in stored.cache.values()) == stored.cached <= stored.cache_bytes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_regions_are_upright(tmp_path, orientation, dtype):
    tag = [(274, 3, 1, orientation, True)]
    path = tiff(tmp_path / "a.tif", pixels().astype(dtype), photometric="rgb", tile=(64, 64), extratags=tag)
    whole = read_pixels(path)
    assert region_size(path) == tuple(whole.shape[1:])
    with open_regions(path) as image:
        assert image.size == tuple(whole.shape[1:])
        for rows, columns in (
            (slice(0, 40), slice(0, 30)),
            (slice(50, 127), slice(3, 130)),
            (slice(9, 10), slice(5, 9)),
        ):
            found, _ = image.read(rows, columns)
            assert torch.equal(found, whole[:, rows, columns])


def test_unsupported_region_reads_raise(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match="tiled TIFF"):
        open_regions(tmp_path / "a.png")
    tags = [(274, 3, 1, 6, True), (33550, 12, 3, (1.0, 1.0, 0.0), True)]
    turned = tiff(tmp_path / "b.tif", pixels(), photometric="rgb", extratags=tags)
    with pytest.raises(ImageFileError, match="save it upright"):
        open_regions(turned)
    data = tiff(tmp_path / "c.tif", pixels(), photometric="rgb").read_bytes()
    (tmp_path / "c.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageFileError, match="cannot be decoded"):  # noqa: SIM117
        with open_regions(tmp_path / "c.tif") as image:
            image.read(slice(0, 170), slice(0, 230))


@pytest.mark.parametrize("settings", [{"scales": (0.5, 1)}, {"divisor": 32}, {"preset": "ade20k"}])
def test_resizing_protocols_raise(settings):
    with pytest.raises(ValueError, match="in windows at their own size"):
        tiling_protocol(Protocol(**settings), segmenter().processor)


def test_default_window_is_the_processor_size():
    protocol = tiling_protocol(Protocol(flip=True), segmenter().processor)
    assert (protocol.window, protocol.stride, protocol.blend, protocol.flip) == ((64, 64), (48, 48), "gaussian", True)
    assert tiling_protocol(WINDOWS, segmenter().processor) == WINDOWS


def test_interrupted_run_resumes(tmp_path):
    path = tiff(tmp_path / "image.tif", pixels(), photometric="rgb")
    whole = predict_tiled_labels(segmenter(WINDOWS), path, tmp_path / "whole", tile=64)
    out = tmp_path / "out"
    predict_options = PredictOptions(overlay=False, tile=64)
    first = predict_tiled(segmenter(WINDOWS), job(path, out), predict_options)
    assert [state.done for state in islice(first, 5)] == [1, 2, 3, 4, 5]
    first.close()
    assert not (out / "image.json").exists()
    kept = out / ".image.tiles"
    (kept / "done.txt").open("a").write("1")  # killed while writing a line
    second = segmenter(WINDOWS)
    seen: list[int] = []
    second.logits = count_inputs(second.logits, seen)
    states = list(predict_tiled(second, job(path, out), predict_options))
    assert (states[0].resumed, states[-1].done) == (5, 12)
    assert 0 < len(seen) < 4 * 5  # of all windows: the remaining ones and those that overlap
    np.testing.assert_array_equal(np.asarray(Image.open(out / "image.png")), whole)
    assert not kept.exists()


def count_inputs(model, seen):
    def logits(pixel_values):
        seen.append(len(pixel_values))
        return model(pixel_values)

    return logits


def test_changed_settings_restart(tmp_path):
    path = tiff(tmp_path / "image.tif", pixels(), photometric="rgb")
    out = tmp_path / "out"
    run = predict_tiled(segmenter(WINDOWS), job(path, out), PredictOptions(overlay=False, tile=64))
    next(run)
    run.close()
    other = WINDOWS.model_copy(update={"blend": "flat"})
    states = list(predict_tiled(segmenter(other), job(path, out), PredictOptions(overlay=False, tile=64)))
    assert states[0].resumed == 0
    expected = segmenter(other)(Image.fromarray(pixels())).label_map
    np.testing.assert_array_equal(np.asarray(Image.open(out / "image.png")), expected)


def test_all_outputs(tmp_path):
    path = tiff(tmp_path / "image.tif", pixels(), photometric="rgb")
    model = segmenter(WINDOWS)
    labels = predict_tiled_labels(model, path, tmp_path, tile=100, overlay=True, scores=True, entropy=True)
    expected = model(Image.fromarray(pixels()), scores=True, entropy=True)
    report = json.loads((tmp_path / "image.json").read_text())
    assert report["tiles"] == {"side": 100, "resumed": 0}
    assert {row["id"]: row["pixels"] for row in report["classes"]} == {
        int(i): int((labels == i).sum()) for i in np.unique(labels)
    }
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "image.labels.tif"), labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.scores.png")), expected.score_image())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.entropy.png")), expected.entropy_image())
    assert Image.open(tmp_path / "image.overlay.png").width >= SIZE[1]
    colors = np.asarray(Image.open(tmp_path / "image.png").convert("RGB"))
    np.testing.assert_array_equal(colors, model.palette[labels])


def test_geotiff_keeps_georeference_and_nodata(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin

    array = pixels(5, dtype="float32")
    array[20:90, 30:150] = -9999
    profile = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 5, "dtype": "float32"}
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5400000, 10, 10), "nodata": -9999}
    with rasterio.open(tmp_path / "a.tif", "w", tiled=True, blockxsize=64, blockysize=64, **profile, **place) as file:
        file.write(array.transpose(2, 0, 1))
    labels = predict_tiled_labels(segmenter(WINDOWS, bands=5), tmp_path / "a.tif", tmp_path, tile=64)
    np.testing.assert_array_equal(labels == 255, (array == -9999).all(-1))
    with rasterio.open(tmp_path / "a.labels.tif") as file:
        assert (file.crs, file.transform, file.nodata) == (rasterio.CRS.from_epsg(32633), place["transform"], 255)
        np.testing.assert_array_equal(file.read(1), labels)
    assert json.loads((tmp_path / "a.json").read_text())["ignored_pixels"] == 70 * 120
    # Missing pixels are replaced by the model's mean: their value does not matter.
    array[array == -9999] = np.nan
    place["nodata"] = float("nan")
    with rasterio.open(tmp_path / "b.tif", "w", tiled=True, blockxsize=64, blockysize=64, **profile, **place) as file:
        file.write(array.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        predict_tiled_labels(segmenter(WINDOWS, bands=5), tmp_path / "b.tif", tmp_path), labels
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_score_maps_as_png_and_tiff(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (700, 1111)).astype(dtype)
    plane = Plane(tmp_path / "a.raw", values.shape, dtype)
    for tile in reversed(list(TileGrid(values.shape, 300))):
        plane.write(tile, values[tile.rows, tile.columns])
    write_png(tmp_path / "a.png", plane)
    write_tiff(tmp_path / "a.tif", plane)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), values)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), values)
    assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].is_tiled
    plane.close()
    again = Plane(tmp_path / "a.raw", values.shape, dtype)
    np.testing.assert_array_equal(again.rows(5, 9), values[5:9])


def test_predict_uses_tiles_above_the_limit(tmp_path):
    model = save_segmenter(tmp_path / "model")
    path = tiff(tmp_path / "large.tif", pixels(), photometric="rgb")
    Image.fromarray(pixels()).save(tmp_path / "large.png")
    call = ["predict", model, path, tmp_path / "large.png", "--out", tmp_path / "out", "--max-pixels", 30000]
    found = CliRunner().invoke(app, [*map(str, call)])
    assert found.exit_code == 1
    assert "save it as a tiled TIFF" in " ".join(found.output.split())
    assert (tmp_path / "out" / "large.labels.tif").exists()
    assert json.loads((tmp_path / "out" / "large.json").read_text())["tiles"]["side"] == 2048


MEMORY = """
import sys
from pathlib import Path
import torch
from hf_vit_seg.inference.tiles import region_reading
from hf_vit_seg.inference import Protocol
from hf_vit_seg.inference.files.prediction import PredictOptions
from hf_vit_seg.inference.tiles.tiled_prediction import predict_tiled
from benchmarks.measuring import peak_rss
from tiny_segmenters import job, segmenter

torch.set_num_threads(1)
region_reading.CACHE_BYTES = 32 * 2**20
run = segmenter(Protocol(window=512, stride=512))
for _ in predict_tiled(run, job(Path(sys.argv[1]), Path(sys.argv[2])), PredictOptions(tile=1024)):
    pass
print(peak_rss())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_image_size(tmp_path):
    """16 times the pixels: 201 MB of pixels and 67 MB of labels, with 100 MiB more memory, 20 of them for the cache."""
    peaks = []
    for side in (2048, 8192):
        path = tmp_path / f"{side}.tif"
        blocks = (np.full((512, 512, 3), i % 251, np.uint8) for i in range((side // 512) ** 2))
        tifffile.imwrite(path, blocks, shape=(side, side, 3), dtype="uint8", tile=(512, 512), compression="zlib")
        peaks.append(int(output_of(MEMORY, path, tmp_path / f"out{side}")) / 2**20)
    assert peaks[1] - peaks[0] < 100, peaks


@pytest.mark.parametrize("side", [2**17, 2**31])
def test_headers_with_too_many_tiles_are_rejected(tmp_path, side):
    """Its windows would take minutes to list."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((64, 64), np.uint8), tile=(16, 16), byteorder="<", metadata=None)
    data = bytearray(buffer.getvalue())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] == 257:  # the height
            struct.pack_into("<HII", data, place + 2, 4, 1, side)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageFileError, match="tiles"):
        open_regions(tmp_path / "a.tif", 1)
