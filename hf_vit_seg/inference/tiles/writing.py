"""Writing of maps larger than memory, tile by tile in any order.

During prediction, a map is a raw file of pixels in row-major order, next to a record of completed tiles, so that a
killed run can resume. Files are not memory-mapped, as mapped pages count as used memory.

Shapes: H W the map, n m a region.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_vit_seg.errors import write_errors

from .tiled_logits import Tile

PLAN, DONE = "plan.json", "done.txt"


class Plane:
    """A map (H, W) in an open raw file."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: Any):
        self.shape, self.dtype = shape, np.dtype(dtype)
        length = shape[0] * shape[1] * self.dtype.itemsize
        if not path.exists():
            path.touch()
        self.file: BinaryIO = path.open("r+b", buffering=0)
        self.file.truncate(length)

    def write(self, tile: Tile, values: np.ndarray) -> None:
        """Write a tile's pixels (n, m)."""
        values = np.ascontiguousarray(values, self.dtype)
        for row, line in zip(range(tile.rows.start, tile.rows.stop), values, strict=True):
            self.file.seek((row * self.shape[1] + tile.columns.start) * self.dtype.itemsize)
            self.file.write(line.data)

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Read rows first .. stop - 1, (n, W)."""
        count = (stop - first) * self.shape[1]
        self.file.seek(first * self.shape[1] * self.dtype.itemsize)
        data = self.file.read(count * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(stop - first, self.shape[1])

    def columns(self, first: int, stop: int) -> np.ndarray:
        """Read columns first .. stop - 1, (H, m)."""
        pixels = np.empty((self.shape[0], stop - first), self.dtype)
        for row, line in enumerate(pixels):
            self.file.seek((row * self.shape[1] + first) * self.dtype.itemsize)
            line[:] = np.frombuffer(self.file.read(line.nbytes), self.dtype)
        return pixels

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def reuse_folder(folder: Path, plan: str) -> None:
    """Keep a folder of an earlier run if it had the same plan; otherwise create it, empty."""
    plan_file = folder / PLAN
    if not plan_file.exists() or plan_file.read_text(encoding="utf-8") != plan:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        plan_file.write_text(plan, encoding="utf-8")


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without the last one if it is incomplete, as a run may be killed while writing
    it.
    """
    return path.read_text(encoding="ascii").split("\n")[:-1] if path.exists() else []


class TileRecord:
    """A folder of planes, and the record of their completed tiles.

    `plan` has everything that the pixels depend on. Tiles of an earlier run are reused if it had the same plan, and
    deleted otherwise.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]):
        self.folder = folder
        with write_errors(folder):
            self.open(json.dumps(plan, sort_keys=True))

    def open(self, plan: str) -> None:
        """Reuse or create the folder, and open the list of tiles."""
        reuse_folder(self.folder, plan)
        done = self.folder / DONE
        self.done = {int(line) for line in complete_lines(done) if line.isdigit()}
        done.write_text("".join(f"{index}\n" for index in sorted(self.done)), encoding="ascii")
        self.file = done.open("a", encoding="ascii", buffering=1)

    def plane(self, name: str, shape: tuple[int, int], dtype: Any) -> Plane:
        """Open one of the maps."""
        return Plane(self.folder / f"{name}.raw", shape, dtype)

    def add(self, tile: Tile) -> None:
        """Record that a tile is complete in all planes."""
        self.done.add(tile.index)
        with write_errors(self.folder):
            self.file.write(f"{tile.index}\n")

    def close(self) -> None:
        """Close the record and keep the folder for a later run."""
        self.file.close()

    def remove(self) -> None:
        """Close the record and delete the folder."""
        self.close()
        shutil.rmtree(self.folder)


__all__ = ["Plane", "TileRecord", "complete_lines", "reuse_folder"]
