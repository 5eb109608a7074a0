"""Broken and unusual files raise one class of error with their name, and the other files are processed."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import yaml
from bad_files import CONTENTS, IMAGE_CONTENTS, IMAGES, MASKS, PAGES, encode_image, npy, random_image, tiff, write_bad
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_segmenters import save_segmenter, segmenter
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.images.files import ImageBytes, ImageFile, ImageFileError, find_images
from hf_vit_seg.data.images.pixels import array_mask, read_mask, read_pixels
from hf_vit_seg.export.calibration_images import Calibration
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, predict
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.inference.tiles.region_reading import open_regions, region_size
from hf_vit_seg.records import read_record
from hf_vit_seg.training.recipe.schema import Recipe

STEMS = {name: f"{Path(name).stem}_{Path(name).suffix[1:]}" for name in IMAGES}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_segmenter(tmp_path_factory.mktemp("model"))


def failures(output: str) -> list[str]:
    """The files that `predict` reports as failed."""
    return re.findall(r"failed (\S+?): ", " ".join(output.split()))


def read_by_regions(path: Path) -> None:
    with open_regions(path) as image:
        assert region_size(path) == image.size
        image.read(slice(0, image.size[0]), slice(0, image.size[1]))


@pytest.mark.parametrize("name", IMAGES)
def test_bad_images_raise_file_error_with_path(name, tmp_path):
    path = write_bad(tmp_path / name, name)
    with pytest.raises(ImageFileError) as error:
        read_pixels(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", MASKS)
def test_bad_masks_raise_file_error_with_path(name, tmp_path):
    path = write_bad(tmp_path / name, name)
    with pytest.raises(ImageFileError) as error:
        read_mask(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", [name for name in IMAGES if name.endswith((".tif", ".npy"))])
def test_bad_files_raise_in_region_reads(name, tmp_path):
    path = write_bad(tmp_path / name, name)
    with pytest.raises(ImageFileError) as error:
        read_by_regions(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("tile", [(), ("--tile", "64")])
def test_predict_reports_bad_files_and_segments_the_rest(tile, model, tmp_path):
    bad = [write_bad(tmp_path / "images" / f"{STEMS[name]}{Path(name).suffix}", name) for name in IMAGES]
    (tmp_path / "images" / "folder.png").mkdir()
    np.save(tmp_path / "images" / "good.npy", np.asarray(random_image(40)))
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "images"), "--out", str(out), *tile])
    assert result.exit_code == 1, result.output
    assert sorted(failures(result.output)) == sorted(map(str, bad))
    assert [path.name for path in out.glob("*.json")] == ["good.json"]
    assert np.asarray(Image.open(out / "good.png")).shape == (40, 40)


def test_predict_reports_bad_videos_and_continues(model, tmp_path):
    pytest.importorskip("av")
    bad = [tmp_path / name for name in ("empty.mp4", "words.mp4", "pipe.mp4", "dangling.mp4", "frames/cut.png")]
    bad[0].touch()
    bad[1].write_bytes(b"not a video" * 50)
    os.mkfifo(bad[2])
    bad[3].symlink_to(tmp_path / "gone.mp4")
    write_bad(bad[4], "transparency_beyond_palette.png")
    random_image(40).save(tmp_path / "good.png")
    inputs = [*bad[:4], bad[4].parent, tmp_path / "good.png"]
    arguments = ["predict", model, *inputs, "--out", tmp_path / "out", "--frame-rate", "5"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1, result.output
    assert sorted(failures(result.output)) == sorted(map(str, bad))
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["good.json"]


def recipe(folder: Path) -> Recipe:
    data = {
        "train": {"kind": "folders", "images": str(folder / "images"), "masks": str(folder / "masks")},
        "classes": ["sky", "road"],
    }
    model = {"architecture": "segformer", "variant": "nano"}
    return read_record(Recipe, {"task": "segmentation", "model": model, "data": data, "loop": {"steps": 1}})


def write_sample(folder: Path, stem: str, image: str | None = None, mask: str | None = None) -> None:
    """An image of 16x16 pixels and its mask; `image` or `mask` names a bad file to use instead."""
    for part, bad in (("images", image), ("masks", mask)):
        path = folder / part / f"{stem}{Path(bad or '.png').suffix if bad else '.png'}"
        if bad is not None:
            write_bad(path, bad)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(list(stem.encode())).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(values if part == "images" else values[..., 0] % 2).save(path)


@pytest.fixture
def bad_samples(tmp_path) -> list[Path]:
    """Bad images with good masks, bad masks with good images, and one good sample; returns the bad files."""
    write_sample(tmp_path, "good")
    bad = []
    for name in IMAGES:
        write_sample(tmp_path, f"image_{STEMS[name]}", image=name)
        bad.append(tmp_path / "images" / f"image_{STEMS[name]}{Path(name).suffix}")
    for name in MASKS:
        write_sample(tmp_path, f"mask_{STEMS[name]}", mask=name)
        bad.append(tmp_path / "masks" / f"mask_{STEMS[name]}{Path(name).suffix}")
    return bad


def test_check_data_and_train_report_the_bad_file(bad_samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path).model_dump(mode="json", exclude_unset=True)))
    checked = CliRunner().invoke(app, ["check-data", "recipe.yaml", "--out", "checked"])
    assert checked.exit_code == 1, checked.output
    problems = json.loads(Path("checked/report.json").read_text())["problems"]
    assert len(problems) == len(bad_samples)
    for path in bad_samples:
        assert len([text for text in problems if f"{path}: " in text]) == 1, path
    first = min(bad_samples, key=lambda path: path.stem)  # samples are sorted by stem
    trained = CliRunner().invoke(app, ["train", "recipe.yaml", "output=run"])
    assert trained.exit_code == 2
    assert f"{first}: " in " ".join(trained.output.split())


def test_errors_are_not_cached(tmp_path, monkeypatch):
    """Errors can disappear without a change of the file, such as missing permissions."""
    write_sample(tmp_path, "good")
    denied, opened = tmp_path / "images" / "good.png", Path.open

    def deny(path, *arguments, **options):
        if path == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", deny)
        (problem,) = check(recipe(tmp_path), cache=tmp_path / "facts.json").problems
    assert f"{denied}: " in problem
    assert check(recipe(tmp_path), cache=tmp_path / "facts.json").problems == []


def test_calibration_reports_the_bad_file(tmp_path):
    good = tmp_path / "good.png"
    random_image().save(good)
    bad = write_bad(tmp_path / "palette.png", "transparency_beyond_palette.png")
    with pytest.raises(ImageFileError, match=re.escape(str(bad))):
        Calibration.from_files([good, bad], segmenter(), 2)


def test_model_errors_are_not_reported_as_bad_images(tmp_path, monkeypatch):
    random_image().save(tmp_path / "a.png")
    jobs = [Job(ImageFile(tmp_path / "a.png", Path("a.png")), tmp_path / "out" / str(i)) for i in range(2)]
    segment, calls = Segmenter.segment, []

    def fail_once(own, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise ValueError("shapes do not match")
        return segment(own, *arguments, **options)

    monkeypatch.setattr(Segmenter, "segment", fail_once)
    failed, done = predict(segmenter(), jobs, PredictOptions())
    assert failed.error == f"{tmp_path / 'a.png'}: prediction failed with ValueError: shapes do not match"
    assert done.error is None and (tmp_path / "out" / "1.json").exists()
    assert type(failed.bug) is ValueError and failed.bug.__traceback__ is not None


def test_internal_errors_are_not_reported_as_bad_files(tmp_path, monkeypatch):
    def broken(*_):
        raise IndexError("our own mistake")

    monkeypatch.setattr("hf_vit_seg.data.images.pixels.as_channels", broken)
    monkeypatch.setattr("hf_vit_seg.data.images.pixels.array_mask", broken)
    for name, data in {"a.png": encode_image("PNG"), "a.tif": PAGES, "a.npy": npy(np.zeros((4, 4), np.uint8))}.items():
        for read in (read_pixels, read_mask):
            with pytest.raises(IndexError):
                read(ImageBytes(name, data))


def test_unreadable_folders_raise(tmp_path, model, monkeypatch):
    for place in ("open/a.png", "closed/b.png"):
        (tmp_path / "images" / place).parent.mkdir(parents=True)
        random_image().save(tmp_path / "images" / place)
    scandir = os.scandir

    def deny(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(ImageFileError, match=r"closed: "):
        find_images([str(tmp_path / "images")])
    result = CliRunner().invoke(app, ["predict", str(model), str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<i4", ">f4", "f8", "?"])
def test_arrays_of_any_memory_order_are_read(order, kind, tmp_path):
    array = np.array(np.arange(60).reshape(3, 4, 5) % 2, kind, order=order)
    np.save(tmp_path / "a.npy", array)
    white = 255 if kind == "?" else 1  # booleans are black and white
    assert np.array_equal(read_pixels(tmp_path / "a.npy").numpy(), array * white)
    np.save(tmp_path / "mask.npy", array[0])
    assert np.array_equal(read_mask(tmp_path / "mask.npy").numpy(), array[0])


def test_mask_values_beyond_64_bits_raise():
    values = np.array([[[1, 2**63]]], np.uint64)
    with pytest.raises(ImageFileError, match=str(2**63)):
        array_mask(values, "mask")
    assert array_mask(values[..., :1], "mask").tolist() == [[1]]


VALID = {
    "16-bit PNG": imagecodecs.png_encode(np.zeros((9, 8, 4), np.uint16)),
    "PNG": encode_image("PNG"),
    "palette PNG": encode_image("PNG", bits=8),
    "TIFF": tiff(),
    "tiled TIFF": tiff(np.zeros((32, 32), np.uint16), tile=(16, 16), compression="zlib"),
    "TIFF of pages": PAGES,
    "NPY": npy(np.zeros((9, 8, 3), np.uint8)),
    "NPY in Fortran order": npy(np.zeros((9, 8), ">f4", order="F")),
}
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)
SMALL = 10_000  # pixels: a changed header must not request hours of work


@contextmanager
def assert_file_error(file: Path | ImageBytes) -> Iterator[None]:
    """Check that a file raises ImageFileError with its name."""
    refused = None
    try:
        yield
    except ImageFileError as error:
        refused = str(error)
    assert refused is None or refused.startswith(f"{file}: ")


@settings(max_examples=150)
@given(kind=st.sampled_from(sorted(VALID)), changes=CHANGES, near=st.sampled_from([0.1, 1.0]), kept=st.floats(0.01, 1))
@example(kind="TIFF of pages", changes=[], near=1.0, kept=0.7)
def test_corrupted_files_are_read_or_raise(tmp_path_factory, kind, changes, near, kept):
    data = bytearray(VALID[kind])
    for place, value in changes:
        data[int(place * near * (len(data) - 1))] = value
    data = bytes(data[: max(1, int(kept * len(data)))])
    file, path = ImageBytes("damaged", data), tmp_path_factory.getbasetemp() / "damaged"
    for read in (read_pixels, read_mask):
        with assert_file_error(file):
            assert 0 not in read(file, max_pixels=SMALL).shape
    path.write_bytes(data)
    with assert_file_error(path):
        size = region_size(path)
        if size is not None and size[0] * size[1] <= SMALL:
            with open_regions(path) as image:
                assert image.read(slice(0, 1), slice(0, image.size[1]))[0].shape == (3, 1, image.size[1])


@pytest.mark.parametrize("name", [*CONTENTS, *IMAGE_CONTENTS])
def test_in_memory_bad_files_raise_the_same_error(name):
    with pytest.raises(ImageFileError, match=f"^{re.escape(name)}: "):
        read_pixels(ImageBytes(name, (CONTENTS | IMAGE_CONTENTS)[name]))
