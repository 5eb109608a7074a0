"""The check of all files before training, and `hf-vit-seg check-data`."""

import errno
import json
import os
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hf_vit_seg.cli import app
from hf_vit_seg.data.checks.check import BadDataError, check, require_valid_data, single_threaded_torch
from hf_vit_seg.data.datasets import RawDataset, open_split
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.class_table import UnknownValueError
from hf_vit_seg.records import read_record
from hf_vit_seg.training.data_check import check_data, report_content
from hf_vit_seg.training.figures.contact_sheet import contact_sheet, select_samples
from hf_vit_seg.training.recipe.schema import Recipe

MAGENTA = (255, 0, 255)
CLASSES = ["sky", "road", "car"]


def write_pair(folder: Path, name: str, mask: np.ndarray, image: np.ndarray | None = None) -> None:
    """A PNG and its mask; without `image`, noise that is seeded by the name."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if image is None:
        image = np.random.default_rng(list(name.encode())).integers(0, 255, (*mask.shape[:2], 3))
    Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{name}.png")
    Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{name}.png")


def masks(count: int, values=(0, 1, 2), seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.choice(values, generator.integers(8, 24, 2)) for _ in range(count)]


def recipe(folder: Path, validation: bool = False, task: str = "segmentation", **data) -> Recipe:
    """A recipe with training data in `folder`/train."""

    def source(split: str) -> dict:
        return {"kind": "folders", "images": f"{folder / split}/images", "masks": f"{folder / split}/masks"}

    settings = {"train": source("train"), "classes": CLASSES, **data}
    if validation:
        settings["validation"] = source("validation")
    model = {"architecture": "segformer", "variant": "nano"}
    return read_record(Recipe, {"task": task, "model": model, "data": settings, "loop": {"steps": 1}})


@pytest.fixture
def good(tmp_path) -> Path:
    for split, seed in (("train", 0), ("validation", 1)):
        for i, mask in enumerate(masks(6, seed=seed)):
            write_pair(tmp_path / split, f"{split}_{i}", mask)
    return tmp_path


def test_valid_data_is_counted_without_problems(good):
    report = check(recipe(good, validation=True))
    assert not report.problems and not report.warnings
    for split, seed in (("train", 0), ("validation", 1)):
        everything = masks(6, seed=seed)
        assert report.class_counts(split) == [sum(int((m == k).sum()) for m in everything) for k in range(3)]
        assert [len(c.samples) for c in report.splits[split].classes] == [
            sum((m == k).any() for m in everything) for k in range(3)
        ]
    assert report.splits["train"].kinds == {"3 x uint8": 6}
    assert sum(report.splits["train"].sizes.values()) == 6


def test_class_counts_match_the_label_map(good):
    """Merged values, a preset and ignored values; fractions are per class and not per raw value."""
    merged = recipe(good, classes=[{"name": "ground", "values": [1, 2]}, {"name": "sky", "values": [0]}])
    raw = check(recipe(good)).class_counts()
    assert check(merged).class_counts() == [raw[1] + raw[2], raw[0]]
    reduced = check(recipe(good, preset="reduce_zero_label", classes=["road", "car"]))
    assert reduced.class_counts() == raw[1:] and reduced.splits["train"].ignored_count == raw[0]
    ignored = check(recipe(good, ignore=[2], classes=["sky", "road"]))
    assert ignored.class_counts() == raw[:2] and not ignored.problems


def test_unknown_values_are_reported_with_files(good):
    strange = np.zeros((10, 10))
    strange[2:5, 2:6] = 7
    write_pair(good / "train", "strange", strange)
    report = check(recipe(good))
    (problem,) = report.problems
    assert "7 (12 pixels in " in problem and str(good / "train/masks/strange.png") in problem and "0 .. 2" in problem
    with pytest.raises(BadDataError, match=r"cannot be used: train: .* 7 "):
        require_valid_data(recipe(good), {"train": open_split(recipe(good), "train"), "validation": None})
    lenient = check(recipe(good, unknown="ignore"))
    assert not lenient.problems and "unknown values that are ignored: 7 (12 pixels)" in lenient.warnings[0]
    assert not check(recipe(good, ignore=[7])).problems


def test_all_errors_are_reported_and_the_rest_counted(good):
    train = good / "train"
    names = sorted(path.name for path in (train / "images").iterdir())
    (train / "images" / names[0]).write_bytes(b"no image")
    (train / "masks" / names[1]).write_bytes((train / "masks" / names[1]).read_bytes()[:60])
    write_pair(train, "turned", np.zeros((10, 20)), np.zeros((20, 10, 3)))
    (train / "masks" / names[2]).unlink()
    Image.fromarray(masks(1)[0].astype(np.uint8)).save(train / "masks" / names[2].replace("png", "jpg"))
    report = check(recipe(good))
    problems = dict(zip(("image", "mask", "jpeg", "size"), report.problems, strict=True))
    assert str(train / "images" / names[0]) in problems["image"]
    assert str(train / "masks" / names[1]) in problems["mask"]
    assert "JPEG" in problems["jpeg"] and "turned.png" in problems["size"] and "EXIF" in problems["size"]
    assert sum(report.class_counts()) == sum(m.size for m in masks(6)[3:])
    with pytest.raises(BadDataError, match="; 1 more are shown"):
        require_valid_data(recipe(good), {"train": open_split(recipe(good), "train")})


def test_duplicates_across_splits_are_found_by_pixels(good):
    image = np.random.default_rng(5).integers(0, 255, (9, 9, 3))
    write_pair(good / "train", "one", np.zeros((9, 9)), image)
    write_pair(good / "train", "other", np.ones((9, 9)), image)
    write_pair(good / "validation", "again", np.zeros((9, 9)), image)
    path = good / "validation/images/again.png"
    Image.open(path).save(path.with_suffix(".bmp"))  # another file with the same pixels
    path.unlink()
    warnings = check(recipe(good, validation=True)).warnings
    assert warnings == [
        "train: images that occur more than once: one.png = other.png",
        "train and validation share images: one.png = again.bmp",
    ]


def test_absent_classes_and_empty_samples_warn(good):
    write_pair(good / "train", "void", np.full((8, 8), 255))
    report = check(recipe(good, classes=[*CLASSES, "bus"]))
    assert not report.problems
    assert "1 of 4 classes do not occur in 7 samples: bus" in report.warnings[0]
    assert "without a label of any class" in report.warnings[1] and "void.png" in report.warnings[1]


def test_fully_ignored_data_is_a_problem(tmp_path):
    for i in range(3):
        write_pair(tmp_path / "train", f"{i}", np.full((8, 8), 255))
    assert "all values of all samples are ignored" in check(recipe(tmp_path)).problems[0]


def test_mixed_bit_depths_are_a_problem(good):
    tall = np.random.default_rng(0).integers(0, 60000, (3, 10, 10)).astype(np.float32)
    (good / "train/images/deep.npy").write_bytes(b"")
    np.save(good / "train/images/deep.npy", tall)
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(good / "train/masks/deep.png")
    (problem,) = check(recipe(good)).problems
    assert "must have equal channels and depth" in problem and "6 of 3 x uint8, 1 of 3 x float32 (deep.npy)" in problem


@pytest.mark.parametrize(("values", "deep"), [(np.uint8, False), (np.float32, True), (np.uint16, True)])
def test_high_bit_depth_without_normalization_warns(tmp_path, values, deep):
    write_pair(tmp_path / "train", "0", np.arange(64).reshape(8, 8) % 3)
    (tmp_path / "train/images/0.png").unlink()
    np.save(tmp_path / "train/images/0.npy", np.arange(4 * 64).reshape(4, 8, 8).astype(values))
    settings = recipe(tmp_path, channels=4)
    assert any("more than 8 bits" in warning for warning in check(settings).warnings) is deep
    scales = {"image_mean": "computed", "image_std": "computed"}, {"rescale_factor": 1 / 65535}, {"do_rescale": False}
    for processor in scales:
        assert not check(settings.model_copy(update={"processor": processor})).warnings
    trained = settings.model.model_copy(update={"from_pretrained": "somewhere"})
    assert not check(settings.model_copy(update={"model": trained})).warnings


def test_color_masks(tmp_path):
    painted = np.zeros((12, 12, 3))
    painted[:4] = (128, 64, 0)
    painted[4:6] = (1, 2, 3)
    write_pair(tmp_path / "train", "painted", painted, np.ones((12, 12, 3)))
    classes = [{"name": "none", "values": [[0, 0, 0]]}, {"name": "house", "values": [[128, 64, 0]]}]
    report = check(recipe(tmp_path, classes=classes))
    assert report.class_counts() == [72, 48]
    assert "(1, 2, 3) (24 pixels in" in report.problems[0]
    assert "the mask has colors" in check(recipe(tmp_path)).problems[0]
    assert MAGENTA in colors(contact_sheet(report.splits["train"]))


class Readings:
    """Counts the reads."""

    def __init__(self, monkeypatch):
        self.names, read = [], RawDataset.raw

        def record_read(dataset, index):
            self.names.append(dataset.name(index))
            return read(dataset, index)

        monkeypatch.setattr(RawDataset, "raw", record_read)

    def take(self):
        taken, self.names = self.names, []
        return sorted(taken)


def test_cached_results_are_not_read_again(good, tmp_path, monkeypatch):
    readings, cache = Readings(monkeypatch), tmp_path / "run" / "facts.json"
    first = check(recipe(good), cache=cache)
    assert len(readings.take()) == 6
    again = check(recipe(good), cache=cache)
    assert not readings.take()
    assert (
        again.class_counts() == first.class_counts() and again.splits["train"].digests == first.splits["train"].digests
    )
    changed = masks(6)[3] * 0 + 1
    write_pair(good / "train", "train_3", changed)
    assert (
        check(recipe(good), cache=cache).class_counts()[1]
        == sum((m == 1).sum() for m in masks(6)[:3] + masks(6)[4:]) + changed.size
    )
    assert readings.take() == ["train_3.png"]
    check(recipe(good, classes=["a", "b", "c"]), cache=cache)  # another class table over the same raw values
    assert not readings.take()
    cache.write_text('{"samples": {"half')
    check(recipe(good), cache=cache)
    assert len(readings.take()) == 6
    assert os.listdir(cache.parent) == ["facts.json"]


@pytest.mark.parametrize("reader", ["read_pixels", "read_mask"])
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ImageFileError("a codec is missing")])
def test_faults_are_not_cached(good, tmp_path, monkeypatch, reader, error):
    cache = tmp_path / "facts.json"

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"hf_vit_seg.data.sources.file_source.{reader}", fail)
        report = check(recipe(good), cache=cache)
        assert len(report.problems) == sum(len(part.facts) for part in report.splits.values())
    assert check(recipe(good), cache=cache).problems == []


def test_faults_in_a_cache_file_are_ignored(good, tmp_path):
    cache = tmp_path / "facts.json"
    check(recipe(good), cache=cache)
    content = json.loads(cache.read_text())
    for row in content["samples"].values():
        row["fault"] = "there is no permission to read the file"
    cache.write_text(json.dumps(content))
    assert check(recipe(good), cache=cache).problems == []


@pytest.mark.parametrize("remote", ["images", "masks"])
def test_samples_at_addresses_are_not_cached(good, tmp_path, monkeypatch, remote):
    """They may change without a trace in the local files."""
    address, memory = f"memory:/{tmp_path}/{remote}", fsspec.filesystem("memory")
    memory.put(str(good / "train" / remote), address, recursive=True)
    folders = {part: f"{good / 'train' / part}" for part in ("images", "masks")} | {remote: address}
    readings, mixed = Readings(monkeypatch), recipe(good, train={"kind": "folders"} | folders)
    for _ in range(2):
        check(mixed, cache=tmp_path / "facts.json")
        assert len(readings.take()) == 6


def test_cache_depends_on_channel_count(tmp_path):
    write_pair(tmp_path / "train", "0", np.zeros((8, 8)))
    (tmp_path / "train/images/0.png").unlink()
    np.save(tmp_path / "train/images/0.npy", np.zeros((4, 8, 8), np.uint8))
    for channels in (3, 4, 3):
        problems = check(recipe(tmp_path, channels=channels), cache=tmp_path / "facts.json").problems
        assert len(problems) == (channels == 3), problems


def test_check_can_be_limited_to_a_part(good):
    """Samples are spread evenly from first to last; the command checks all data regardless of the recipe."""
    write_pair(good / "train", "train_1", np.full((8, 8), 77))
    with pytest.raises(BadDataError, match="train_1"):
        require_valid_data(recipe(good), {"train": open_split(recipe(good), "train")})
    part = recipe(good, check=3)
    report = require_valid_data(part, {"train": open_split(part, "train"), "validation": None})
    dataset = report.splits["train"].dataset
    assert [dataset.name(i) for i in range(len(dataset))] == [f"train_{i}.png" for i in (0, 2, 4)]
    assert check(part).problems
    assert (
        len(require_valid_data(recipe(good, check=7, ignore=[77, 255]), {"train": dataset}).splits["train"].facts) == 3
    )


def test_interrupted_check_keeps_its_results(good, tmp_path, monkeypatch):
    cache, read = tmp_path / "facts.json", RawDataset.raw

    def raise_interrupt(dataset, index):
        if index == 5:
            raise KeyboardInterrupt
        return read(dataset, index)

    with monkeypatch.context() as patch:
        patch.setattr(RawDataset, "raw", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            check(recipe(good), cache=cache)
    readings = Readings(monkeypatch)
    assert check(recipe(good), cache=cache).class_counts() == check(recipe(good)).class_counts()
    assert readings.take().count("train_5.png") == 2  # by both checks; others only by the one without a cache
    assert json.loads(cache.read_text())["samples"]


def test_folder_labels_are_read_again_after_adding_a_class(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (8, 8), (i, ord(name[0]), 0)).save(tmp_path / name / f"{i}.png")
    settings = {"train": {"kind": "class_folders", "root": str(tmp_path)}, "classes": None}
    cache = tmp_path / "facts.json"
    assert check(recipe(tmp_path, task="classification", **settings), cache=cache).class_counts() == [2, 2]
    (tmp_path / "ant").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "ant" / "0.png")
    report = check(recipe(tmp_path, task="classification", **settings), cache=cache)
    assert report.splits["train"].table.names == ("ant", "cat", "dog") and report.class_counts() == [1, 2, 2]


def test_samples_without_files_are_checked():
    digits = {
        "train": {"kind": "sklearn_digits", "split": "train"},
        "test": {"kind": "sklearn_digits", "split": "test"},
    }
    report = check(recipe(Path(), task="classification", **digits, classes=None))
    assert not report.problems and list(report.splits) == ["train", "test"]
    assert sum(report.class_counts()) == 1437 and min(report.class_counts()) > 100
    sheet = contact_sheet(report.splits["train"])
    assert sheet.width > 300 and len(select_samples(report.splits["train"], 24)) == 24
    assert {
        int(report.splits["train"].facts[i].values[0][0]) for i in select_samples(report.splits["train"], 12)
    } == set(range(10))


@pytest.mark.parametrize(
    ("label", "settings"), [(9, {}), (-1, {}), (255, {}), (7, {"ignore": [7]}), (9, {"unknown": "ignore"})]
)
def test_unknown_labels_are_reported(tmp_path, label, settings):
    """Training needs a class for every image, also if the class table ignores the value."""
    for i, each in enumerate((0, 1, label)):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
        with (tmp_path / "list.csv").open("a") as file:
            file.write(("image,label\n" if not i else "") + f"{i}.png,{each}\n")
    source = {"kind": "list", "file": str(tmp_path / "list.csv")}
    report = check(recipe(tmp_path, task="classification", train=source, **settings))
    (problem,) = report.problems
    assert f"{label} (1 image in {tmp_path / '2.png'})" in problem and "classes have 0 .. 2" in problem
    assert not any("ignored" in warning for warning in report.warnings)
    with pytest.raises(UnknownValueError, match=f"label {label} belongs to no class"):
        report.splits["train"].dataset.read(2)
    assert contact_sheet(report.splits["train"]).height > 100


def test_thread_count_is_restored_and_workers_use_one():
    before = torch.get_num_threads()
    found = []
    with single_threaded_torch():
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [1] and torch.get_num_threads() == before


def colors(picture: Image.Image) -> set[tuple[int, int, int]]:
    return {color for _, color in picture.getcolors(picture.width * picture.height) or ()}


def test_contact_sheet_shows_every_class_and_unknown_values(tmp_path):
    for i in range(60):
        write_pair(tmp_path / "train", f"{i:02}", np.zeros((16, 16)))
    rare = np.zeros((16, 16))
    rare[4:12, 4:12] = 2
    write_pair(tmp_path / "train", "37", rare)
    write_pair(tmp_path / "train", "41", np.ones((16, 16)))
    palette = [(10, 200, 30), (200, 20, 40), (30, 60, 220)]
    classes = [{"name": name, "color": color} for name, color in zip(CLASSES, palette, strict=True)]
    part = check(recipe(tmp_path, classes=classes)).splits["train"]
    chosen = select_samples(part, 24)
    assert len(chosen) == len(set(chosen)) == 24 and {37, 41} <= set(chosen)
    assert len(select_samples(part, 2)) == 2
    sheet = contact_sheet(part)
    assert set(palette) <= colors(sheet) and MAGENTA not in colors(sheet)
    strange = rare.copy()
    strange[:2] = 9
    write_pair(tmp_path / "train", "37", strange)
    part = check(recipe(tmp_path, classes=classes)).splits["train"]
    assert 37 in select_samples(part, 1) and MAGENTA in colors(contact_sheet(part))


def test_people_are_checked_and_drawn(tmp_path):
    Image.new("RGB", (80, 60), (90, 90, 90)).save(tmp_path / "a.png")
    points = [[20, 20, 2], [30, 40, 1], [0, 0, 0]]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 900, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [{**annotation, "keypoints": np.ravel(points).tolist()}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose", "hand", "foot"]}],
    }
    (tmp_path / "people.json").write_text(json.dumps(content))
    source = {"kind": "coco_keypoints", "annotations": str(tmp_path / "people.json"), "images": str(tmp_path)}
    report = check(recipe(tmp_path, task="pose", train=source, classes=None))
    assert report.class_counts() == [1, 1, 0] and not report.problems
    assert "samples: foot" in report.warnings[0]
    assert len(colors(contact_sheet(report.splits["train"]))) > 3
    assert report_content(recipe(tmp_path, task="pose"), report)["suggested_class_weights"] == {}


def run(*arguments: str, folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    return CliRunner().invoke(app, ["check-data", *arguments])


@pytest.fixture
def recipe_file(good) -> Path:
    text = """
    task: segmentation
    name: trial
    model: {architecture: segformer, variant: nano}
    data:
      train: {kind: folders, images: train/images, masks: train/masks}
      validation: {kind: folders, images: validation/images, masks: validation/masks}
      classes: [sky, road, car]
    loop: {steps: 1}
    """
    (good / "trial.yaml").write_text(text)
    return good / "trial.yaml"


def test_command_writes_report_and_sheets(recipe_file, tmp_path, monkeypatch):
    result = run("trial.yaml", folder=tmp_path, monkeypatch=monkeypatch)
    assert result.exit_code == 0, result.output
    assert "no problems" in result.output and "road" in result.output
    folder = tmp_path / "data-check" / "trial"
    assert {path.name for path in folder.iterdir()} == {"report.json", "facts.json", "train.png", "validation.png"}
    content = json.loads((folder / "report.json").read_text())
    counts = [entry["count"] for entry in content["splits"]["train"]["classes"]]
    weights = content["suggested_class_weights"]["inverse_root"]
    np.testing.assert_allclose(np.array(weights) * np.sqrt(counts), weights[0] * np.sqrt(counts[0]), rtol=1e-3)
    assert np.mean(weights) == pytest.approx(1, abs=1e-3)
    median = content["suggested_class_weights"]["median_frequency"]
    assert sorted(median)[1] == 1
    values = content["splits"]["train"]["raw_values"]
    assert [(v["value"], v["meaning"], v["count"]) for v in values] == [(k, CLASSES[k], counts[k]) for k in range(3)]


def test_command_fails_where_training_would_raise(recipe_file, tmp_path, monkeypatch):
    write_pair(tmp_path / "validation", "odd", np.full((8, 8), 9))
    out = ["--out", "looked"]
    result = run("trial.yaml", *out, folder=tmp_path, monkeypatch=monkeypatch)
    assert result.exit_code == 1 and "9 (64 pixels in" in " ".join(result.output.split())
    assert json.loads((tmp_path / "looked/report.json").read_text())["splits"]["validation"]["unknown_values"]
    assert run("trial.yaml", *out, "--splits", "train", folder=tmp_path, monkeypatch=monkeypatch).exit_code == 0
    assert run("trial.yaml", "data.ignore=[9]", *out, folder=tmp_path, monkeypatch=monkeypatch).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "no recipe nothing.yaml"),
        (["trial.yaml", "data.ingore=[1]"], "did you mean 'ignore'"),
        (["trial.yaml", "--splits", "trian"], "unknown split 'trian'"),
        (["trial.yaml", "--splits", "test"], "has no data for test"),
        (["trial.yaml", "data.train.masks=nowhere"], "the folder does not exist"),
    ],
)
def test_command_explains_unsupported_options(recipe_file, tmp_path, monkeypatch, arguments, message):
    result = run(*arguments, folder=tmp_path, monkeypatch=monkeypatch)
    assert result.exit_code == 2 and message in " ".join(result.output.split())


@pytest.mark.shared
def test_camvid_matches_its_description(shared, tmp_path):
    overrides = [
        f"data.{split}.{part}={shared}/data/camvid/{folder}/{part}"
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test"))
        for part in ("images", "masks")
    ]
    assert check_data("camvid", overrides, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert {split: part["samples"] for split, part in content["splits"].items()} == {
        "train": 367,
        "validation": 101,
        "test": 233,
    }
    assert all(part["sizes"] == {"360x480": part["samples"]} for part in content["splits"].values())
    assert [v["meaning"] for v in content["splits"]["train"]["raw_values"]][-1] == "ignored"
