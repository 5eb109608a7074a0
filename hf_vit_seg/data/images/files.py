"""Find and read image files. Decoder failures of any kind become ImageFileError."""

import os
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps

from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.local_paths import installed_path

from .orientation import UPRIGHT, hide_tiff_orientation, pil_orientation, tiff_orientation, turn_image_upright

MAX_PIXELS = 100_000_000
MAX_SIDE = 100_000  # pixels of an image that is read whole: thin images grow when they are resized or padded
MAX_PIXEL_BYTES = 90  # memory per pixel of an image of `max_pixels` pixels: ten float32 channels and PROCESSING_BYTES
PROCESSING_BYTES = 50  # per pixel: RGB copies, float32 channels, label map and overlay (45 measured with `predict`)
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and big, in either byte order
NUMPY = b"\x93NUMPY"
NOT_PICTURES = frozenset({".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf"})
# Formats that PIL hands to other programs, or knows by name only.
NO_PIXELS = frozenset({"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"})

KINDS: dict[Callable[[int], bool], str] = {
    stat.S_ISDIR: "directory",
    stat.S_ISFIFO: "named pipe",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
}

# PIL keeps its own limit in a global, which `max_pixels` replaces while a file is opened.
PIL_LIMIT = threading.Lock()


TILES_OR_LIMIT = "save it as a tiled TIFF, which is read in parts, or raise --max-pixels"


class ImageFileError(HfVitSegError):
    """An image file that cannot be used, and why, in one sentence."""


class ImageSizeError(ImageFileError):
    """An image with too many pixels; `fact` is the message without the advice for users of commands."""

    def __init__(self, fact: str, advice: str = TILES_OR_LIMIT):
        super().__init__(f"{fact}: {advice}")
        self.fact = fact


@dataclass(frozen=True)
class ImageFile:
    """An image file, and its path relative to the requested folder (for a single file, its name)."""

    path: Path
    relative_path: Path


@dataclass(frozen=True)
class ImageBytes:
    """An image file in memory, and its name in messages."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


def as_stream(file: Path | ImageBytes) -> Path | BytesIO:
    """Return the object to pass to file readers: the path, or a stream of the bytes."""
    return BytesIO(file.data) if isinstance(file, ImageBytes) else file


def check_regular(path: Path) -> None:
    """Reject paths that are not regular files: opening a named pipe blocks, and a device may be endless.

    Raises ImageFileError, also for missing files and unreadable directories.
    """
    with raise_image_errors(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((name for check, name in KINDS.items() if check(mode)), "special file")
        raise ImageFileError(f"{path}: this is a {kind}, expected a regular file")


def first_bytes(file: Path | ImageBytes, count: int = 16) -> bytes:
    """Return the first bytes of a file, to detect its format. Raises ImageFileError for missing and empty files."""
    if isinstance(file, Path):
        check_regular(file)
    with raise_image_errors(file):
        if isinstance(file, ImageBytes):
            start = file.data[:count]
        else:
            with file.open("rb") as stream:
                start = stream.read(count)
        if not start:
            raise ImageFileError(f"{file}: the file is empty")
        return start


def picture_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the formats that PIL reads."""
    return frozenset(Image.registered_extensions()) - NOT_PICTURES


def readable_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that are taken for images and masks in folders."""
    return picture_suffixes() | {".npy"}


def find_images(inputs: Iterable[str], skip: Path | None = None) -> list[ImageFile]:
    """Return the images of files, folders (recursively, in order of name) and glob patterns, each once.

    From folders come the files with an image's suffix, without hidden ones and without files below `skip` (the
    results). A file named explicitly is accepted with any suffix. Raises ImageFileError for an input without images.
    """
    images: dict[Path, ImageFile] = {}
    for given in map(installed_path, inputs):
        matches = [given] if os.path.lexists(given) else sorted(glob(given, recursive=True))
        files = [image for match in matches for image in expand(Path(match), skip)]
        if not files:
            reason = "contains no images" if Path(given).is_dir() else "does not match any file or folder"
            raise ImageFileError(f"{given} {reason}")
        for image in files:
            images.setdefault(real_path(image.path), image)
    return list(images.values())


def real_path(path: Path) -> Path:
    """Return the path without symbolic links. Path.resolve raises RuntimeError for links that form a loop."""
    return Path(os.path.realpath(path))


def expand(path: Path, skip: Path | None) -> Iterator[ImageFile]:
    """Yield a file itself, or the images below a folder."""
    if not os.path.isdir(path):  # unlike Path.is_dir, this never raises
        yield ImageFile(path, Path(path.name))
        return
    for relative_path in files_below(path, readable_suffixes(), () if skip is None else (skip,)):
        yield ImageFile(path / relative_path, relative_path)


def files_below(folder: Path, suffixes: frozenset[str], skip: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the files with one of these lower-case suffixes, relative to the folder (see `walk_files`)."""
    for parent, names in walk_files(folder, suffixes, skip):
        yield from (Path(parent, name).relative_to(folder) for name in names)


def walk_files(folder: Path, suffixes: frozenset[str], skip: Collection[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below `folder`, and the names of its files with one of these lower-case suffixes, in order of
    name.

    Hidden files and files below `skip` are left out. Links to folders are followed, but for those to a folder that
    they lie in. ImageFileError for a folder that cannot be read, as its images would be missing without notice.
    """
    above = {
        os.fspath(folder): {folder.resolve()}
    }  # the resolved folders that contain each pending folder, itself included
    for parent, folders, names in os.walk(folder, onerror=raise_folder_error, followlinks=True):
        here, chain = Path(parent), above.pop(parent)
        inside = {name: (here / name).resolve() for name in sorted(folders) if not name.startswith(".")}
        refused = chain | {path.resolve() for path in skip}
        folders[:] = [name for name, real in inside.items() if real not in refused]
        above |= {os.path.join(parent, name): {*chain, inside[name]} for name in folders}
        yield (
            parent,
            sorted(
                name for name in names if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
            ),
        )


def raise_folder_error(error: OSError) -> NoReturn:
    """Raise for a folder that cannot be listed."""
    raise ImageFileError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


@contextmanager
def disable_pil_limit() -> Iterator[None]:
    """Let PIL open an image of any size: nothing is decoded yet."""
    with PIL_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def raise_image_errors(file: object) -> Iterator[None]:
    """Convert every exception of readers and decoders to an ImageFileError that names the file.

    This is for calls of PIL, tifffile and numpy alone: they raise almost any exception for files that are broken.
    """
    try:
        yield
    except ImageFileError:
        raise
    except HfVitSegError as error:
        raise ImageFileError(f"{file}: {error}") from None
    except FileNotFoundError as error:
        dangling = isinstance(file, Path) and os.path.islink(file)
        reason = "the link points to a file that does not exist" if dangling else "the file does not exist"
        raise ImageFileError(f"{file}: {reason}") from error
    except PermissionError as error:
        raise ImageFileError(f"{file}: no permission to read the file") from error
    except Image.UnidentifiedImageError as error:
        raise ImageFileError(f"{file}: not a supported image file; convert it to PNG, JPEG, TIFF or WebP") from error
    except Exception as error:  # decoders of broken files raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageFileError(f"{file}: the image cannot be decoded ({decoder_message(error)})") from error


def decoder_message(error: Exception) -> str:
    """Return the message of a decoder's exception, or its type where the message is about the decoder's own code."""
    written_for_users = isinstance(error, OSError | ValueError | SyntaxError) and len(str(error).split()) > 1
    return error_sentence(error) if written_for_users else f"the file is damaged: {type(error).__name__}"


def check_sides(file: object, height: object, width: object) -> None:
    """Refuse sides that are not positive integers: headers of damaged files contain anything."""
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, int) or side < 1:
            raise ImageFileError(f"{file}: the {name} of the image is {side!r}, expected a positive integer")


def within_limits(height: int, width: int, max_pixels: int) -> bool:
    """Return whether an image has a size at which it is read whole."""
    return max(height, width) <= MAX_SIDE and height * width <= max_pixels


def check_pixels(file: object, height: int, width: int, max_pixels: int, pixel_bytes: int = 3) -> None:
    """Refuse an image before it is decoded: of more than `max_pixels` pixels, a longer side, or too much memory.

    `pixel_bytes` is the memory per pixel of the decoded image, to which `PROCESSING_BYTES` are added. All pixels may
    need `max_pixels * MAX_PIXEL_BYTES`.
    """
    check_sides(file, height, width)
    count, max_bytes = height * width, max_pixels * MAX_PIXEL_BYTES
    needed = count * (pixel_bytes + PROCESSING_BYTES)
    fact = f"{file}: {width}x{height} = {count:,} pixels need about {needed / 1e6:.0f} MB of memory"
    if count > max_pixels:
        raise ImageSizeError(f"{fact}, more than the limit of {max_pixels / 1e6:g} million pixels")
    if max(height, width) > MAX_SIDE:
        raise ImageSizeError(
            f"{fact}, and the longer side is above the limit of {MAX_SIDE} pixels",
            "cut it into shorter parts, or save it as a tiled TIFF, which is read in parts",
        )
    if needed > max_bytes:
        raise ImageSizeError(
            f"{fact}, more than the limit of {max_bytes / 1e6:g} MB for images of up to {max_pixels / 1e6:g} million "
            "pixels",
            "remove channels that are not needed, or raise --max-pixels",
        )


def decoded_bytes(count: int, dtype: Any) -> int:
    """Return the bytes in memory of a pixel with `count` values: 8-bit values are unchanged, others become float32."""
    size = np.dtype(dtype).itemsize
    return count * (1 if size == 1 else max(size, 4))


def pil_formats() -> list[str]:
    """Return the formats that PIL decodes itself."""
    Image.init()
    return [name for name in Image.ID if name not in NO_PIXELS]


def read_image(file: Path | ImageBytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image: its first frame, upright (EXIF and TIFF tags), in its own mode.

    ImageFileError for files that are not images, are damaged, or are too large (`check_pixels`); the size is checked
    before pixels are decoded.
    """
    is_tiff = first_bytes(file).startswith(TIFFS)
    with raise_image_errors(file):
        stored, orientation = hide_tiff_orientation(as_stream(file)) if is_tiff else (as_stream(file), UPRIGHT)
        with open_image(stored) as image:
            wide = 4 if image.mode.startswith(("I", "F")) else 1
            check_pixels(file, image.height, image.width, max_pixels, wide * len(image.getbands()))
            size = image.size
            image.load()
            if image.size != size:  # icons contain an image with a separate header
                check_pixels(file, image.height, image.width, max_pixels)
            ImageOps.exif_transpose(image, in_place=True)
            return turn_image_upright(image, orientation)


def open_image(stored: Path | BytesIO) -> Image.Image:
    """Open an image of any size with PIL; nothing is decoded yet."""
    with disable_pil_limit():  # only while the header is read, so that threads decode in parallel
        return Image.open(stored, formats=pil_formats())


def read_orientation(file: Path | ImageBytes) -> int:
    """Read the orientation of an image or mask file (EXIF and TIFF tags; 1 is upright). Raises ImageFileError."""
    start = first_bytes(file)
    with raise_image_errors(file):
        if start.startswith(TIFFS):
            return read_tiff_orientation(as_stream(file))
        if start.startswith(NUMPY):
            return UPRIGHT
        with open_image(as_stream(file)) as image:
            return pil_orientation(image, as_stream(file))


def read_tiff_orientation(stored: Path | BytesIO) -> int:
    """Read the orientation of a TIFF."""
    import tifffile

    with tifffile.TiffFile(stored) as tiff:
        page: Any = tiff.pages.first
        return tiff_orientation(page)
