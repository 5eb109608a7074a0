"""Files that look like images but cannot be read, one per failure mode of the readers."""

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

WIDTH, BITS_PER_SAMPLE, COMPRESSION = 256, 258, 259  # TIFF tags
SHORT = 3


def random_image(size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8))


def encode_image(kind: str, **options) -> bytes:
    """A valid file in a format supported by PIL."""
    buffer = io.BytesIO()
    image = random_image().convert("P") if kind in ("GIF", "BMP") else random_image()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    """A .npy file with the header `text`, followed by a few bytes."""
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode() + bytes(16)


def tiff(array: np.ndarray | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    array, options = (np.asarray(random_image()), {"photometric": "rgb"}) if array is None else (array, options)
    tifffile.imwrite(buffer, array, byteorder="<", metadata=None, **options)
    return buffer.getvalue()


def with_tag(data: bytes, code: int, kind: int, values: tuple[int, ...]) -> bytes:
    """A little-endian TIFF whose first directory has a tag with other values (at most two of 16 bits)."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    changed = bytearray(data)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] == code:
            struct.pack_into(
                "<HHI4s", changed, place, code, kind, len(values), struct.pack(f"<{len(values)}H", *values)
            )
            return bytes(changed)
    raise KeyError(code)


def page_offset(data: bytes, page: int) -> int:
    """Offset of the directory of a TIFF page."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        return tiff.pages[page].offset


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def palette_png(palette: bytes, transparency: bytes = b"") -> bytes:
    """An 8-bit palette PNG of 4x4 pixels."""
    rows = zlib.compress(b"".join(b"\0" + bytes(range(4)) for _ in range(4)))
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    extra = chunk(b"tRNS", transparency) if transparency else b""
    parts = (chunk(b"IHDR", header), chunk(b"PLTE", palette), extra, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


PAGES = tiff(np.moveaxis(np.asarray(random_image()), -1, 0).copy(), photometric="minisblack")

# By file name; none of them is a valid image or mask.
CONTENTS: dict[str, bytes] = {
    "one_dimension.npy": npy(np.zeros(5)),
    "no_dimension.npy": npy(np.float32(3)),
    "four_dimensions.npy": npy(np.zeros((2, 3, 4, 4), np.uint8)),
    "no_pixels.npy": npy(np.zeros((0, 0), np.uint8)),
    "no_rows.npy": npy(np.zeros((3, 0, 4), np.uint8)),
    "complex.npy": npy(np.zeros((4, 4), np.complex64)),
    "words.npy": npy(np.array([["a", "b"]])),
    "objects.npy": npy(np.array([[{}, {}]], dtype=object)),
    "records.npy": npy(np.zeros((4, 4), [("a", "u1")])),
    "cut.npy": cut(npy(np.zeros((9, 9)))),
    "huge.npy": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}\n"),
    "negative.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 4)}\n"),
    "fractions.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1.5, 4)}\n"),
    "odd_header.npy": npy_header("{'descr': '<f8'}\n"),
    "tuple_width.tif": with_tag(tiff(), WIDTH, SHORT, (16, 16)),
    "no_width.tif": with_tag(tiff(), WIDTH, SHORT, (0,)),
    "strange_bits.tif": with_tag(tiff(), BITS_PER_SAMPLE, SHORT, (0,)),
    "unknown_compression.tif": with_tag(tiff(), COMPRESSION, SHORT, (12345,)),
    "no_pages.tif": b"II*\0\0\0\0\0",
    "cut.tif": tiff()[:120],
    "cut_between_pages.tif": PAGES[: page_offset(PAGES, 2)],
    "palette_too_long.png": palette_png(bytes(900)),
    "cut.png": cut(encode_image("PNG")),
    "cut.webp": cut(encode_image("WEBP", lossless=True)),
    "cut.gif": cut(encode_image("GIF")),
    "cut.bmp": cut(encode_image("BMP")),
    "words.png": b"not an image at all",
    "empty.png": b"",
}
# Not valid images, though some are valid masks, or are invalid masks for another reason.
IMAGE_CONTENTS = {
    "transparency_beyond_palette.png": palette_png(bytes(12), bytes(300)),
    "cut.jpg": cut(encode_image("JPEG")),
}
SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe.png": os.mkfifo,
    "socket.tif": lambda path: os.mknod(path, 0o600 | stat.S_IFSOCK),
    "dangling.npy": lambda path: path.symlink_to(path.parent / "gone.npy"),
    "loop.png": lambda path: path.symlink_to(path),
}
MASKS = (*CONTENTS, *SPECIAL)
IMAGES = (*MASKS, *IMAGE_CONTENTS)


def write_bad(path: Path, name: str) -> Path:
    """Write one of the files to a path with the suffix of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if name in SPECIAL:
        SPECIAL[name](path)
    else:
        path.write_bytes((CONTENTS | IMAGE_CONTENTS)[name])
    return path
