"""Outputs of batch inference: a folder, WebDataset tar files or Parquet files, at a local path or an address.

Tar and Parquet files have the images of one shard, in the order of the manifest, and the same bytes in every run.
"""

import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.data.images.files import ImageBytes
from hf_vit_seg.errors import HfVitSegError, WriteError, write_errors
from hf_vit_seg.inference.files.prediction import FileFacts as Facts
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, map_results, saver
from hf_vit_seg.inference.files.suffixes import ENTROPY, LABELS, OVERLAY, REPORT, SCORES
from hf_vit_seg.inference.segmentation import Segmentation
from hf_vit_seg.local_paths import publishable_path

from .manifest import Manifest, Row, RunSettings
from .storage import Saver, Storage

DATA = "data"  # folder of tar and Parquet files
SHARD_FILE = re.compile(r"train-\d{5}-of-\d{5}\.(tar|parquet)")
FORMATS = ("folder", "webdataset", "parquet")
IMAGE_SUFFIXES = {LABELS: "label_map", OVERLAY: "overlay", SCORES: "scores", ENTROPY: "entropy"}
TAR_SUFFIXES = {LABELS: ".seg.png"}  # so that the input may be a PNG
ROW_GROUP = 100  # images of a row group, as on the Hub
IMAGE_FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}  # PIL formats whose suffix is not their name


@dataclass(frozen=True, eq=False)
class Result:
    """The results of an image: the savers of its files by suffix, its report, and the encoded input."""

    row: Row
    savers: Mapping[str, Saver]
    report: Mapping[str, Any]
    encoded: Path | ImageBytes


class Output(Protocol):
    """Writes the results of a shard; `portable` outputs contain no local paths."""

    portable: bool

    def done(self, row: Row) -> bool:
        """Return whether the results of an image exist already."""
        ...

    def encode(self, result: Result) -> Any:
        """Encode the results of an image, or write them; called by several threads."""
        ...

    def add(self, encoded: Any) -> None:
        """Add encoded results, in the order of the manifest."""
        ...

    def finish(self) -> None:
        """Write what was added. WriteError if that fails."""
        ...

    def discard(self) -> None:
        """Remove incomplete files."""
        ...


def result_savers(result: Segmentation, job: Job, facts: Facts, options: PredictOptions) -> dict[str, Saver]:
    """Return the functions that write the results of an image except its report, by suffix."""
    maps = map_results(result, facts)
    savers = {suffix: saver(suffix, job, result, maps, options) for suffix in options.suffixes}
    return savers | (dict(maps.tiffs()) if facts.georeference else {})


def json_saver(content: Any) -> Saver:
    """Return the function that writes JSON to a path."""
    text = json_text(content, indent=2)
    return lambda path: path.write_text(text, encoding="utf-8")


class FolderOutput:
    """A group of files for each image, as `predict` writes them; the last file marks the group as complete."""

    portable = False

    def __init__(self, manifest: Manifest, reports: bool):
        self.storage, self.reports = manifest.storage, reports

    def done(self, row: Row) -> bool:
        """Return whether the last file exists."""
        return self.storage.exists(row.target + last_suffix(self.reports))

    def encode(self, result: Result) -> None:
        """Write the files of an image."""
        savers = dict(result.savers)
        labels = savers.pop(LABELS)
        savers[LABELS] = labels
        if self.reports:
            savers[REPORT] = json_saver(result.report)
        self.storage.write({result.row.target + suffix: save for suffix, save in savers.items()})

    def add(self, encoded: None) -> None:
        """No-op: `encode` has written the files."""

    def finish(self) -> None:
        """No-op: `encode` has written the files."""

    def discard(self) -> None:
        """No-op: the files of complete images are kept."""


def last_suffix(reports: bool) -> str:
    """Return the suffix of the file of an image that is written last."""
    return REPORT if reports else LABELS


def remove_results(storage: Storage, settings: RunSettings, targets: Sequence[str]) -> None:
    """Remove the files that mark images of an earlier run as done: their last files, or tar and Parquet files."""
    if settings.format == "folder":
        for target in targets:
            storage.remove(target + last_suffix(settings.reports))
        return
    for name in storage.names(DATA):
        if SHARD_FILE.fullmatch(name):
            storage.remove(f"{DATA}/{name}")


def shard_file(manifest: Manifest, index: int, suffix: str) -> str:
    """Return the name of the tar or Parquet file of a shard, as on the Hub."""
    return f"{DATA}/train-{index:05d}-of-{manifest.shards:05d}{suffix}"


class ShardOutput:
    """A file for each shard, which is written under a temporary name on this machine."""

    suffix, portable = "", True

    def __init__(self, manifest: Manifest, index: int):
        self.manifest, self.index = manifest, index
        self.partial = partial_file(manifest, self.suffix)

    @property
    def name(self) -> str:
        """The name of the shard's file in the output folder."""
        return shard_file(self.manifest, self.index, self.suffix)

    def done(self, row: Row) -> bool:
        """False: a shard whose file is complete is not repeated."""
        return False

    def close(self) -> None:
        """Complete the temporary file."""
        raise NotImplementedError

    def finish(self) -> None:
        """Complete the file and give it its name."""
        with write_errors(Path(self.manifest.storage.root, self.name)):
            self.close()
        self.manifest.storage.write({self.name: lambda path: os.replace(self.partial, path)}, flush=True)

    def discard(self) -> None:
        """Remove the temporary file."""
        with suppress(OSError, WriteError):  # the disk may be full
            self.close()
        self.partial.unlink(missing_ok=True)


def partial_file(manifest: Manifest, suffix: str) -> Path:
    """Create a temporary file, for a local output in the folder of the manifest so that it can be renamed."""
    folder = manifest.storage.folder and manifest.storage.folder / TEMPORARY
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(suffix, dir=folder)
    os.close(descriptor)
    return Path(path)


TEMPORARY = ".manifest/temporary"


class TarOutput(ShardOutput):
    """A tar file in which each image is a sample of WebDataset: its input, `seg.png`, `json` and other results."""

    suffix = ".tar"

    def __init__(self, manifest: Manifest, index: int):
        super().__init__(manifest, index)
        self.tar = tarfile.open(self.partial, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  (closed by `close`)

    def encode(self, result: Result) -> dict[str, bytes]:
        """Return the files of a sample, by name."""
        data = encoded_bytes(result.encoded)
        key = result.row.target
        files = {key + image_suffix(data): data}
        files |= {key + TAR_SUFFIXES.get(suffix, suffix): content for suffix, content in save_all(result).items()}
        return files | ({key + REPORT: json_text(result.report).encode()} if self.manifest.settings.reports else {})

    def add(self, encoded: dict[str, bytes]) -> None:
        """Add the files of a sample; owner and time are fixed, so that the archive is reproducible."""
        with write_errors(Path(self.manifest.storage.root, self.name)):
            for name, content in encoded.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                self.tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Write the end of the tar file."""
        self.tar.close()


class ParquetOutput(ShardOutput):
    """A Parquet file that `load_dataset` opens, with the image, the label map and the pixels of each class."""

    suffix = ".parquet"

    def __init__(
        self, manifest: Manifest, index: int, options: PredictOptions, names: tuple[str, ...], palette: np.ndarray
    ):
        super().__init__(manifest, index)
        import pyarrow.parquet

        if unusable := set(options.suffixes) - set(IMAGE_SUFFIXES):
            raise HfVitSegError(
                f"the format parquet does not support {', '.join(sorted(unusable))}: use folder or webdataset"
            )
        self.images = [name for suffix, name in IMAGE_SUFFIXES.items() if suffix in options.suffixes]
        self.schema = dataset_schema(self.images, names, palette, manifest)
        self.writer = pyarrow.parquet.ParquetWriter(self.partial, self.schema)
        self.rows: list[dict[str, Any]] = []

    def encode(self, result: Result) -> dict[str, Any]:
        """Return the row of an image: its bytes, results and report, as in `dataset_schema`."""
        data, name = encoded_bytes(result.encoded), PurePosixPath(result.row.target).name
        files = save_all(result)
        row: dict[str, Any] = {"image": {"bytes": data, "path": name + image_suffix(data)}}
        for suffix, column in IMAGE_SUFFIXES.items():
            if column in self.images:
                row[column] = {"bytes": files[suffix], "path": name + suffix}
        keys = ("id", "name", "color", "pixels")
        return row | {
            "name": result.row.target,
            "source": result.report["image"],
            "height": result.report["height"],
            "width": result.report["width"],
            "classes": [{key: each[key] for key in keys} for each in result.report["classes"]],
        }

    def add(self, encoded: dict[str, Any]) -> None:
        """Buffer a row, and write a row group when it is full."""
        self.rows.append(encoded)
        if len(self.rows) == ROW_GROUP:
            self.write_rows()

    def write_rows(self) -> None:
        """Write a row group."""
        import pyarrow

        with write_errors(Path(self.manifest.storage.root, self.name)):
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows.clear()

    def close(self) -> None:
        """Write the rest and the end of the file."""
        if self.rows:
            self.write_rows()
        self.writer.close()


def dataset_schema(images: list[str], names: tuple[str, ...], palette: np.ndarray, manifest: Manifest) -> Any:
    """Return the Arrow schema of a Parquet file, with the features of `datasets`, and names and palette as metadata."""
    import datasets

    entry = {
        "id": datasets.Value("int32"),
        "name": datasets.Value("string"),
        "color": [datasets.Value("uint8")],
        "pixels": datasets.Value("int64"),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            **{name: datasets.Image() for name in images},
            "name": datasets.Value("string"),
            "source": datasets.Value("string"),
            "height": datasets.Value("int32"),
            "width": datasets.Value("int32"),
            "classes": [entry],
        }
    )
    schema = features.arrow_schema
    settings = manifest.settings
    about = {
        "model": publishable_path(settings.model),
        "model_digest": settings.model_digest,
        "names": names,
        "palette": palette.tolist(),
    }
    return schema.with_metadata({**(schema.metadata or {}), b"hf_vit_seg": json.dumps(about).encode()})


def encoded_bytes(encoded: Path | ImageBytes) -> bytes:
    """Return the content of an encoded image."""
    return encoded.data if isinstance(encoded, ImageBytes) else encoded.read_bytes()


def image_suffix(data: bytes) -> str:
    """Return the suffix of an encoded image, by its content."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return IMAGE_FORMATS.get(image.format or "", f".{(image.format or 'bin').lower()}")
    except Exception:  # PIL does not read .npy, and some TIFFs
        return ".npy" if data.startswith(b"\x93NUMPY") else ".tif"


def save_all(result: Result) -> dict[str, bytes]:
    """Return the content of the files of a result, by suffix."""
    with write_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        files = {}
        for suffix, save in result.savers.items():
            path = Path(folder, f"result{suffix}")
            save(path)
            files[suffix] = path.read_bytes()
        return files


def open_output(
    manifest: Manifest,
    index: int,
    options: PredictOptions,
    names: tuple[str, ...],
    palette: np.ndarray,
) -> Output:
    """Return the output of a shard, in the format of the run."""
    table: dict[str, Callable[[], Output]] = {
        "folder": lambda: FolderOutput(manifest, manifest.settings.reports),
        "webdataset": lambda: TarOutput(manifest, index),
        "parquet": lambda: ParquetOutput(manifest, index, options, names, palette),
    }
    return table[manifest.settings.format]()


__all__ = [
    "DATA",
    "FORMATS",
    "Output",
    "Result",
    "json_saver",
    "open_output",
    "remove_results",
    "result_savers",
    "shard_file",
]
