"""RGB images of 16 bits: every reader gives the values of the 8-bit picture, at the scale of the processor."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from datasets import Array3D, Dataset, Features, Value
from PIL import Image
from tiny_segmenters import segmenter

from hf_vit_seg.data.collation import Collator
from hf_vit_seg.data.datasets import RawDataset, TrainingDataset
from hf_vit_seg.data.images.files import ImageBytes, ImageFile, ImageFileError
from hf_vit_seg.data.images.pixels import read_pixels, read_rgb_image
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.sources.source_registry import open_source
from hf_vit_seg.data.stream import Draw
from hf_vit_seg.data.transforms.person_crops import PersonCrop
from hf_vit_seg.data.transforms.pipeline import Pipeline, TransformContext
from hf_vit_seg.demo.image_reading import Readers
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, predict
from hf_vit_seg.inference.image_inputs import load_pixels
from hf_vit_seg.inference.tiles.region_reading import open_regions
from hf_vit_seg.inference.video.frames import FrameFolder
from hf_vit_seg.models.image_processing_segmentation import (
    SemanticSegmentationImageProcessor,
    SemanticSegmentationImageProcessorPil,
)

SIDES = (40, 56)
WHITE = 65535
KINDS = ("RGB", "RGBA", "LA", "L")


def picture(kind: str = "RGB", top: int = WHITE) -> np.ndarray:
    """(H, W, C) or (H, W) uint16 with the values 0 and `top`."""
    shape = SIDES if kind == "L" else (*SIDES, len(kind))
    values = np.random.default_rng(len(kind)).integers(0, top + 1, shape).astype(np.uint16)
    values.flat[0], values.flat[-1] = 0, top
    return values


def expected(values: np.ndarray, white: float = 255.0) -> torch.Tensor:
    """(3, H, W) float64: gray is repeated, transparency blended with white, and 65535 becomes `white`."""
    rows = values[..., None] if values.ndim == 2 else values
    numbers = rows.astype(np.float64)
    if rows.shape[-1] in (2, 4):
        alpha = numbers[..., -1:] / WHITE
        numbers = numbers[..., :-1] * alpha + WHITE * (1 - alpha)
    rgb = np.broadcast_to(numbers, (*SIDES, 3)).transpose(2, 0, 1)
    return torch.from_numpy(rgb * (white / WHITE))


def encoded(values: np.ndarray, **tags: Any) -> bytes:
    """The image as a TIFF."""
    buffer = io.BytesIO()
    alpha = values.ndim == 3 and values.shape[-1] in (2, 4)
    gray = values.ndim == 2 or values.shape[-1] == 2
    declared: dict[str, Any] = {"extrasamples": ["unassalpha"]} if alpha else {}
    tifffile.imwrite(buffer, values, photometric="minisblack" if gray else "rgb", **declared | tags)
    return buffer.getvalue()


def sources(values: np.ndarray, folder: Path) -> dict[str, Any]:
    """The image in every form that Segmenter takes."""
    png, tiff = imagecodecs.png_encode(values), encoded(values)
    found: dict[str, Any] = {"png": png, "tiff": tiff, "file object": io.BytesIO(tiff)}
    for name, data in (("image.png", png), ("image.tif", tiff)):
        (folder / name).write_bytes(data)
        found[f"path of {name}"] = folder / name
    if values.ndim == 3 and values.shape[-1] != 2:
        planar = np.ascontiguousarray(values.transpose(2, 0, 1))
        found |= {"array": values, "channels first": planar, "tensor": torch.from_numpy(values)}
        found |= {
            "int32": values.astype(np.int32),
            "int64": values.astype(np.int64),
            "big endian": values.astype(">u2"),
        }
        found["planar tiff"] = encoded(planar, planarconfig="separate")
    if values.ndim == 2:
        found |= {"array": values, "I;16": Image.fromarray(values), "I": Image.fromarray(values.astype(np.int32))}
    if values.ndim == 2 or values.shape[-1] == 3:
        np.save(folder / "image.npy", values)
        found["npy"] = folder / "image.npy"
    return found


@pytest.mark.parametrize("backend", [SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil])
@pytest.mark.parametrize("white", [255.0, 65535.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_has_the_scale_of_the_processor(tmp_path, kind, white, backend):
    """A rescale_factor of 1/255 or 1/65535 gives 0 .. 1; a factor of 1 keeps raw values."""
    values = picture(kind)
    processor = backend(do_resize=False, do_normalize=False, rescale_factor=1 / white)
    shown = expected(values, white if white != 1 else WHITE)
    loaded = {name: load_pixels(image, 3, processor)[0] for name, image in sources(values, tmp_path).items()}
    first = loaded["png"]
    torch.testing.assert_close(first, shown.float(), rtol=1e-6, atol=0.51 * float(shown.max()) / WHITE)
    assert kind in ("LA", "RGBA") or float(first.max()) == float(shown.max())  # white is exact
    for name, pixels in loaded.items():
        assert pixels.dtype == torch.float32 and torch.equal(pixels, first), name
    rescaled = processor(first, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    for name in loaded.keys() & {"array", "tensor", "int32", "I;16", "I"}:
        ours = processor(sources(values, tmp_path)[name], return_tensors="pt")["pixel_values"]
        assert torch.equal(ours, rescaled), name


def test_8_and_16_bits_are_the_same_picture(tmp_path):
    eight = np.random.default_rng(0).integers(0, 256, (*SIDES, 3)).astype(np.uint8)
    deep = eight.astype(np.uint16) * 257
    own = segmenter(Protocol(window=(32, 32), stride=(24, 24)))
    labels = own(eight).label_map
    for name, image in sources(deep, tmp_path).items():
        assert np.array_equal(own(image).label_map, labels), name


def test_processors_without_rescaling_keep_raw_values(tmp_path):
    processor = SemanticSegmentationImageProcessor(
        do_resize=False, do_rescale=False, image_mean=[3e4] * 3, image_std=[1e4] * 3
    )
    values = picture()
    for image in sources(values, tmp_path).values():
        pixels = load_pixels(image, 3, processor)[0]
        found = processor(pixels, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, ((expected(values, WHITE) - 3e4) / 1e4).float())


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_channel_counts_keep_raw_values(kind):
    """PNG and TIFF agree for models of two and four channels, and for one channel as PIL converts RGB to gray."""
    values = picture(kind)
    files = [ImageBytes("a.png", imagecodecs.png_encode(values)), ImageBytes("a.tif", encoded(values))]
    if kind == "RGB":
        red, green, blue = (values[..., i].astype(np.float64) for i in range(3))
        gray = read_pixels(files[0], 1)[0]
        assert np.abs(gray.numpy() - (0.299 * red + 0.587 * green + 0.114 * blue)).max() < 1
        return
    for file in files:
        pixels = read_pixels(file, len(kind))
        assert pixels.dtype == torch.float32
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), values.reshape(*SIDES, -1))


def test_premultiplied_tiffs_are_blended_with_white():
    values = picture("RGBA").astype(np.float64)
    alpha = values[..., 3:] / WHITE
    stored = np.concatenate([np.floor(values[..., :3] * alpha), values[..., 3:]], axis=-1).astype(np.uint16)
    file = ImageBytes("a.tif", encoded(stored, extrasamples=["assocalpha"]))
    torch.testing.assert_close(read_pixels(file).double(), expected(picture("RGBA"), WHITE), atol=1, rtol=0)


def test_undeclared_fourth_channels_are_rejected():
    """They may be infrared, which would be lost."""
    with pytest.raises(ImageFileError):
        read_pixels(ImageBytes("a.tif", encoded(picture("RGBA"), extrasamples=["unspecified"])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_regions_equal_whole_files(tmp_path, kind, suffix):
    if suffix == ".npy" and kind not in ("RGB", "L"):
        pytest.skip("arrays do not declare alpha")
    values, path = picture(kind), tmp_path / f"image{suffix}"
    if suffix == ".tif":
        path.write_bytes(encoded(values, tile=(16, 16)))
    else:
        np.save(path, values)
    whole = read_pixels(path)
    assert whole.dtype == torch.uint16
    with open_regions(path) as image:
        assert torch.equal(image.read(slice(5, 20), slice(3, 30))[0], whole[:, 5:20, 3:30])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("top", [255, 300, 65535, 70000])
def test_regions_of_wide_integers_equal_whole_files(tmp_path, dtype, kind, top):
    """The values of the whole array tell its depth, not those of a region."""
    values = picture(kind, 100).astype(dtype)
    values[-1, -1] = top
    np.save(tmp_path / "image.npy", values)
    if top > WHITE and kind == "L":
        with pytest.raises(ImageFileError):
            open_regions(tmp_path / "image.npy")
        return
    whole = read_pixels(tmp_path / "image.npy")
    assert torch.equal(whole, read_pixels(ImageBytes("a", (tmp_path / "image.npy").read_bytes())))
    with open_regions(tmp_path / "image.npy") as image:
        part = image.read(slice(0, 9), slice(0, 9))[0]
    assert part.dtype == whole.dtype and torch.equal(part, whole[:, :9, :9])


@pytest.mark.parametrize("tile", [None, 32])
def test_prediction_of_files_matches_the_array(tmp_path, tile):
    values, own = picture(), segmenter(Protocol(size="own"))
    files = {name: image for name, image in sources(values, tmp_path).items() if isinstance(image, Path)}
    images = [ImageFile(file, Path(file.name)) for file in files.values()]
    jobs = [Job(image, tmp_path / "out" / image.path.name.replace(".", "_")) for image in images]
    assert all(outcome.error is None for outcome in predict(own, jobs, PredictOptions(tile=tile)))
    maps = [np.asarray(Image.open(job.result(".png"))) for job in jobs]
    for found in maps[1:]:
        assert np.array_equal(found, maps[0])
    if tile is None:
        assert np.array_equal(maps[0], own(values).label_map)


def folder_dataset(folder: Path, values: np.ndarray, suffix: str) -> RawDataset:
    for name in ("images", "masks"):
        (folder / suffix / name).mkdir(parents=True)
    path = folder / suffix / "images" / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, values)
    else:
        path.write_bytes(imagecodecs.png_encode(values) if suffix == "png" else encoded(values))
    Image.fromarray((np.indices(SIDES)[1] % 2).astype(np.uint8)).save(folder / suffix / "masks" / "a.png")
    settings = {"kind": "folders", "images": str(path.parent), "masks": str(folder / suffix / "masks")}
    return RawDataset(open_source(settings, "segmentation", 3), ClassTable(("a", "b"), ((0, 0), (1, 1))))


@pytest.mark.parametrize("white", [255.0, 65535.0, 1.0])
def test_training_pixels_match_prediction(tmp_path, white):
    values = picture()
    processor = SemanticSegmentationImageProcessor(do_resize=False, rescale_factor=1 / white)
    wanted = processor(values, return_tensors="pt")["pixel_values"]
    context = TransformContext.from_processor(processor, "segmentation")
    for suffix in ("png", "tif", "npy"):
        data = folder_dataset(tmp_path, values, suffix)
        training = TrainingDataset(data, Pipeline([], white=context.white), 0)
        batch = Collator(processor, "segmentation")([training[Draw(0, 0, 0)]])
        assert torch.equal(batch["pixel_values"], wanted), suffix
        evaluated = processor(data.read(0).image, input_data_format="channels_first", return_tensors="pt")
        assert torch.equal(evaluated["pixel_values"], wanted), suffix


def test_rows_of_datasets_are_read_like_files(tmp_path):
    values = picture()
    mask = io.BytesIO()
    Image.fromarray(np.zeros(SIDES, np.uint8)).save(mask, "PNG")
    bytes_of = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"png": bytes_of, "tif": bytes_of, "array": Array3D((*SIDES, 3), "uint16"), "mask": bytes_of})
    row = {
        "png": {"bytes": imagecodecs.png_encode(values), "path": None},
        "tif": {"bytes": encoded(values), "path": None},
        "array": values,
        "mask": {"bytes": mask.getvalue(), "path": None},
    }
    Dataset.from_list([row], features=features).save_to_disk(tmp_path / "saved")
    for column in ("png", "tif", "array"):
        settings = {"kind": "huggingface", "name": str(tmp_path / "saved"), "split": "train"}
        source = open_source(settings | {"image_column": column, "mask_column": "mask"}, "segmentation", 3)
        image = source.read(0).image
        assert image.dtype == torch.uint16, column
        assert np.array_equal(image.permute(1, 2, 0).numpy(), values), column


def test_missing_values_become_the_mean(tmp_path):
    """GDAL_NODATA is a stored value, and the mean one of the processor."""
    values = picture()
    values[4, 5] = 7
    tag = [(42113, "s", 0, "7", True)]
    (tmp_path / "a.tif").write_bytes(encoded(values, extratags=tag))
    processor = SemanticSegmentationImageProcessor(do_resize=False)
    pixels = load_pixels(tmp_path / "a.tif", 3, processor)[0]
    found = processor(pixels, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found[:, 4, 5], torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels[:, 0, 0], expected(values)[:, 0, 0].float())


def test_demo_reads_the_same_pixels(tmp_path):
    values = picture()
    files = sources(values, tmp_path)
    readers = Readers(1)
    try:
        for name in ("path of image.png", "path of image.tif"):
            assert torch.equal(readers.read(files[name], 3), read_pixels(files[name]))
    finally:
        readers.close()


def test_frames_are_8_bit_pictures(tmp_path):
    values = picture()
    for name, data in (("a.png", imagecodecs.png_encode(values)), ("b.tif", encoded(values))):
        (tmp_path / name).write_bytes(data)
    wanted = np.round(values / 257).astype(np.uint8)
    for frame in FrameFolder(tmp_path, Fraction(1)).parts():
        assert np.array_equal(np.asarray(frame.picture), wanted)
    assert np.array_equal(np.asarray(read_rgb_image(tmp_path / "b.tif")), wanted)


def test_person_crops_keep_the_depth():
    image = torch.from_numpy(picture().transpose(2, 0, 1).copy())
    crop = PersonCrop.from_box((0, 0, 56, 40), (24, 18))
    found = crop.extract(image)
    assert found.dtype == torch.uint16
    torch.testing.assert_close(found.float(), crop.extract(image.float()), atol=0.5, rtol=0)


@pytest.mark.parametrize("cut", [20, 40, 200, -20])
def test_damaged_pngs_are_one_sentence(cut):
    with pytest.raises(ImageFileError):
        read_pixels(ImageBytes("a.png", imagecodecs.png_encode(picture())[:cut]))
