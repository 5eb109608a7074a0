"""Training from tar files, Parquet files and addresses is the same as from folders, also after a resumption."""

import io
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
from huggingface_hub import HfApi, HfFileSystem
from test_resume import assert_same_run, metrics_without_times, same
from tiny_runs import log, run, settings, weights, write_data, write_recipe
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.error_reporting import DONE
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.recipe_loading import load_recipe

SPLITS = ("train", "validation")
KINDS = ("images", "masks")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("folders"))


def recipe_of(folder: Path, sources: dict[str, Any]) -> Path:
    """Ten images, three per step, with all sources of randomness."""
    loop = {"steps": 6, "batch_size": 3, "log_every": 1, "evaluate_every": 6, "checkpoint_every": 4}
    changes = settings(folder, loop=loop | {"ema": {"decay": 0.9}})
    changes["data"] |= sources
    changes["model"]["fields"] = {"drop_path_rate": 0.2, "decode_head_dropout_prob": 0.2}
    folder.mkdir(exist_ok=True)
    return write_recipe(folder, changes)


@pytest.fixture(scope="module")
def from_folders(folders, tmp_path_factory) -> Path:
    """The run that the others are compared with."""
    out = tmp_path_factory.mktemp("run") / "out"
    sources = {
        name: {"kind": "folders", **{k: str(folders / name / k) for k in ("images", "masks")}} for name in SPLITS
    }
    assert run(recipe_of(out.parent, sources), out) is RunStatus.finished
    return out


def pairs(folder: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """The stem, image and mask of each sample."""
    for path in sorted((folder / "images").iterdir()):
        yield path.stem, path.read_bytes(), (folder / "masks" / path.name).read_bytes()


def write_tars(folders: Path, out: Path) -> Path:
    """Two tar files per split, as WebDataset writes them."""
    out.mkdir(exist_ok=True)
    for split in SPLITS:
        samples = list(pairs(folders / split))
        for shard, part in enumerate((samples[:2], samples[2:])):
            with tarfile.open(out / f"{split}-{shard:03d}.tar", "w") as tar:
                for stem, image, mask in part:
                    for suffix, data in (("png", image), ("json", b"{}"), ("seg.png", mask)):
                        member = tarfile.TarInfo(f"{stem}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return out


def write_parquets(folders: Path, out: Path) -> Path:
    """Two Parquet files per split, with several row groups, as `datasets` writes them."""
    out.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    for split in SPLITS:
        rows = [{"image": {"bytes": i, "path": None}, "mask": {"bytes": m, "path": None}} for _, i, m in
                pairs(folders / split)]  # fmt: skip
        for shard, part in enumerate((rows[:2], rows[2:])):
            columns = {name: [row[name] for row in part] for name in ("image", "mask")}
            table = datasets.Dataset.from_dict(columns, features)
            table.to_parquet(out / f"{split}-{shard}.parquet", batch_size=2)
    return out


def copy_to_memory(folder: Path, root: str) -> str:
    """Copy the files of a folder to fsspec's memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"memory:/{root}"


class RangeHandler(SimpleHTTPRequestHandler):
    """A web server that supports ranges, as those of archives do."""

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        found = self.headers.get("Range")
        start, stop = map(int, found.removeprefix("bytes=").split("-")) if found else (0, len(data) - 1)
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {start}-{min(stop, len(data) - 1)}/{len(data)}")
        self.send_header("Content-Length", str(len(data[start : stop + 1])))
        self.end_headers()
        self.wfile.write(data[start : stop + 1])

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(Path(self.translate_path(self.path)).stat().st_size))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder over http, and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def write_list(folders: Path, out: Path, root: str) -> str:
    """A list of images and masks for each split, with addresses of images."""
    for split in SPLITS:
        lines = [f"{root}/{split}/images/{stem}.png,{split}/masks/{stem}.png" for stem, *_ in pairs(folders / split)]
        (out / f"{split}.csv").write_text("image,mask\n" + "\n".join(lines) + "\n")
    return str(out)


Sources = dict[str, dict[str, Any]]


@contextmanager
def tar_files(folders: Path, out: Path) -> Iterator[Sources]:
    write_tars(folders, out)
    yield {name: {"kind": "webdataset", "urls": str(out / f"{name}-{{000..001}}.tar")} for name in SPLITS}


@contextmanager
def tar_files_in_memory(folders: Path, out: Path) -> Iterator[Sources]:
    root = copy_to_memory(write_tars(folders, out), "/tar_forms")
    yield {name: {"kind": "webdataset", "urls": f"{root}/{name}-*.tar"} for name in SPLITS}
    fsspec.filesystem("memory").rm("/tar_forms", recursive=True)


@contextmanager
def tar_files_over_http(folders: Path, out: Path) -> Iterator[Sources]:
    with serve_folder(write_tars(folders, out)) as root:
        urls = {name: [f"{root}/{name}-000.tar", f"{root}/{name}-001.tar"] for name in SPLITS}
        yield {name: {"kind": "webdataset", "urls": found} for name, found in urls.items()}


@contextmanager
def cached_tar_files(folders: Path, out: Path) -> Iterator[Sources]:
    with serve_folder(write_tars(folders, out)) as root:
        urls = {name: f"simplecache::{root}/{name}-{{000..001}}.tar" for name in SPLITS}
        yield {name: {"kind": "webdataset", "urls": found} for name, found in urls.items()}


@contextmanager
def parquet_files(folders: Path, out: Path) -> Iterator[Sources]:
    write_parquets(folders, out)
    yield {name: {"kind": "parquet", "data_files": str(out / f"{name}-*.parquet")} for name in SPLITS}


@contextmanager
def parquet_files_in_memory(folders: Path, out: Path) -> Iterator[Sources]:
    root = copy_to_memory(write_parquets(folders, out), "/parquet_forms")
    files = {name: [f"{root}/{name}-{number}.parquet" for number in range(2)] for name in SPLITS}
    yield {name: {"kind": "parquet", "data_files": found} for name, found in files.items()}
    fsspec.filesystem("memory").rm("/parquet_forms", recursive=True)


@contextmanager
def folders_in_memory(folders: Path, out: Path) -> Iterator[Sources]:
    root = copy_to_memory(folders, "/folder_forms")
    kinds = ("images", "masks")
    yield {name: {"kind": "folders", **{kind: f"{root}/{name}/{kind}" for kind in kinds}} for name in SPLITS}
    fsspec.filesystem("memory").rm("/folder_forms", recursive=True)


@contextmanager
def list_over_http(folders: Path, out: Path) -> Iterator[Sources]:
    with serve_folder(folders) as root:
        write_list(folders, out, root)
        yield {name: {"kind": "list", "file": str(out / f"{name}.csv"), "root": root} for name in SPLITS}


@contextmanager
def hub_dataset(folders: Path, out: Path) -> Iterator[Sources]:
    HfApi().create_repo("me/forms", repo_type="dataset")
    HfApi().upload_folder(repo_id="me/forms", repo_type="dataset", folder_path=write_tars(folders, out))
    HfFileSystem.clear_instance_cache()
    yield {name: {"kind": "webdataset", "urls": f"hf://datasets/me/forms/{name}-*.tar"} for name in SPLITS}
    HfFileSystem.clear_instance_cache()


@contextmanager
def saved_dataset(folders: Path, out: Path) -> Iterator[Sources]:
    files = {name: str(write_parquets(folders, out) / f"{name}-*.parquet") for name in SPLITS}
    datasets.load_dataset("parquet", data_files=files).save_to_disk(out / "saved")
    yield {name: {"kind": "huggingface", "name": str(out / "saved"), "split": name} for name in SPLITS}


FORMS = [
    tar_files,
    tar_files_in_memory,
    tar_files_over_http,
    cached_tar_files,
    parquet_files,
    parquet_files_in_memory,
    folders_in_memory,
    list_over_http,
    hub_dataset,
    saved_dataset,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.usefixtures("hub")
def test_interrupted_run_is_that_from_folders(form: Callable[..., Any], folders, from_folders, tmp_path, monkeypatch):
    from hf_vit_seg.training.loop import trainer as module

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    take, out = module.OptimizerStep.take, tmp_path / "parts"

    def stopping(self, step, window, request):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, step, window, request)

    (tmp_path / "data").mkdir()
    with form(folders, tmp_path / "data") as sources:
        recipe = recipe_of(tmp_path / "recipe", sources)
        checked = CliRunner().invoke(app, ["check-data", str(recipe)])
        assert checked.exit_code == DONE, checked.output
        with monkeypatch.context() as patch:
            patch.setattr(module.OptimizerStep, "take", stopping)
            assert run(recipe, out) is RunStatus.interrupted
        assert [step for step, _ in log(out)] == [1, 2, 3, 4]
        assert run(recipe, out, resume=True) is RunStatus.finished
        done = CliRunner().invoke(app, ["evaluate", str(out / "best"), "--recipe", str(out / "recipe.yaml")])
        assert done.exit_code == DONE, done.output
    for model in ("best", "last"):
        assert same(weights(out / model), weights(from_folders / model))
        assert metrics_without_times(out / model / "metrics.json") == metrics_without_times(
            from_folders / model / "metrics.json"
        )
    for key in ("loss", "grad_norm", "evaluation"):
        assert log(out, key) == log(from_folders, key) != []


def test_loader_processes_read_the_same(folders, from_folders, tmp_path):
    """Two processes, which read ranges of tar files at addresses side by side."""
    with tar_files_over_http(folders, tmp_path) as sources:
        recipe = recipe_of(tmp_path / "recipe", sources)
        assert run(recipe, tmp_path / "out", "data.workers=2") is RunStatus.finished
    assert same(weights(tmp_path / "out/last"), weights(from_folders / "last"))


def test_resumed_run_from_tar_files_has_the_same_state(folders, tmp_path, monkeypatch):
    from hf_vit_seg.training.loop import trainer as module

    take = module.OptimizerStep.take

    def stopping(self, step, window, request):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, step, window, request)

    (tmp_path / "data").mkdir()
    with tar_files(folders, tmp_path / "data") as sources:
        recipe = recipe_of(tmp_path / "recipe", sources)
        assert run(recipe, tmp_path / "whole") is RunStatus.finished
        with monkeypatch.context() as patch:
            patch.setattr(module.OptimizerStep, "take", stopping)
            assert run(recipe, tmp_path / "parts") is RunStatus.interrupted
        assert run(recipe, tmp_path / "parts", resume=True) is RunStatus.finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_samples_are_opened_in_order_of_folders(folders, tmp_path):
    (tmp_path / "data").mkdir()
    with tar_files(folders, tmp_path / "data") as sources:
        found = open_split(load_recipe(recipe_of(tmp_path / "recipe", sources)), "train")
    assert found is not None
    assert [found.name(index) for index in (0, 2)] == ["train-000.tar: 00", "train-001.tar: 02"]
