"""The manifest of a run of batch inference: its images, settings and shards, planned once and then only read.

It is stored in the folder `.manifest` of the output: `manifest.json` with the settings, and `images.parquet` with a row
for each image and a row group for each shard.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.storage.addresses import UNKNOWN, is_address
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.provenance import package_versions

from .batch_inputs import Entry, InputError, Source, find_sources
from .result_names import target_names
from .storage import Storage

FOLDER = ".manifest"
HEADER, IMAGES = f"{FOLDER}/manifest.json", f"{FOLDER}/images.parquet"
VERSION = 1
MIN_SHARD_IMAGES, MAX_SHARD_IMAGES = 16, 1024
TARGET_SHARDS = 64  # number of shards, if their sizes are within these limits
# Their versions determine the results.
PACKAGES = ("hf_vit_seg", "torch", "torchvision", "transformers", "numpy", "pillow")
CHUNK = 65_536  # rows that are converted to Arrow together


class ManifestError(HfVitSegError):
    """A manifest that cannot be used, or belongs to a run with other settings."""


class Row(NamedTuple):
    """An image of a run, see `Entry`; `index` counts the images of the run, `target` is the path of its results."""

    index: int
    source: int
    path: str
    offset: int
    size: int
    target: str


@dataclass(frozen=True)
class RunSettings:
    """The settings that affect the results of a run: the command, and the model's revision.

    `inputs` are as given; `options` are the fields of `PredictOptions` and the protocol as JSON values; `model_digest`
    is the commit of a Hub model, or the digest of the files of a local one; `shards` is the requested number. Without
    `reports`, folders have no NAME.json.
    """

    model: str
    model_digest: str
    inputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    format: str = "folder"
    column: str = ""
    shards: int | None = None
    reports: bool = True


@dataclass(frozen=True)
class Manifest:
    """A planned run; `bounds` are the first rows of the shards, and the number of rows."""

    settings: RunSettings
    sources: tuple[Source, ...]
    bounds: tuple[int, ...]
    packages: Mapping[str, str]
    storage: Storage

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.bounds) - 1

    @property
    def images(self) -> int:
        """The number of images."""
        return self.bounds[-1]

    def shard_size(self, index: int) -> int:
        """Return the number of images of a shard."""
        return self.bounds[index + 1] - self.bounds[index]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of settings, sources and shards: results of a run with another one do not belong to it."""
        return json_digest([asdict(self.settings), [asdict(source) for source in self.sources], self.bounds])

    def rows(self, index: int) -> list[Row]:
        """Return the images of a shard."""
        import pyarrow.parquet

        with self.storage.open(IMAGES) as file:
            table = pyarrow.parquet.ParquetFile(file).read_row_group(index)
        columns = [table.column(name).to_pylist() for name in ("source", "path", "offset", "size", "target")]
        first = self.bounds[index]
        return [Row(first + number, *values) for number, values in enumerate(zip(*columns, strict=True))]

    def locate(self, row: Row) -> str:
        """Return how an image is named in messages and reports: its path or address, or its place in a file."""
        return self.describe(row, self.sources[row.source].root)

    def publishable_name(self, row: Row) -> str:
        """Return the name without the folders of this machine."""
        root = self.sources[row.source].root
        return self.describe(row, root if is_address(root) else PurePath(root).name)

    def describe(self, row: Row, root: str) -> str:
        """Return how an image of a source is named."""
        kind = self.sources[row.source].kind
        if kind == "files":
            return f"{root.rstrip('/')}/{row.path}" if root else row.path
        return f"{root}: {row.path}" if kind == "tar" else f"{root}: row {row.offset}"


def json_digest(content: Any) -> str:
    """Return the digest of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# Planning


def plan_manifest(
    settings: RunSettings,
    storage: Storage,
    note: Callable[[int], Any] = lambda count: None,
    prepare: Callable[[Sequence[str]], Any] | None = None,
) -> Manifest:
    """List the images of the inputs and write the manifest; `note` gets the number of images found so far.

    `prepare` gets the paths of the results before the manifest is written. Planning the same inputs again gives the
    same manifest. Raises InputError or ImageFileError.
    """
    listing = Listing()
    sources = find_sources(settings.inputs, settings.column, storage.folder)
    for source, entries in sources:
        listing.add(source, entries, note)
    if not listing.count:
        raise InputError("the inputs contain no images")
    places = listing.take_places()
    targets = target_names(places, flat_stems=settings.format == "webdataset", origins=listing.origins)
    del places
    if prepare is not None:
        prepare(targets)
    bounds = shard_bounds(listing.count, settings.shards)
    manifest = Manifest(settings, tuple(listing.sources), bounds, package_versions(PACKAGES), storage)
    storage.write({IMAGES: lambda path: listing.save(path, targets, bounds)}, flush=True)
    storage.write_text(HEADER, json_text(header(manifest), indent=2))
    return manifest


class Listing:
    """Collects the entries of sources in Arrow arrays; an image that was listed before is left out."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.chunks: list[Any] = []
        self.places: list[str] = []
        self.numbers = array("i")  # source number of each image
        self.count = 0
        self.seen: set[int] = set()

    def add(self, source: Source, entries: Iterable[Entry], note: Callable[[int], Any]) -> None:
        """Add a source with its images in chunks; `note` is called with the number of images so far."""
        number = self.source_number(source)
        for chunk in split_chunks(self.new_entries(source, entries), CHUNK):
            self.add_chunk(number, chunk)
            note(self.count)

    def source_number(self, source: Source) -> int:
        """Return the number of a source; single files of a folder share one."""
        if not self.sources or self.sources[-1] != source:
            self.sources.append(source)
        return len(self.sources) - 1

    def new_entries(self, source: Source, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the entries that were not listed before."""
        prefix = (source.kind, source.root, source.split, source.config)
        for entry in entries:
            key = hash((prefix, entry.path, entry.offset))
            if key not in self.seen:
                self.seen.add(key)
                yield entry

    def add_chunk(self, number: int, chunk: Sequence[Entry]) -> None:
        """Convert entries to Arrow."""
        import pyarrow as pa

        self.chunks.append(
            pa.table(
                {
                    "source": pa.array([number] * len(chunk), pa.int32()),
                    "path": pa.array([entry.path for entry in chunk], pa.string()),
                    "offset": pa.array(array("q", [entry.offset for entry in chunk])),
                    "size": pa.array(array("q", [entry.size for entry in chunk])),
                }
            )
        )
        self.places += [entry.place for entry in chunk]
        self.numbers.extend([number] * len(chunk))
        self.count += len(chunk)

    @property
    def origins(self) -> "Origins":
        """The source of each entry, as text."""
        return Origins(
            [f"{source.kind} {source.root} {source.config} {source.split}" for source in self.sources], self.numbers
        )

    def take_places(self) -> list[str]:
        """Return the places of all entries, and release them and the set of entries."""
        places, self.places = self.places, []
        self.seen.clear()
        return places

    def save(self, path: Path, targets: list[str], bounds: Sequence[int]) -> None:
        """Write all entries as Parquet, with a row group for each shard."""
        import pyarrow as pa
        import pyarrow.parquet

        table = pa.concat_tables(self.chunks).append_column("target", pa.array(targets, pa.string()))
        with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
            for first, stop in pairwise(bounds):
                writer.write_table(table.slice(first, stop - first), row_group_size=stop - first)


class Origins(Sequence[str]):
    """The texts of sources by the index of an entry."""

    def __init__(self, texts: Sequence[str], numbers: Sequence[int]):
        self.texts, self.numbers = texts, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[self.numbers[index]]


def split_chunks(entries: Iterator[Entry], size: int) -> Iterator[list[Entry]]:
    """Divide entries into lists of a size."""
    chunk: list[Entry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def shard_bounds(images: int, shards: int | None = None) -> tuple[int, ...]:
    """Return the first images of the shards, and the number of images; independent of the number of workers.

    By default shards have 16 to 1024 images, so that few images are divided too. At most one shard per image.
    """
    if shards is None:
        size = min(max(-(-images // TARGET_SHARDS), MIN_SHARD_IMAGES), MAX_SHARD_IMAGES)
        shards = -(-images // size)
    shards = min(max(shards, 1), images)
    return tuple(images * index // shards for index in range(shards + 1))


# Storage


def header(manifest: Manifest) -> dict[str, Any]:
    """Return the JSON value of the first line: settings, inputs, shards and package versions."""
    return {
        "version": VERSION,
        "settings": asdict(manifest.settings),
        "sources": [asdict(source) for source in manifest.sources],
        "bounds": list(manifest.bounds),
        "packages": dict(manifest.packages),
    }


def read_manifest(storage: Storage) -> Manifest | None:
    """Read the manifest of an output; None if there is none. Raises ManifestError for one that cannot be read."""
    content = storage.read(HEADER)
    if content is None:
        return None
    try:
        fields = json.loads(content)
        settings = fields["settings"] | {"inputs": tuple(fields["settings"]["inputs"])}
        sources = tuple(Source(**source) for source in fields["sources"])
        if fields["version"] != VERSION:
            raise ManifestError(
                f"{storage.root}/{HEADER} has version {fields['version']}, expected {VERSION}: use a new --out"
            )
        return Manifest(RunSettings(**settings), sources, tuple(fields["bounds"]), fields["packages"], storage)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, HfVitSegError):
            raise
        raise ManifestError(f"{storage.root}/{HEADER} is damaged: pass --overwrite, or another --out") from error


def check_settings(manifest: Manifest, settings: RunSettings) -> None:
    """Raise ManifestError if a manifest belongs to a run with other settings."""
    old, new = asdict(manifest.settings), json.loads(json.dumps(asdict(settings)))
    old = json.loads(json.dumps(old))
    changed = [name for name in new if new[name] != old[name]]
    if "options" in changed:
        changed.remove("options")
        keys = old["options"].keys() | new["options"].keys()
        changed += sorted(key for key in keys if old["options"].get(key) != new["options"].get(key))
    if changed:
        raise ManifestError(
            f"{manifest.storage.root} has results of a run with another {', '.join(changed)}: repeat that command to "
            "resume it, pass --overwrite to replace it, or choose another --out"
        )


def check_inputs(manifest: Manifest) -> None:
    """Raise ManifestError if local files have changed since they were planned, by size or time of modification.

    Their results would be those of the earlier content. Inputs at addresses are not compared.
    """
    changed = list(changed_files(manifest))
    if changed:
        raise ManifestError(
            f"{len(changed)} inputs have changed since the run in {manifest.storage.root} was planned: "
            f"{format_list(changed)}; pass --overwrite to segment all images again, or choose another --out"
        )


def changed_files(manifest: Manifest) -> Iterator[str]:
    """Yield the local files that have changed since they were planned."""
    folder = manifest.storage.folder
    planned = None if folder is None else os.stat(folder / HEADER).st_mtime_ns

    def has_changed(path: str, size: int) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return False  # removed: its results are still those of the image
        return size not in (UNKNOWN, status.st_size) or (planned is not None and status.st_mtime_ns > planned)

    local = [source.kind != "dataset" and not is_address(source.root) for source in manifest.sources]
    files = [source.kind == "files" and is_local for source, is_local in zip(manifest.sources, local, strict=True)]
    for source, is_local, is_folder in zip(manifest.sources, local, files, strict=True):
        if is_local and not is_folder and has_changed(source.root, UNKNOWN):
            yield source.root
    for shard in range(manifest.shards) if any(files) else ():
        for row in manifest.rows(shard):
            path = os.path.join(manifest.sources[row.source].root, row.path)
            if files[row.source] and has_changed(path, row.size):
                yield path


__all__ = [
    "FOLDER",
    "Manifest",
    "ManifestError",
    "Row",
    "RunSettings",
    "check_inputs",
    "check_settings",
    "plan_manifest",
    "read_manifest",
]
