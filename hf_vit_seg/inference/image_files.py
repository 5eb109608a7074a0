"""Finding and reading image files, whatever is in them."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from PIL import Image, ImageOps

MAX_PIXELS = 200_000_000
NOT_PICTURES = frozenset({".pdf", ".ps", ".eps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf"})

# PIL keeps its own limit in a global, which `max_pixels` replaces while a file is opened.
PIL_LIMIT = threading.Lock()


class ImageFileError(ValueError):
    """An image file that cannot be used, and why, in one sentence."""


@dataclass(frozen=True)
class ImageFile:
    """An image to be read, and its place below the folder that was asked for (a bare name for a single file)."""

    path: Path
    place: Path


def picture_suffixes() -> frozenset[str]:
    """Lower-case file suffixes that are looked for in folders."""
    return frozenset(Image.registered_extensions()) - NOT_PICTURES


def find_images(inputs: Iterable[str], skip: Path | None = None) -> list[ImageFile]:
    """The images that files, folders and glob patterns stand for, each once, folders recursively in order of name.

    From folders come the files with an image's suffix, without hidden ones and without what lies below `skip` (the
    results). A file that is named itself is taken whatever its suffix. FileNotFoundError when an input gives nothing.
    """
    found: dict[Path, ImageFile] = {}
    for given in inputs:
        matches = [given] if os.path.lexists(given) else sorted(glob(given, recursive=True))
        files = [image for match in matches for image in expand(Path(match), skip)]
        if not files:
            reason = "holds no images" if Path(given).is_dir() else "is no file, folder or pattern that matches one"
            raise FileNotFoundError(f"{given} {reason}")
        for image in files:
            found.setdefault(image.path.resolve(), image)
    return list(found.values())


def expand(path: Path, skip: Path | None) -> Iterator[ImageFile]:
    """A file itself, or the images below a folder."""
    if not path.is_dir():
        yield ImageFile(path, Path(path.name))
        return
    suffixes = picture_suffixes()
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        kept = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(name for name in kept if skip is None or (here / name).resolve() != skip.resolve())
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield ImageFile(here / name, (here / name).relative_to(path))


@contextmanager
def pil_limit_lifted() -> Iterator[None]:
    """Let PIL open an image of any size: nothing is decoded yet."""
    with PIL_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image: its first frame, upright (EXIF), in its own mode.

    ImageFileError for what is no image, is broken, or has more than `max_pixels` pixels, which is found out before
    anything is decoded.
    """
    try:
        if not path.stat().st_size:
            raise ImageFileError(f"{path}: the file is empty")
        with pil_limit_lifted(), Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageFileError(
                    f"{path}: {width}x{height} pixels are {width * height / 1e6:.0f} million, more than the limit of "
                    f"{max_pixels / 1e6:g} million: tile it or raise --max-pixels"
                )
            image.load()
            return ImageOps.exif_transpose(image)
    except ImageFileError:
        raise
    except FileNotFoundError:
        raise ImageFileError(f"{path}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageFileError(f"{path}: this is no image of a format that PIL knows") from None
    except Exception as error:  # decoders of broken files raise OSError, SyntaxError, ValueError, struct.error ...
        reason = str(error) or type(error).__name__
        raise ImageFileError(f"{path}: the image cannot be decoded ({reason})") from None
