"""Sources of files: folders, lists, class folders; and the table of all sources."""

import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_vit_seg.data.sources.source import SourceRecord
from hf_vit_seg.data.sources.source_registry import SOURCES, SourceError, open_source
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import Task


def save(path: Path, value: int = 0, mode: str = "L", size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.full(size[::-1], value, np.uint8))
    else:
        Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


def folders(root: Path, images: str = "images", masks: str = "masks", task: str = "segmentation", **settings):
    settings = {"kind": "folders", "images": f"{root}/{images}", "masks": f"{root}/{masks}", **settings}
    return open_source(settings, task)


def check(source, pairs: list[tuple[str, int, int]]) -> None:
    """Check the samples of a source: name, image value, mask value (or class)."""
    found = []
    for index in range(len(source)):
        sample = source.read(index)
        assert sample.name == source.name(index)
        assert sample.image.shape == (3, 3, 4)
        target = sample.target if isinstance(sample.target, int) else int(sample.target.unique())
        found.append((sample.name, int(sample.image.unique()), target))
        assert source.files(index)[0].is_file() and source.files(index)[-1].is_file()
    assert found == pairs
    assert [pickle.loads(pickle.dumps(source)).name(i) for i in range(len(source))] == [name for name, _, _ in pairs]


def test_folders_are_paired_by_relative_stem(tmp_path):
    for number, stem in enumerate(["b", "a", "town/a", "x.y"]):
        save(tmp_path / f"images/{stem}.png", number)
        save(tmp_path / f"masks/{stem}.{'npy' if number % 2 else 'tif'}", 10 + number)
    save(tmp_path / "images/.hidden.png")
    (tmp_path / "images/notes.txt").write_text("not an image")
    check(folders(tmp_path), [("a.png", 1, 11), ("b.png", 0, 10), ("town/a.png", 2, 12), ("x.y.png", 3, 13)])


def test_folder_symlinks_are_followed_without_cycles(tmp_path):
    for number, stem in enumerate(["near/a", "far/a"]):
        for part, value in (("images", number), ("masks", 10 + number)):
            save(tmp_path / ("" if stem[0] == "n" else "elsewhere") / part / f"{stem}.png", value)
    for part in ("images", "masks"):
        (tmp_path / part / "linked").symlink_to(tmp_path / "elsewhere" / part)
        (tmp_path / "elsewhere" / part / "far" / "back").symlink_to(tmp_path / part)
        (tmp_path / part / "near" / "self").symlink_to(".")
    check(folders(tmp_path), [("linked/far/a.png", 1, 11), ("near/a.png", 0, 10)])


@pytest.mark.parametrize(
    ("images", "masks", "paths"),
    [
        ("images/{stem}_rgb.png", "masks/{stem}_label.png", [("images/1_rgb.png", "masks/1_label.png")]),
        ("images/img_{stem}.png", "masks/seg_{stem}.png", [("images/img_1.png", "masks/seg_1.png")]),
        (
            "leftImg8bit/{stem}_i.png",
            "gtFine/{stem}_m.png",
            [("leftImg8bit/ulm/ulm_1_i.png", "gtFine/ulm/ulm_1_m.png")],
        ),
        (
            "{stem}/image.png",
            "{stem}/mask.png",
            [("1/image.png", "1/mask.png"), ("deep/1/image.png", "deep/1/mask.png")],
        ),
        ("{stem}.png", "{stem}.tif", [("1.png", "1.tif")]),
        ("both/{stem}", "both/{stem}_mask", [("both/a.png", "both/a_mask.png")]),
        ("images", "masks/{stem}_m.png", [("images/a.png", "masks/a_m.png"), ("images/b/a.png", "masks/b/a_m.png")]),
        ("data", "data/masks", [("data/a.png", "data/masks/a.png"), ("data/b/a.png", "data/masks/b/a.png")]),
        ("data/images", "data", [("data/images/a.png", "data/a.png")]),
    ],
)
def test_templates_and_nested_folders(tmp_path, images, masks, paths):
    for number, (image, mask) in enumerate(paths):
        save(tmp_path / image, number)
        save(tmp_path / mask, 10 + number)
    source = folders(tmp_path, images, masks, unpaired="skip")
    assert [(int(source.read(i).image.max()), int(source.read(i).target.max())) for i in range(len(source))] == [
        (number, 10 + number) for number in range(len(paths))
    ]


@given(
    st.sets(
        st.text("ab/._", min_size=1, max_size=5).filter(lambda s: all(p.strip(".") for p in s.split("/"))), min_size=1
    )
)
def test_every_pair_is_found(tmp_path_factory, stems):
    stems = {stem for stem in stems if not any(part.startswith(".") for part in stem.split("/"))}
    stems = {stem for stem in stems if not any(other.startswith(f"{stem}.png/") for other in stems)}
    if not stems:
        return
    root = tmp_path_factory.mktemp("pairs")
    for stem in stems:
        for name in (f"images/{stem}.png", f"masks/{stem}.png"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    source = folders(root)
    assert {source.name(index) for index in range(len(source))} == {f"{stem}.png" for stem in stems}
    for index in range(len(source)):
        image, mask = source.files(index)
        assert image.relative_to(root / "images") == mask.relative_to(root / "masks")


def test_unpaired_files_are_reported(tmp_path):
    for stem in "abcdef":
        save(tmp_path / f"images/{stem}.png")
    for stem in "fg":
        save(tmp_path / f"masks/{stem}.png")
    with pytest.raises(SourceError) as error:
        folders(tmp_path)
    assert "5 of 6 images have no mask (a, b, c and 2 more); 1 of 2 masks have no image (g)" in str(error.value)
    assert "unpaired: skip" in str(error.value)
    check(folders(tmp_path, unpaired="skip"), [("f.png", 0, 0)])
    (tmp_path / "masks/f.png").unlink()
    with pytest.raises(SourceError, match="6 of 6 images have no mask"):
        folders(tmp_path, unpaired="skip")


def test_incomplete_folders_raise(tmp_path):
    save(tmp_path / "images/a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"^data: masks: .*/masks: the folder does not exist$"):
        folders(tmp_path)
    with pytest.raises(SourceError, match="found a file, expected a folder"):
        folders(tmp_path, masks="images/a.png")
    with pytest.raises(SourceError, match="/empty: found no image files"):
        folders(tmp_path, masks="empty")
    with pytest.raises(SourceError, match="once and no other braces"):
        folders(tmp_path, masks="images/{name}.png")
    with pytest.raises(SourceError, match=r"relative paths start from /"):
        open_source({"kind": "folders", "images": "no/where", "masks": "no"}, "segmentation")
    save(tmp_path / "images/a.tif")
    with pytest.raises(
        SourceError, match=r"two files with the stem 'a', a\.png and a\.tif.*template such as '.*/{stem}\.tif'"
    ):
        folders(tmp_path, masks="images/{stem}.png")


def listing(path: Path, text: str, task: str = "segmentation", **settings):
    path.write_text(text, encoding="utf-8")
    return open_source({"kind": "list", "file": str(path), **settings}, task, 3)


def test_lists_of_masks(tmp_path):
    save(tmp_path / "a b.png", 1), save(tmp_path / "m/1.png", 11)
    save(tmp_path / "b.png", 2), save(tmp_path / "m/2.png", 12)
    expected = [("b.png", 2, 12), ("a b.png", 1, 11)]
    text = 'id,image,mask\n0,b.png,m/2.png\n1,"a b.png",m/1.png\n'
    check(listing(tmp_path / "l.csv", "\ufeff" + text), expected)
    check(listing(tmp_path / "l.tsv", text.replace(",", "\t").replace("mask", "y"), target_column="y"), expected)
    check(listing(tmp_path / "l.txt", "# image mask\nb.png m/2.png\n\n"), expected[:1])
    (tmp_path / "lists").mkdir()
    check(listing(tmp_path / "lists/l.txt", "b.png m/2.png", root=str(tmp_path)), expected[:1])


def test_lists_of_labels(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        save(tmp_path / f"{name}.png", value)
    named = listing(tmp_path / "l.csv", "image,label\na.png,dog\nb.png,cat\nc.png,dog\n", "classification")
    assert named.class_names == ("cat", "dog")
    check(named, [("a.png", 1, 1), ("b.png", 2, 0), ("c.png", 3, 1)])
    numbered = listing(tmp_path / "l.txt", "a.png 7\nb.png 0\n", "classification")
    assert numbered.class_names is None
    check(numbered, [("a.png", 1, 7), ("b.png", 2, 0)])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.csv", "photo,mask\na.png,a.png\n", "no column 'image', found photo, mask"),
        ("l.csv", "", "no column 'image', found none"),
        ("l.csv", "image,mask\n", "lists no images"),
        ("l.csv", "image,mask\na.png,\n", "line 2: both image and mask are required"),
        (
            "l.csv",
            "image,mask\na.png,a.png\nb.png,a.png\nc.png,a.png\n",
            r"lists 3 files, of which 2 do not exist: .*/b\.png, .*/c\.png",
        ),
        ("l.csv", "image,mask\na.png,a.png\na.png,a.png\n", "more than once: a.png"),
        ("l.txt", "a.png\n", "line 1: found 1 words, expected two, image and target"),
        ("l.txt", "a.png a.png\na b.png a.png\n", "line 2: found 3 words.*: if paths have spaces, use a .csv"),
    ],
)
def test_invalid_lists_raise(tmp_path, name, text, reason):
    save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=reason) as error:
        listing(tmp_path / name, text)
    assert str(tmp_path / name) in str(error.value)


def test_unreadable_lists_raise(tmp_path):
    with pytest.raises(SourceError, match=r"no\.csv: the file does not exist"):
        open_source({"kind": "list", "file": str(tmp_path / "no.csv")}, "segmentation")
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="is not UTF-8 text"):
        open_source({"kind": "list", "file": str(tmp_path / "l.csv")}, "segmentation")


def test_class_folders(tmp_path):
    for number, name in enumerate(["dog/2.png", "cat/deep/1.png", "dog/1.npy"]):
        save(tmp_path / name, number)
    save(tmp_path / ".cache/1.png")
    save(tmp_path / "beside.png")
    source = open_source({"kind": "class_folders", "root": str(tmp_path)}, "classification")
    assert source.class_names == ("cat", "dog")
    check(source, [("cat/deep/1.png", 1, 0), ("dog/1.npy", 2, 1), ("dog/2.png", 0, 1)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="folders without images: empty"):
        open_source({"kind": "class_folders", "root": str(tmp_path)}, "classification")
    with pytest.raises(SourceError, match="has no subfolders"):
        open_source({"kind": "class_folders", "root": str(tmp_path / "dog")}, "classification")


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_digits(share):
    settings = {"kind": "sklearn_digits", "share": share}
    train, test = (open_source({**settings, "split": split}, "classification", 1) for split in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert len(test) == pytest.approx(share * 1797, abs=1)
    names = {source.name(index) for source in (train, test) for index in range(len(source))}
    assert len(names) == 1797
    labels = torch.tensor([test.read(index).target for index in range(len(test))])
    assert labels.bincount().tolist() == pytest.approx([180 * share] * 10, abs=3)
    pixels = torch.stack([train.read(index).image for index in range(200)])
    assert pixels.shape == (200, 1, 8, 8) and pixels.dtype == torch.uint8
    assert (pixels.min(), pixels.max()) == (0, 255) and len(pixels.unique()) == 17
    wide = open_source({**settings, "split": "train"}, "classification", 3).read(5).image
    assert torch.equal(wide, pixels[5].expand(3, -1, -1))


def test_source_table_reports_expected_keys(tmp_path):
    with pytest.raises(RecordError, match="unknown data source 'folder'; did you mean 'folders'"):
        open_source({"kind": "folder"}, "segmentation", location="data.train")
    with pytest.raises(RecordError, match=r"data\.train\.mask is not a known setting; did you mean 'masks'"):
        open_source({"kind": "folders", "images": "a", "mask": "b"}, "segmentation", location="data.train")
    with pytest.raises(SourceError, match=r"data\.train: sklearn_digits supports classification, but the task is seg"):
        open_source({"kind": "sklearn_digits", "split": "test"}, "segmentation", location="data.train")


def test_every_source_documents_tasks_and_options():
    for name, row in SOURCES.rows.items():
        assert row.tasks and set(row.tasks) <= set(get_args(Task)), name
        texts = [base.__doc__ or "" for base in row.__mro__ if issubclass(base, SourceRecord)]
        documented = {line.strip().partition(":")[0] for line in "\n".join(texts).splitlines()}
        assert set(row.model_fields) <= documented, name
