"""Publish the results of batch inference as a dataset, in one commit."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_vit_seg.inference.batch.manifest import Manifest, read_manifest
from hf_vit_seg.inference.batch.outputs import DATA, shard_file
from hf_vit_seg.inference.batch.shard import read_status
from hf_vit_seg.inference.batch.storage import Storage

from .card_text import to_phrase
from .repository import Content, PushError, Target, commit, resolve_target

PATTERN = "train-*.parquet"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {data}/{pattern}
task_categories:
- image-segmentation
tags:
- hf_vit_seg
- predictions
---

# {title}

Label maps predicted by {model}, for {images} images. They are predictions, not annotations.

```python
from datasets import load_dataset

data = load_dataset("{repo}", split="train")
label_map = data[0]["label_map"]  # a PIL image, the index of the class of each pixel
```

`classes` lists the classes of each image with their pixels. The classes are:

| index | class | color |
| --- | --- | --- |
{rows}
"""


def push_dataset(out: str | Path, target: Target) -> str:
    """Push the Parquet files of a finished run in one commit, and return its address.

    `out` is its folder or fsspec address. Files of an earlier push are replaced. Raises PushError if there is no such
    run, or if it is not finished.
    """
    manifest = read_manifest(Storage(str(out)))
    if manifest is None or manifest.settings.format != "parquet":
        raise PushError(f"{out} has no Parquet files of a run of batch inference: segment with --format parquet")
    missing = [index for index in range(manifest.shards) if read_status(manifest, index) is None]
    if missing:
        raise PushError(f"{len(missing)} of {manifest.shards} shards are not finished: run the same command again")
    with local_files(manifest) as files:
        return push_files(files, resolve_target(target, "dataset"))


@contextmanager
def local_files(manifest: Manifest) -> Iterator[list[Path]]:
    """The Parquet files of a run on this machine, downloaded if the output is an address."""
    storage = manifest.storage
    names = [shard_file(manifest, index, ".parquet") for index in range(manifest.shards)]
    if storage.folder is not None:
        yield [storage.folder / name for name in names]
        return
    with TemporaryDirectory() as folder:
        copies = [Path(folder, Path(name).name) for name in names]
        for name, path in zip(names, copies, strict=True):
            with storage.open(name) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        yield copies


def push_files(files: list[Path], target: Target) -> str:
    """Push Parquet files and a card in one commit, and return its address."""
    content: Content = {
        "README.md": dataset_card(files, target.repo_id).encode(),
        **{f"{DATA}/{file.name}": file for file in files},
    }
    done = commit(target, content, lambda path: path.startswith(f"{DATA}/"), repo_type="dataset")
    return done.pr_url or done.commit_url


def dataset_card(files: list[Path], repo: str) -> str:
    """Return the card of a dataset of predictions."""
    import pyarrow.parquet

    about = read_about(files[0])
    images = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    model = about["model"]
    shown = (
        f"`{to_phrase(model)}`"
        if model.startswith(".") or "/" not in model
        else f"[{model}](https://huggingface.co/{model})"
    )
    rows = (
        f"| {index} | {to_phrase(name)} | #{''.join(f'{value:02x}' for value in color)} |"
        for index, (name, color) in enumerate(zip(about["names"], about["palette"], strict=True))
    )
    title = repo.partition("/")[2] or repo
    return CARD.format(
        data=DATA, pattern=PATTERN, title=title, model=shown, images=f"{images:,}", repo=repo, rows="\n".join(rows)
    )


def read_about(file: Path) -> dict[str, Any]:
    """Return the model, class names and palette in the metadata of a Parquet file. Raises PushError."""
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(file).metadata or {}
        return json.loads(metadata[b"hf_vit_seg"])
    except (KeyError, ValueError, OSError) as error:
        raise PushError(f"{file} was not written by a run of batch inference") from error


__all__ = ["push_dataset"]
