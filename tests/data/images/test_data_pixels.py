"""Images and masks of every format, bit depth and channel count as tensors."""

import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_vit_seg.data.images.files import ImageBytes, ImageFileError
from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.models.image_processing_inputs import rgb_image, to_pixels
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor

RANDOM = np.random.default_rng(0)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(size=shape).astype(dtype)
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def random_image(mode: str, height: int = 5, width: int = 7) -> Image.Image:
    image = Image.fromarray(noise(height, width, 4), "RGBA")
    if mode == "I;16":
        return Image.fromarray(noise(height, width, dtype=np.uint16))
    return image.convert("RGB").convert(mode) if mode == "P" else image.convert(mode)


def as_bytes(image: Image.Image, kind: str, **options) -> ImageBytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return ImageBytes(f"image.{kind.lower()}", buffer.getvalue())


def numpy_file(array: np.ndarray, name: str = "array.npy") -> ImageBytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return ImageBytes(name, buffer.getvalue())


def tiff_file(array: np.ndarray, **options) -> ImageBytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return ImageBytes("image.tif", buffer.getvalue())


KINDS = [("PNG", mode) for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")] + [
    ("JPEG", "L"),
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("TIFF", "1"),
    ("TIFF", "L"),
    ("TIFF", "P"),
    ("TIFF", "RGB"),
    ("TIFF", "RGBA"),
    ("TIFF", "CMYK"),
    ("TIFF", "I;16"),
    ("GIF", "P"),
    ("WEBP", "RGBA"),
]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_three_channels_match_predict(kind, mode):
    file = as_bytes(random_image(mode), kind)
    pixels = to_pixels(read_pixels(file)).round().to(torch.uint8)  # 16 bits are scaled
    assert read_pixels(file).dtype == (torch.uint16 if mode == "I;16" else torch.uint8)
    assert read_pixels(file).is_contiguous()
    expected = rgb_image(Image.open(io.BytesIO(file.data)))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("kind", "mode"), [*KINDS, ("TIFF", "F"), ("TIFF", "I")])
def test_one_channel_matches_processor_with_one_mean(kind, mode):
    file = as_bytes(random_image(mode), kind)
    processor = SemanticSegmentationImageProcessor(
        do_resize=False, do_rescale=False, do_normalize=False, image_mean=[0.0], image_std=[1.0]
    )
    expected = processor(Image.open(io.BytesIO(file.data)), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(read_pixels(file, channels=1).float(), expected.float())


def test_16_bit_gray_keeps_values_as_one_channel():
    array = noise(5, 7, dtype=np.uint16)
    for file in (as_bytes(Image.fromarray(array), "PNG"), tiff_file(array), numpy_file(array)):
        pixels = read_pixels(file, channels=1)
        assert pixels.dtype == torch.float32
        assert np.array_equal(pixels[0].numpy(), array)
        assert torch.equal(read_pixels(file), read_pixels(as_bytes(Image.fromarray(array), "PNG")))


@given(
    channels=st.integers(1, 9).filter(lambda count: count != 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.float64]),
    planar=st.booleans(),
    zipped=st.booleans(),
)
@settings(max_examples=60)
def test_tiffs_with_any_channel_count_keep_values(channels, height, width, dtype, planar, zipped):
    array = noise(channels, height, width, dtype=dtype)
    file = tiff_file(
        array[0] if channels == 1 else array if planar else array.transpose(1, 2, 0),
        photometric="minisblack",
        planarconfig=None if channels == 1 else "separate" if planar else "contig",
        compression="deflate" if zipped else None,
    )
    pixels = read_pixels(file, channels)
    assert pixels.shape == array.shape
    assert pixels.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert np.array_equal(pixels.numpy(), array.astype(pixels.numpy().dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_pages_are_channels(dtype):
    array = noise(4, 6, 5, dtype=dtype)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in array:
            writer.write(page, photometric="minisblack", contiguous=False)
    assert np.array_equal(read_pixels(ImageBytes("stack.tif", buffer.getvalue()), 4).numpy(), array)


def test_three_gray_pages_are_three_channels():
    array = noise(3, 6, 5)
    buffer = io.BytesIO()
    Image.fromarray(array[0]).save(
        buffer, "TIFF", save_all=True, append_images=[Image.fromarray(page) for page in array[1:]]
    )
    assert np.array_equal(read_pixels(ImageBytes("stack.tif", buffer.getvalue())).numpy(), array)


@pytest.mark.parametrize("meaning", ["rgb", "minisblack"])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("channels", [3, 4])
def test_8_bit_channels_are_read_with_any_photometric_tag(meaning, layout, channels):
    array = noise(6, 7, channels)
    stored = array if layout == "contig" else array.transpose(2, 0, 1)
    extra = [0] * (channels - (3 if meaning == "rgb" else 1)) or None
    file = tiff_file(stored, photometric=meaning, planarconfig=layout, extrasamples=extra)
    assert np.array_equal(read_pixels(file, channels).permute(1, 2, 0).numpy(), array)


def test_16_bit_rgb_tiffs_keep_values():
    array = noise(5, 7, 3, dtype=np.uint16)
    assert np.array_equal(read_pixels(tiff_file(array, photometric="rgb")).permute(1, 2, 0).numpy(), array)


def test_float_gray_is_repeated_without_scaling():
    array = noise(5, 7, dtype=np.float32)
    plain = SemanticSegmentationImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    seen = plain(Image.fromarray(array), return_tensors="pt")["pixel_values"][0]
    assert np.array_equal(seen.numpy(), np.stack([array] * 3))
    for file in (tiff_file(array), as_bytes(Image.fromarray(array), "TIFF"), numpy_file(array)):
        assert np.array_equal(read_pixels(file).numpy(), np.stack([array] * 3))


@given(
    channels=st.integers(1, 6),
    height=st.integers(7, 9),
    width=st.integers(7, 9),
    last=st.booleans(),
    wide=st.booleans(),
)
def test_arrays_can_be_channels_first_or_last(channels, height, width, last, wide):
    array = noise(channels, height, width, dtype=np.float32 if wide else np.uint8)
    file = numpy_file(array.transpose(1, 2, 0) if last else array)
    assert np.array_equal(read_pixels(file, channels).numpy(), array)


def test_array_files_are_read_into_memory(tmp_path):
    np.save(tmp_path / "a.npy", array := noise(5, 8, 9))
    pixels = read_pixels(tmp_path / "a.npy", 5)
    (tmp_path / "a.npy").unlink()
    pixels += 0  # not a read-only memory map
    assert np.array_equal(pixels.numpy(), array)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (image := random_image("RGB", 20, 30)).save(tmp_path / "turned.png", exif=exif)
    assert read_pixels(tmp_path / "turned.png").shape == (3, 30, 20)
    assert np.array_equal(
        read_pixels(tmp_path / "turned.png").permute(1, 2, 0), np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    )


@pytest.mark.parametrize(
    ("file", "channels", "reason"),
    [
        (
            tiff_file(noise(5, 6, 7), photometric="minisblack", planarconfig="separate"),
            3,
            "5 channels, expected 3",
        ),
        (as_bytes(random_image("RGB"), "PNG"), 4, "3 channels, expected 4.*data.channels of the recipe to 3"),
        (as_bytes(random_image("RGBA"), "PNG"), 5, "4 channels, expected 5"),
        (numpy_file(noise(4)), 3, r"shape \(4,\), expected \(height, width\)"),
        (numpy_file(np.array([{}, {}])), 3, "cannot be decoded.*allow_pickle"),
        (numpy_file(noise(4, 4).astype(np.complex64)), 3, "type complex64"),
        (ImageBytes("x.png", b""), 3, "the file is empty"),
        (ImageBytes("x.png", b"not an image at all"), 3, "not a supported image file"),
        (ImageBytes("x.tif", tiff_file(noise(64, 64)).data[:300]), 4, "cannot be decoded"),
        (ImageBytes("x.npy", numpy_file(noise(64, 64)).data[:300]), 3, "cannot be decoded"),
        (ImageBytes("x.png", as_bytes(random_image("RGB", 64, 64), "PNG").data[:300]), 3, "cannot be decoded"),
    ],
)
def test_non_image_files_raise_with_name(file, channels, reason):
    with pytest.raises(ImageFileError, match=reason) as error:
        read_pixels(file, channels)
    assert str(error.value).startswith(f"{file.name}: ") and "\n" not in str(error.value)


def test_missing_files_and_folders_raise(tmp_path):
    for read in (read_pixels, read_mask):
        with pytest.raises(ImageFileError, match=r"a\.png: the file does not exist"):
            read(tmp_path / "a.png")
        with pytest.raises(ImageFileError, match="directory"):
            read(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        as_bytes(random_image("L", 50, 40), "PNG"),
        tiff_file(noise(50, 40, 3), photometric="rgb"),
        tiff_file(noise(50, 40)),
    ],
)
def test_images_above_the_pixel_limit_are_not_decoded(file):
    for read in (read_pixels, read_mask):
        with pytest.raises(ImageFileError, match="40x50 = 2,000 pixels"):
            read(file, max_pixels=1999)


@given(
    kind=st.sampled_from([*product(["PNG", "TIFF"], ["1", "L", "P", "I;16"]), ("TIFF", "I")]), seed=st.integers(0, 99)
)
def test_masks_keep_values(kind, seed):
    kind, mode = kind
    random = np.random.default_rng(seed)
    top = {"1": 2, "I;16": 65536, "I": 65536}.get(mode, 256)
    values = random.integers(0, top, (6, 5))
    dtype = {"1": np.bool_, "I;16": np.uint16, "I": np.int32}.get(mode, np.uint8)
    image = Image.fromarray(values.astype(dtype))
    if mode == "P":
        image.putpalette(random.integers(0, 256, 768, dtype=np.uint8).tobytes())
    mask = read_mask(as_bytes(image, kind))
    assert mask.dtype == torch.int64
    assert np.array_equal(mask.numpy(), values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_color_masks_drop_alpha(kind, mode):
    image = random_image(mode)
    mask = read_mask(as_bytes(image, kind))
    assert mask.dtype == torch.uint8
    assert np.array_equal(mask.permute(1, 2, 0).numpy(), np.asarray(image)[..., :3])


def test_gray_masks_with_alpha_are_gray():
    image = random_image("LA")
    assert np.array_equal(read_mask(as_bytes(image, "PNG")).numpy(), np.asarray(image)[..., 0])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.int64, np.float32])
def test_masks_can_be_arrays_and_tiffs(dtype):
    values = RANDOM.integers(0, 2, (6, 5)).astype(dtype)
    values[0, 0] = -3 if np.dtype(dtype).kind in "if" else 1
    files = [numpy_file(values), numpy_file(values[None]), numpy_file(values[..., None])]
    if dtype is not np.bool_:
        files.append(tiff_file(values))
    for file in files:
        assert np.array_equal(read_mask(file).numpy(), values.astype(np.int64))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (as_bytes(random_image("L"), "JPEG"), "JPEG is lossy and changes the values of a mask: use PNG"),
        (as_bytes(random_image("CMYK"), "TIFF"), None),
        (numpy_file(np.full((4, 4), 0.5)), r"found 0\.5"),
        (numpy_file(np.full((4, 4), np.nan)), "found nan"),
        (numpy_file(noise(6, 7, 5)), r"shape \(6, 7, 5\), expected \(height, width\), or 1 or 3 or 4 channels"),
        (numpy_file(noise(3, 7, 8, dtype=np.uint16)), "3 channels of uint16"),
        (numpy_file(np.array([["a"]])), "must be integers, found the type"),
    ],
)
def test_non_mask_files_raise_with_name(file, reason):
    if reason is None:
        assert read_mask(file).shape[0] == 3  # four bytes per pixel of a TIFF are colors
        return
    with pytest.raises(ImageFileError, match=reason) as error:
        read_mask(file)
    assert str(error.value).startswith(file.name)


def test_format_is_detected_from_content(tmp_path):
    path = Path(tmp_path / "mask.png")
    path.write_bytes(tiff_file(values := noise(5, 6)).data)
    assert np.array_equal(read_mask(path).numpy(), values)
