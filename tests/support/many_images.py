"""Folders of small images for tests of batch inference, and the results in an output."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image


def encoded(number: int, kind: str = "PNG") -> bytes:
    """An encoded image; the heights of numbers differ, and repeat after three."""
    random = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (40 + number % 3, 50, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_photos(folder: Path, count: int = 8, broken: bool = False) -> Path:
    """Images in a folder and a subfolder, and with `broken` a file that is no image."""
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        (folder / ("sub" if number % 2 else "") / f"{number}.png").write_bytes(encoded(number))
    if broken:
        (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, count: int, column: str = "image", group: int = 3) -> Path:
    """A Parquet file with images as `datasets` writes them, and another column."""
    rows = [{column: {"bytes": encoded(number), "path": None}, "number": number} for number in range(count)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def results(out: Path) -> dict[str, str]:
    """The digest of each file of an output, without the manifest and its status records."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and ".manifest" not in path.parts]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def label_maps(out: Path) -> dict[str, np.ndarray]:
    """The label maps of a folder of results, by name without suffix."""
    found = [path for path in sorted(out.rglob("*.png")) if "." not in path.stem]
    return {path.relative_to(out).as_posix().removesuffix(".png"): np.asarray(Image.open(path)) for path in found}
