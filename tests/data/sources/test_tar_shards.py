"""Tar files of WebDataset, Parquet files and addresses as sources of samples for every task."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.samples import Labels
from hf_vit_seg.data.sources.source_registry import SourceError, open_source
from hf_vit_seg.data.sources.tar_shards import expand_braces
from hf_vit_seg.data.storage.addresses import ConnectionLost
from hf_vit_seg.records import read_record
from hf_vit_seg.training.recipe.schema import Recipe


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def photo(number: int) -> bytes:
    return png(np.full((5, 7, 3), number, np.uint8))


def mask(number: int) -> bytes:
    return png(np.full((5, 7), number, np.uint8))


INSTANCES = np.zeros((5, 7), np.uint16)
INSTANCES[:2, :3], INSTANCES[3:, 4:] = 700, 3
CLASSES = np.where(INSTANCES == 700, 1, np.where(INSTANCES == 3, 2, 0)).astype(np.uint8)


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def opened(task: str, **settings: Any) -> Any:
    return open_source(settings, task)


def open_tar(path: Path | str, task: str = "segmentation", **settings: Any) -> Any:
    return opened(task, kind="webdataset", urls=str(path), **settings)


def test_masks_and_extensions(tmp_path):
    members = {"a/0.jpg": photo(0), "a/0.seg.png": mask(0), "b/0.JPG": photo(1), "b/0.SEG.PNG": mask(1)}
    path = write_tar(tmp_path / "x.tar", {**members, "._a.jpg": b"", "a/0.json": b"{}", "notes.txt": b""})
    source = open_tar(path)
    assert [source.name(index) for index in range(len(source))] == ["x.tar: a/0", "x.tar: b/0"]
    for index in (1, 0):
        sample = source.read(index)
        assert sample.image.unique().tolist() == sample.target.unique().tolist() == [index]
        assert source.files(index) == () and len(sample.encoded) == 2
    other = write_tar(tmp_path / "y.tar", {"0.jpg": photo(3), "0.png": mask(2)})
    assert open_tar(other, mask=".png").read(0).target.unique().tolist() == [2]
    assert open_tar(other, image="png", mask="jpg").read(0).image.unique().tolist() == [2]


def test_labels(tmp_path):
    members = {f"{n}.png": photo(n) for n in range(3)} | {f"{n}.cls": str(2 - n).encode() for n in range(3)}
    source = open_tar(write_tar(tmp_path / "a.tar", members), "classification")
    assert source.class_names is None and not source.multi_label
    assert [source.read(index).target for index in range(3)] == [2, 1, 0]
    members |= {f"{n}.txt": text.encode() for n, text in enumerate(("cat; dog", "", "ant"))}
    source = open_tar(write_tar(tmp_path / "b.tar", members), "classification", label="txt", separator=";")
    assert source.class_names == ("ant", "cat", "dog") and source.multi_label
    assert [source.read(index).target for index in range(3)] == [Labels((1, 2)), Labels(()), Labels((0,))]
    with pytest.raises(SourceError):
        open_tar(write_tar(tmp_path / "c.tar", {"0.png": photo(0), "0.cls": b"\xff"}), "classification")


def test_segments_of_tar_and_parquet_files_are_those_of_folders(tmp_path):
    parts = {"images": photo(1), "masks": png(CLASSES), "instances": png(INSTANCES)}
    for name, content in parts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(content)
    folders = {"kind": "folders", **{name: str(tmp_path / name) for name in parts}}
    suffixes = {"images": "png", "masks": "seg.png", "instances": "instances.png"}
    tar = write_tar(tmp_path / "a.tar", {f"0.{suffixes[name]}": content for name, content in parts.items()})
    row = {"image": {"bytes": parts["images"], "path": None}, "mask": parts["masks"], "instances": parts["instances"]}
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    parquet = {"kind": "parquet", "data_files": str(tmp_path / "a.parquet")}
    for task in ("instance", "panoptic"):
        expected = opened(task, **folders).read(0)
        for found in (open_tar(tar, task), opened(task, **parquet, mask_column="mask")):
            sample = found.read(0)
            assert sample.target.ids.equal(expected.target.ids) and sample.target.classes == expected.target.classes
            assert sample.target.regions == expected.target.regions and sample.image.equal(expected.image)
    del folders["masks"]
    expected = opened("instance", **folders).read(0).target
    assert opened("instance", **parquet).read(0).target.ids.equal(expected.ids)
    coded = opened("panoptic", **parquet, label_divisor=100).read(0).target
    assert coded.classes == opened("panoptic", **folders, label_divisor=100).read(0).target.classes
    with pytest.raises(SourceError):
        opened("panoptic", **parquet)


def test_incomplete_samples(tmp_path):
    members = {"0.png": photo(0), "0.seg.png": mask(0), "1.png": photo(1), "2.seg.png": mask(2)}
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(SourceError, match="2 of 3"):
        open_tar(path)
    source = open_tar(path, unpaired="skip")
    assert len(source) == 1 and source.read(0).image.unique().tolist() == [0]
    with pytest.raises(SourceError):
        open_tar(path, "instance")
    with pytest.raises(SourceError):
        open_tar(write_tar(tmp_path / "b.tar", {}))


def test_missing_class_maps_raise(tmp_path):
    members = {f"{n}.{end}": png(INSTANCES) for n in range(2) for end in ("png", "instances.png")}
    path = write_tar(tmp_path / "a.tar", members | {"0.seg.png": png(CLASSES)})
    with pytest.raises(SourceError):
        open_tar(path, "instance")
    assert len(open_tar(path, "instance", unpaired="skip")) == 1


@pytest.mark.parametrize("text", ["no tar file", "\0" * 10_240])
def test_other_files_raise(tmp_path, text):
    (tmp_path / "a.tar").write_text(text)
    with pytest.raises(SourceError):
        open_tar(tmp_path / "a.tar")


def test_repeated_members_and_missing_files_raise(tmp_path):
    repeated = [("0.png", photo(0)), ("0.png", photo(1)), ("0.seg.png", mask(0))]
    for path in (write_tar(tmp_path / "a.tar", repeated), tmp_path / "missing.tar", tmp_path / "*.gone"):
        with pytest.raises(SourceError):
            open_tar(path)
    with pytest.raises(SourceError):
        open_tar("memory://missing/x-*.tar")
    with pytest.raises(SourceError):
        open_tar("memory://missing/x.tar")


def test_shortened_tar_raises(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": photo(0), "0.seg.png": mask(0)})
    source = open_tar(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageFileError):
        source.read(0)


def test_equal_file_names_are_distinguished(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", {"0.png": photo(0), "0.seg.png": mask(0)})
    source = open_tar(tmp_path / "{a,b}" / "0.tar")
    assert len({source.name(0), source.name(1)}) == 2


def test_braces():
    assert list(expand_braces("x-{08..10}{a,b}.tar"))[:3] == ["x-08a.tar", "x-08b.tar", "x-09a.tar"]
    assert list(expand_braces("{8..10}")) == ["8", "9", "10"]
    assert list(expand_braces("plain.tar")) == ["plain.tar"]


def test_webdataset_reads_the_same_samples(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    members = {f"{n}.{end}": data(n) for n in range(3) for end, data in (("png", photo), ("seg.png", mask))}
    path = write_tar(tmp_path / "a.tar", members)
    source = open_tar(path)
    rows = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [row["__key__"] for row in rows] == list(source.keys)
    for index, row in enumerate(rows):
        image, found = source.read(index).encoded
        assert (image.data, found.data) == (row["png"], row["seg.png"])


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/sources", recursive=True)


def test_class_folders_at_an_address(memory):
    memory.pipe({f"/sources/{name}/{n}.png": photo(n) for name in ("cat", "ant") for n in range(2)})
    memory.pipe("/sources/readme.png", photo(0))
    source = opened("classification", kind="class_folders", root="memory://sources")
    assert source.class_names == ("ant", "cat") and len(source) == 4
    assert (source.name(3), source.read(3).target, source.read(3).image.unique().tolist()) == ("cat/1.png", 1, [1])


def test_templates_at_an_address(memory):
    memory.pipe(
        {f"/sources/{n}{end}": data(n) for n in range(2) for end, data in (("_x.png", photo), ("_y.png", mask))}
    )
    source = opened(
        "segmentation", kind="folders", images="memory://sources/{stem}_x.png", masks="memory://sources/{stem}_y.png"
    )
    assert [source.read(index).target.unique().tolist() for index in range(2)] == [[0], [1]]
    with pytest.raises(SourceError):
        opened("segmentation", kind="folders", images="memory://sources", masks="memory://nothing")
    with pytest.raises(SourceError):
        opened("segmentation", kind="folders", images="https://host/images", masks="https://host/masks")


def test_lists_at_an_address(memory):
    memory.pipe({"/sources/list.csv": b"image,label\r\n0.png,cat\r\nmemory://sources/sub/1.png,ant\r\n"})
    memory.pipe({"/sources/0.png": photo(0), "/sources/sub/1.png": photo(1)})
    source = opened("classification", kind="list", file="memory://sources/list.csv")
    assert source.class_names == ("ant", "cat")
    assert [source.read(index).image.unique().tolist() for index in range(2)] == [[0], [1]]
    with pytest.raises(SourceError):
        opened("classification", kind="list", file="memory://sources/missing.csv")


def test_lost_connection_is_not_skipped(memory, monkeypatch):
    """`data.on_error: skip` leaves broken images out, but no image that is to be read later."""
    memory.pipe({f"/sources/{kind}/{n}.png": mask(n) for kind in ("images", "masks") for n in range(2)})
    memory.pipe("/sources/images/1.png", b"broken")
    source = {"kind": "folders", "images": "memory://sources/images", "masks": "memory://sources/masks"}
    settings = {
        "model": {"architecture": "segformer", "variant": "tiny"},
        "loop": {"steps": 1},
        "data": {"train": source, "classes": ["a", "b"], "on_error": "skip", "max_skipped": 0.5},
    }
    recipe = read_record(Recipe, settings)
    assert len(check(recipe).splits["train"].facts) == 1
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def refuse(self, path, **options):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(type(memory), "cat_file", refuse)
    with pytest.raises(ConnectionLost):
        check(recipe)
