"""Images of any source: one picture gives the same pixels and label map as a file, PIL image, array or tensor."""

import io
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from log_records import collect_messages
from PIL import Image
from tiny_segmenters import segmenter

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference import Classifier, PoseEstimator, Segmenter
from hf_vit_seg.inference.image_inputs import load_pixels
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.models.modeling_segformer import SegFormerForImageClassification
from hf_vit_seg.models.modeling_vit_pose import VisionTransformerForPoseEstimation

SIDES = (24, 36)


@pytest.fixture(scope="module")
def processor() -> SemanticSegmentationImageProcessor:
    return SemanticSegmentationImageProcessor(do_resize=False)


def random_image(channels: int, top: int, dtype: Any) -> np.ndarray:
    """(H, W) or (H, W, C), with the values 0 and `top` in it."""
    shape = SIDES if channels == 1 else (*SIDES, channels)
    values = np.random.default_rng(channels).integers(0, top + 1, shape)
    values.flat[0], values.flat[-1] = 0, top
    return values.astype(dtype)


def sources(values: np.ndarray, folder: Path, *suffixes: str) -> dict[str, Any]:
    """The image as an array, a tensor of both layouts, and files."""
    found: dict[str, Any] = {"array": values, "tensor": torch.from_numpy(values.astype(values.dtype))}
    if values.ndim == 3:
        found["channels first"] = np.ascontiguousarray(values.transpose(2, 0, 1))
    for suffix in suffixes:
        path = folder / f"image{suffix}"
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".tif":
            tifffile.imwrite(path, values)
        else:
            Image.fromarray(values).save(path)
        found[suffix] = path
    return found


def same_pixels(found: dict[str, Any], processor: Any, channels: int = 3) -> torch.Tensor:
    """Check that all sources have the same pixels, and so do their values of the processor."""
    pixels = {name: load_pixels(image, channels, processor)[0] for name, image in found.items()}
    first = next(iter(pixels.values()))
    for name, other in pixels.items():
        assert other.dtype == first.dtype and torch.equal(other, first), name
    values = processor(first, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    for name, image in found.items():
        if not isinstance(image, Path | bytes):
            ours = processor(image, return_tensors="pt")["pixel_values"]
            assert torch.equal(ours, values), name
    return first


def test_gray_of_16_bits_is_the_same_from_every_source(tmp_path, processor):
    values = random_image(1, 65535, np.uint16)
    found = sources(values, tmp_path, ".png", ".tif", ".npy")
    found |= {"I;16": Image.fromarray(values), "I": Image.fromarray(values.astype(np.int32))}
    found |= {"int32": values.astype(np.int32), "big endian": values.astype(">u2")}
    pixels = same_pixels(found, processor)
    assert pixels.dtype == torch.float32 and pixels.shape == (3, *SIDES)
    assert torch.equal(pixels, torch.from_numpy((values / 257).astype(np.float32)).expand(3, -1, -1))


def test_rgb_of_8_bits_is_the_same_from_every_source(tmp_path, processor):
    values = random_image(3, 255, np.uint8)
    found = sources(values, tmp_path, ".png", ".tif", ".npy") | {"PIL": Image.fromarray(values)}
    assert torch.equal(same_pixels(found, processor), torch.from_numpy(values).permute(2, 0, 1))


def test_black_and_white_is_the_same_from_every_source(tmp_path, processor):
    values = random_image(1, 1, np.bool_)
    found = sources(values, tmp_path, ".npy") | {"PIL": Image.fromarray(values)}
    assert same_pixels(found, processor).unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    "mode", ["L", "LA", "La", "RGBA", "RGBa", "P", "PA", "1", "CMYK", "YCbCr", "HSV", "RGBX", "LAB"]
)
def test_pil_images_of_every_mode_become_rgb(mode, processor):
    rgba = Image.fromarray(random_image(4, 255, np.uint8))
    image = {
        "La": lambda: rgba.convert("LA").convert("La"),
        "PA": lambda: rgba.convert("P").convert("PA"),
        "RGBa": lambda: rgba.convert("RGBa"),
    }.get(mode, lambda: (rgba if mode in ("LA", "RGBA") else rgba.convert("RGB")).convert(mode))()
    assert image.mode == mode
    pixels, shown = load_pixels(image, 3, processor)
    assert pixels.shape == (3, *SIDES) and pixels.dtype == torch.uint8
    assert torch.equal(torch.from_numpy(np.array(shown)).permute(2, 0, 1), pixels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16, np.int64])
def test_transparency_is_blended_with_the_white_of_the_dtype(processor, dtype):
    """RGBA arrays of 0 .. 255 give the image that PIL gives, whatever their type; 16 bits have 65535 as white."""
    values = random_image(4, 255, np.uint8)
    scale = 257 if np.dtype(dtype).kind in "ui" else 1
    expected = load_pixels(Image.fromarray(values), 3, processor)[0].float()
    pixels = load_pixels(values.astype(dtype) * scale, 3, processor)[0]
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, atol=0.6, rtol=0)  # PIL rounds to integers
    ours = processor(values.astype(dtype) * scale, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, processor(pixels, input_data_format="channels_first", return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_wide_integers_of_0_to_255_are_blended_with_255(processor, dtype):
    """Computations on 8-bit images return int64, whose values are those of uint8."""
    values = random_image(4, 255, np.uint8)
    expected = load_pixels(Image.fromarray(values), 3, processor)[0].float()
    wide = values.astype(dtype)
    torch.testing.assert_close(load_pixels(wide, 3, processor)[0].float(), expected, atol=1, rtol=0)  # PIL rounds
    opaque, rgb = wide.copy(), processor(values[..., :3], return_tensors="pt")["pixel_values"]
    opaque[..., 3] = 255
    torch.testing.assert_close(processor(opaque, return_tensors="pt")["pixel_values"], rgb)


def test_transparent_images_of_16_bits_become_white(processor):
    clear = np.zeros((*SIDES, 4), np.uint16)
    assert load_pixels(clear, 3, processor)[0].unique().tolist() == [255]


def test_unrescaled_images_are_blended_with_one():
    unscaled = SemanticSegmentationImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    values = random_image(4, 255, np.uint8)
    expected = load_pixels(Image.fromarray(values), 3, unscaled)[0].float()
    found = unscaled(values.astype(np.float32) / 255, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found * 255, expected, atol=0.6, rtol=0)


def test_images_of_zero_to_one_are_reported_once(processor):
    with collect_messages("hf_vit_seg.models.image_processing_segmentation") as messages:
        values = np.random.default_rng(0).random((*SIDES, 3))
        processor(values * 255, return_tensors="pt")
        processor(values, return_tensors="pt", do_rescale=False)
        assert messages == []
        for _ in range(3):
            processor(values, return_tensors="pt")
    assert len(messages) == 1 and "0 to 1" in messages[0]


@pytest.mark.parametrize("shift", [0, 2, 4])
def test_images_of_twelve_bits_are_reported_once(processor, tmp_path, shift):
    with collect_messages("hf_vit_seg.models.image_processing_inputs") as messages:
        values = np.random.default_rng(0).integers(0, 2**16, SIDES, dtype=np.uint16) >> shift
        Image.fromarray(values).save(tmp_path / "a.png")
        processor(values, return_tensors="pt")
        for image in (values, Image.fromarray(values), tmp_path / "a.png"):
            load_pixels(image, 3, processor)
    assert len(messages) == (shift > 0)


@pytest.mark.parametrize(
    "image",
    [
        np.array([["a"]]),
        np.zeros((4, 4), np.complex64),
        np.full((4, 4), 70000, np.int32),
        np.full((4, 4), -1, np.int32),
        np.zeros(5),
        np.zeros((2, 4, 4, 3)),
        np.zeros((5, 4, 7)),
        3,
        None,
        {"url": "x"},
    ],
    ids=str,
)
def test_other_values_are_one_sentence(processor, image):
    with pytest.raises(HfVitSegError):
        load_pixels(image, 3, processor)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_one_sentence(processor, tmp_path, value):
    values = random_image(3, 255, np.float32)
    values[3, 4, 1] = value
    np.save(tmp_path / "image.npy", values)
    for image in (values, torch.from_numpy(values), tmp_path / "image.npy"):
        with pytest.raises(ImageFileError, match="1 pixels are not finite"):
            load_pixels(image, 3, processor)


def test_gray_of_64_bits_matches_its_values(processor):
    """Computations on 8-bit images return int64; 16-bit values are reduced."""
    values = random_image(1, 255, np.uint8)
    expected = load_pixels(values, 3, processor)[0]
    assert torch.equal(load_pixels(values.astype(np.int64), 3, processor)[0], expected)
    assert torch.equal(load_pixels(values.astype(np.int64) * 257, 3, processor)[0], expected)


# Files in memory and addresses


@pytest.fixture(scope="module")
def photo() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image(3, 255, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def address(photo):
    """A server with a photo, a redirect to it, a page, and an endless file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/photo.png")
                self.end_headers()
                return
            found = {"/photo.png": photo, "/page": b"<html></html>", "/large": b"0" * 5000}.get(self.path)
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_bytes_files_and_addresses_are_the_same_image(photo, address, tmp_path, processor):
    path = tmp_path / "photo.png"
    path.write_bytes(photo)
    with path.open("rb") as stream:
        found = {"path": path, "text": str(path), "bytes": photo, "stream": stream, "memory": io.BytesIO(photo)}
        found |= {"address": f"{address}/photo.png", "redirect": f"{address}/moved", "bytearray": bytearray(photo)}
        pixels = {name: load_pixels(image, 3, processor)[0] for name, image in found.items()}
    assert all(torch.equal(each, pixels["path"]) for each in pixels.values())


@pytest.mark.parametrize("page", ["missing", "page"])
def test_addresses_without_an_image_are_one_sentence(address, processor, page):
    with pytest.raises(ImageFileError, match=page):
        load_pixels(f"{address}/{page}", 3, processor)


def test_unreachable_addresses_are_one_sentence(processor):
    with pytest.raises(ImageFileError, match="cannot be downloaded"):
        load_pixels("http://127.0.0.1:9/photo.png", 3, processor)


def test_downloads_are_limited(address, processor, monkeypatch):
    monkeypatch.setattr("hf_vit_seg.inference.image_inputs.MAX_DOWNLOAD", 1000)
    with pytest.raises(ImageFileError, match="1,000 bytes"):
        load_pixels(f"{address}/large", 3, processor)


def test_text_files_are_one_sentence(tmp_path, processor):
    (tmp_path / "note.txt").write_text("x")
    with (tmp_path / "note.txt").open() as stream, pytest.raises(ImageFileError, match="'rb'"):
        load_pixels(stream, 3, processor)


# Segmenters, classifiers and pose models


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """A model of each task, with random weights."""
    classifier = SegFormerForImageClassification(
        SegFormerConfig(hidden_sizes=(8, 16, 16, 16), num_attention_heads=(1, 2, 2, 2), depths=(1, 1, 1, 1))
    )
    pose = VisionTransformerForPoseEstimation(
        VisionTransformerConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=[32, 32])
    )
    size = {"height": 32, "width": 32}
    processor = SemanticSegmentationImageProcessor(size=size)
    return {
        "segmentation": segmenter(),
        "classification": Classifier(classifier, processor, "cpu"),
        "pose": PoseEstimator(pose, processor, "cpu"),
    }


def result(model: Any, image: Any) -> Any:
    found = model(image)
    return found.label_map.tolist() if isinstance(model, Segmenter) else found


@pytest.mark.parametrize("task", ["segmentation", "classification", "pose"])
def test_every_task_takes_every_source(models, task, photo, address, tmp_path):
    model, path = models[task], tmp_path / "photo.png"
    path.write_bytes(photo)
    image = Image.open(path)
    values = np.array(image)
    expected = result(model, path)
    opaque = np.concatenate([values, np.full((*SIDES, 1), 255, np.uint8)], axis=2)
    others = [str(path), photo, io.BytesIO(photo), image, values, torch.from_numpy(values.copy()).permute(2, 0, 1)]
    others += [opaque, f"{address}/photo.png"]
    floats = [opaque.astype(np.float64), torch.from_numpy(values).permute(2, 0, 1).double()]
    unrounded = result(model, values.astype(np.float32))  # resized without rounding to integers
    for other, same in [*((other, expected) for other in others), *((other, unrounded) for other in floats)]:
        found = result(model, other)
        assert torch.equal(found, same) if task == "pose" else found == same


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_lists_give_a_result_for_each_image(models, task):
    images = [np.full((20 + i, 30, 3), 60 * i, np.uint8) for i in range(3)]
    model = models[task]
    found = model(images)
    assert len(found) == 3
    for one, image in zip(found, images, strict=True):
        expected = model(image)
        if task == "segmentation":
            assert (one.label_map == expected.label_map).all()
        else:
            assert one == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_pil_images(processor, tmp_path, orientation):
    """A PIL image is turned as its file is."""
    image, exif = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    from_file, shown_file = load_pixels(tmp_path / "a.png", 3, processor)
    from_image, shown = load_pixels(Image.open(tmp_path / "a.png"), 3, processor)
    assert torch.equal(from_file, from_image)
    assert shown is not None and shown_file is not None and shown.size == shown_file.size == from_file.shape[:0:-1]
