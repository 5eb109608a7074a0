"""Hostile images and masks: damaged files of every format, through prediction, the readers of masks, and check-data."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from tiny_segmenters import segmenter

from hf_vit_seg.data.checks.check import check_datasets
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.data.sources.source_registry import open_source
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, predict
from hf_vit_seg.inference.tiles.tiled_prediction import needs_tiles, predict_tiled
from hf_vit_seg.inference.video.video_prediction import open_video
from hf_vit_seg.training.recipe_loading import load_recipe

from .mutations import mutate
from .sandbox import Case

TITLE = "Hostile images and masks"
ABOUT = (
    "Each file must be read, or refused by one sentence within 5 s and 500 MiB of memory beyond twice the file, and "
    "leave no partial results. Files are cut, flipped, overwritten, repeated and inflated at seeded places, and read "
    "as images and as masks, by prediction (whole and in tiles), by check-data, and as videos. "
    "check-data accepts every file, and says in its report what cannot be used."
)
FIXED: tuple[str, ...] = (
    "A tiled TIFF that declares billions of rows, but has few tiles, kept prediction by tiles busy for 7 to 15 s (1 of "
    "5,000 cases).",
)
SIDE = 48


def picture(channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    shape = (SIDE, SIDE) if channels == 1 else (SIDE, SIDE, channels)
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


def encoded(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def video() -> bytes:
    """A short MP4."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def valid_files() -> dict[str, bytes]:
    """One file of each format and layout."""
    image, exif = Image.fromarray(picture()), Image.Exif()
    exif[274] = 6
    geo = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (33922, "d", 6, (0.0,) * 6, True), (42113, "s", 0, "0", True)]
    return {
        "PNG": encoded("PNG", image),
        "palette PNG": encoded("PNG", image.convert("P"), transparency=3),
        "16-bit PNG": imagecodecs.png_encode(picture(4, np.uint16)),
        "JPEG": encoded("JPEG", image, exif=exif),
        "WebP": encoded("WEBP", image),
        "GIF": encoded("GIF", image.convert("P")),
        "BMP": encoded("BMP", image),
        "TIFF": tiff(picture()),
        "16-bit TIFF": tiff(picture(3, np.uint16), photometric="rgb", compression="lzw"),
        "tiled GeoTIFF": tiff(picture(3), tile=(16, 16), compression="deflate", photometric="rgb", extratags=geo),
        "TIFF of pages": tiff(picture(3).transpose(2, 0, 1).copy(), photometric="minisblack"),
        "NPY": npy(picture()),
        "MP4": video(),
    }


def bombs() -> dict[str, bytes]:
    """Small files that declare many pixels, or have sides of one pixel."""
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**24), 9)
    wide = struct.pack(">IIBBBBB", 65_000, 20_000, 16, 2, 0, 0, 0)
    thin = Image.fromarray(np.zeros((1, 65_000, 3), np.uint8))
    return {
        "PNG of 2**62 pixels": png((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")),
        "16-bit PNG of 1.3e9 pixels": png((b"IHDR", wide), (b"IDAT", rows), (b"IEND", b"")),
        "65,000 x 1 pixels": encoded("PNG", thin),
        "1 x 1 pixel": encoded("PNG", Image.new("RGB", (1, 1))),
        "text bomb in PNG": png(
            (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
            (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 9)),
            (b"IDAT", zlib.compress(b"\0" * 52)),
            (b"IEND", b""),
        ),
        "TIFF of 2**40 pixels": resized_tiff(2**20),
        "NPY of 2**60 bytes": npy_header("(1073741824, 1073741824, 3)"),
        "NPY of objects": npy_objects(),
    }


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def resized_tiff(side: int) -> bytes:
    """A TIFF whose tags declare other sides."""
    data = bytearray(tiff(picture(1), byteorder="<", metadata=None))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] in (256, 257, 278):
            struct.pack_into("<HII", data, place + 2, 4, 1, side)
    return bytes(data)


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(64)


def npy_objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


class Images:
    """Makes cases by number."""

    def __init__(self, seed: int):
        self.seed, self.files, self.bombs = seed, valid_files(), list(bombs().items())
        self.segmenter = segmenter(Protocol(size="own"))
        self.recipe = load_recipe("nuclei")
        self.readers: tuple[Callable[[Path], None], ...] = (
            *(read_image, read_mask_file) * 4,
            self.predict_whole,
            self.predict_tiles,
            self.check_data,
        )

    def __call__(self, number: int) -> Case:
        random = Random(self.seed * 1_000_003 + number)
        if random.random() < 0.05:
            kind, data = random.choice(self.bombs)
            kind = f"bomb: {kind}"
        else:
            kind, data = random.choice(list(self.files.items()))
            data = mutate(random, data)[1]
        reader = read_video if kind == "MP4" else random.choice(self.readers)

        def run(folder: Path) -> None:
            path = folder / "images" / f"image{'.mp4' if kind == 'MP4' else ''}"
            path.parent.mkdir()
            path.write_bytes(data)
            reader(path)

        return Case(kind, len(data), run)

    def predict_whole(self, path: Path) -> None:
        """A failed image is an outcome of `predict`, and must have no bug."""
        job = Job(ImageFile(path, Path(path.name)), path.parent.parent / "out" / "image")
        (outcome,) = predict(self.segmenter, [job], PredictOptions(max_pixels=2_000_000))
        if outcome.bug is not None:
            raise outcome.bug
        if outcome.error is not None:
            raise HfVitSegError(outcome.error)

    def predict_tiles(self, path: Path) -> None:
        options = PredictOptions(tile=32, max_pixels=2_000_000)
        job = Job(ImageFile(path, Path(path.name)), path.parent.parent / "out" / "image")
        if not needs_tiles(job, options):
            return self.predict_whole(path)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        for progress in predict_tiled(self.segmenter, job, options):
            if progress.total > 100:  # a damaged header may declare hours of work, which is not a failure
                return None
        return None

    def check_data(self, path: Path) -> None:
        masks = path.parent.parent / "masks"
        masks.mkdir()
        image = path.rename(path.with_suffix(".png"))
        shutil.copyfile(image, masks / image.name)
        settings = {"kind": "folders", "images": str(image.parent), "masks": str(masks)}
        data = RawDataset(open_source(settings, "segmentation", 3), ClassTable(("a", "b"), ((0, 0), (1, 1))))
        check_datasets(self.recipe, {"train": data})


def read_image(path: Path) -> None:
    read_pixels(path)


def read_mask_file(path: Path) -> None:
    read_mask(path)


def read_video(path: Path) -> None:
    from contextlib import closing

    with closing(open_video(path, None)) as found:
        for _ in found.parts():
            pass


def left_behind(folder: Path) -> str | None:
    """Check that only complete results were written; removes the folder of the case."""
    out = folder / "out"
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    shutil.rmtree(folder, ignore_errors=True)
    hidden = [name for name in names if name.startswith(".") and not name.endswith(".tiles")]
    if hidden:
        return f"temporary files {hidden}"
    partial = names and "image.png" in names and "image.json" not in names
    return f"partial results {names}" if partial else None
