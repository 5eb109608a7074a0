"""Splits of a recipe: with their classes for evaluation, and with their transforms for training."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_vit_seg.data.collation import Collator
from hf_vit_seg.data.datasets import RawDataset, TrainingDataset, build_class_table, open_split
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.class_table import ClassTable, ClassTableError, UnknownValueError
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.data.stream import Draw, StreamSampler
from hf_vit_seg.data.transforms.pipeline import TransformContext, read_pipeline
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.records import read_record
from hf_vit_seg.training.recipe.schema import Recipe

COUNT = 10


def recipe(task: str = "segmentation", seed: int = 0, **data) -> Recipe:
    model = {"architecture": "segformer", "variant": "b0"}
    return read_record(Recipe, {"task": task, "seed": seed, "model": model, "loop": {"steps": 1}, "data": data})


def pairs(root: Path, count: int = COUNT, size: tuple[int, int] = (20, 24)) -> dict:
    """Images (height, width) with their index as pixel value, and masks of 0, 1, and 11 (ignored)."""
    for number in range(count):
        for folder, name in (("images", f"{number:02}.png"), ("masks", f"{number:02}.png")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            values = np.full(size, number) if folder == "images" else np.arange(size[0] * size[1]).reshape(size) % 3
            Image.fromarray(
                np.array([0, 1, 11])[values].astype(np.uint8) if folder == "masks" else values.astype(np.uint8)
            ).save(root / folder / name)
    return {"kind": "folders", "images": str(root / "images"), "masks": str(root / "masks")}


def open_dataset(root: Path, split: str = "train", **data) -> RawDataset:
    dataset = open_split(recipe(train=pairs(root), classes=["a", "b"], ignore=[11], **data), split)
    assert dataset is not None
    return dataset


def test_samples_have_their_classes(tmp_path):
    dataset = open_dataset(tmp_path)
    assert len(dataset) == COUNT
    assert dataset.class_table.names == ("a", "b")
    for index in range(COUNT):
        sample = dataset.read(index)
        assert sample.name == dataset.name(index) == dataset.group(index) == f"{index:02}.png"
        assert sample.image.dtype == torch.uint8 and sample.image.unique().tolist() == [index]
        assert sample.target.dtype == torch.int64
        assert torch.equal(sample.target.flatten(), torch.tensor([0, 1, 255]).repeat(160))
        assert dataset.raw(index).target.unique().tolist() == [0, 1, 11]
        assert [path.parent.name for path in dataset.files(index)] == ["images", "masks"]


def test_missing_splits_are_none(tmp_path):
    made = recipe(train=pairs(tmp_path), classes=["a", "b"], ignore=[11])
    assert open_split(made, "validation") is None and open_split(made, "test") is None


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_validation_fraction_is_disjoint_from_training(tmp_path, share):
    train, validation = (open_dataset(tmp_path, split, validation_share=share) for split in ("train", "validation"))
    names = [{dataset.name(i) for i in range(len(dataset))} for dataset in (train, validation)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {f"{i:02}.png" for i in range(COUNT)}
    assert len(validation) == min(max(round(share * COUNT), 1), COUNT - 1)
    assert [train.read(i).name for i in range(len(train))] == sorted(names[0])


def test_validation_fraction_depends_on_seed(tmp_path):
    source = pairs(tmp_path)

    def cut(seed: int) -> list[str]:
        dataset = open_split(recipe(train=source, classes=["a", "b"], seed=seed, validation_share=0.5), "validation")
        return [dataset.name(i) for i in range(len(dataset))]

    assert cut(1) == cut(1)
    assert len({tuple(cut(seed)) for seed in range(5)}) > 1


def test_validation_source_overrides_fraction(tmp_path):
    own = pairs(tmp_path / "own", 2)
    dataset = open_dataset(tmp_path, "validation", validation=own, validation_share=0.5)
    assert len(dataset) == 2 and str(dataset.files(0)[0]).startswith(str(tmp_path / "own"))
    assert len(open_dataset(tmp_path, "train", validation=own, validation_share=0.5)) == COUNT


def test_single_image_cannot_be_split(tmp_path):
    made = recipe(train=pairs(tmp_path, 1), classes=["a", "b"], validation_share=0.5)
    with pytest.raises(SourceError, match="requires at least 2 images, found 1"):
        open_split(made, "train")


def test_errors_name_the_file(tmp_path):
    dataset = open_dataset(tmp_path)
    Image.new("L", (24, 20), 7).save(tmp_path / "masks/03.png")
    with pytest.raises(
        UnknownValueError, match=r"masks/03\.png: the mask has the unknown values 7 \(480 pixels\)"
    ) as error:
        dataset.read(3)
    assert error.value.counts == {7: 480}
    assert dataset.raw(3).target.unique().tolist() == [7]
    Image.new("RGB", (24, 20), (9, 8, 7)).save(tmp_path / "masks/04.png")
    with pytest.raises(ClassTableError, match=r"masks/04\.png: the mask has colors"):
        dataset.read(4)
    Image.new("L", (20, 24)).save(tmp_path / "masks/05.png")
    with pytest.raises(
        ImageFileError, match=r"05\.png: the mask has 24x20 .* image 05\.png has 20x24 \(one is rotated"
    ):
        dataset.read(5)
    Image.new("L", (23, 20)).save(tmp_path / "masks/06.png")
    with pytest.raises(ImageFileError, match=r"the mask has 20x23 pixels .* 20x24: use a mask"):
        dataset.read(6)
    (tmp_path / "images/07.png").write_bytes(b"")
    with pytest.raises(ImageFileError, match=r"images/07\.png: the file is empty"):
        dataset.read(7)


def test_pixels_are_finite(tmp_path):
    source = pairs(tmp_path, 2)
    (tmp_path / "images/00.png").unlink()
    array = np.zeros((5, 20, 24), np.float32)
    array[2, 3, 4:7] = np.nan
    np.save(tmp_path / "images/00.npy", array)
    dataset = open_split(recipe(train=source, classes=["a", "b"], ignore=[11], channels=5), "train")
    with pytest.raises(ImageFileError, match=r"00\.npy: 3 pixels of the image are not finite"):
        dataset.read(0)
    with pytest.raises(ImageFileError, match=r"01\.png: the image has 3 channels, expected 5"):
        dataset.read(1)


@pytest.mark.parametrize("cache", [False, True])
def test_samples_are_copies(tmp_path, cache):
    dataset = open_dataset(tmp_path, cache=cache)
    for _ in range(3):
        sample = dataset.read(4)
        assert sample.image.unique().tolist() == [4] and sample.target.unique().tolist() == [0, 1, 255]
        sample.image.zero_()
        sample.target.zero_()


def test_cached_samples_are_not_read_again(tmp_path):
    dataset = open_dataset(tmp_path, cache=True)
    expected = [dataset.read(i) for i in range(COUNT)]
    kept = open_dataset(tmp_path, cache=True)
    kept.preload()
    for index in range(COUNT):
        (tmp_path / f"images/{index:02}.png").unlink()
        for other in (dataset, kept):
            sample = other.read(index)
            assert torch.equal(sample.image, expected[index].image)
            assert torch.equal(sample.target, expected[index].target)
    sent = pickle.loads(pickle.dumps(kept))
    with pytest.raises(ImageFileError, match="does not exist"):
        sent.read(0)


def test_cache_supports_more_than_255_classes(tmp_path):
    source = pairs(tmp_path, 1)
    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24)).save(tmp_path / "masks/00.png")
    names = [f"class {i}" for i in range(480)]
    dataset = open_split(recipe(train=source, classes=names, cache=True), "train")
    for _ in range(2):
        assert torch.equal(dataset.read(0).target.flatten(), torch.arange(480))
    assert dataset.class_table.ignore_index == 65535


def folder_of_classes(root: Path, names: str) -> dict:
    for name in names.split():
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (ord(name[0]), 0, 0)).save(root / name / "1.png")
    return {"kind": "class_folders", "root": str(root)}


def test_class_folders_are_matched_by_name_across_splits(tmp_path):
    train, test = folder_of_classes(tmp_path / "train", "ant bee cat"), folder_of_classes(tmp_path / "test", "cat bee")
    made = recipe("classification", train=train, test=test)
    for split in ("train", "test"):
        dataset = open_split(made, split)
        assert dataset.class_table.names == ("ant", "bee", "cat")
        for index in range(len(dataset)):
            sample = dataset.read(index)
            assert sample.name.startswith(dataset.class_table.names[sample.target])
    made = recipe("classification", train=test, test=train)
    with pytest.raises(
        ClassTableError, match=r"data\.test: the source has the class 'ant', which is not in data\.classes"
    ):
        open_split(made, "test")


def test_recipe_defines_class_order(tmp_path):
    train = folder_of_classes(tmp_path / "train", "ant bee cat")
    dataset = open_split(recipe("classification", train=train, classes=["cat", "ant", "bee"]), "train")
    assert [dataset.read(i).target for i in range(3)] == [1, 2, 0]


def test_single_class_raises(tmp_path):
    nucleus = {"name": "nucleus", "values": [1]}
    with pytest.raises(ClassTableError, match=r"found one class, 'nucleus'.*\[background, nucleus\].*single_output"):
        open_split(recipe(train=pairs(tmp_path), classes=[nucleus], ignore=[0]), "train")


def test_digits_dataset_needs_no_files():
    made = recipe("classification", train={"kind": "sklearn_digits", "split": "train"}, channels=1, cache=True)
    dataset = open_split(made, "train")
    sample = dataset.read(3)
    assert sample.image.shape == (1, 8, 8) and sample.target == dataset.source.labels[3]
    assert build_class_table(made).names == tuple("0123456789")


PROCESSOR = SemanticSegmentationImageProcessor(size={"height": 16, "width": 16})


def training(dataset: RawDataset, seed: int = 0) -> TrainingDataset:
    entries = [{"random_resize": {"scale": [0.8, 1.5]}}, {"random_crop": {"size": 12}}, "random_flip", "photometric"]
    context = TransformContext.from_processor(PROCESSOR, "segmentation", dataset.class_table.ignore_index)
    return TrainingDataset(dataset, read_pipeline(entries, context), seed)


def test_training_samples_depend_only_on_the_draw(tmp_path):
    dataset, again = training(open_dataset(tmp_path)), training(open_dataset(tmp_path, cache=True))
    first = dataset[Draw(3, 2, 50)]
    torch.rand(5), np.random.rand(5)
    for same in (dataset[Draw(3, 2, 51)], again[Draw(3, 2, 7)], again[Draw(3, 2, 8)]):
        assert torch.equal(first["image"], same["image"]) and torch.equal(first["target"], same["target"])
    assert first["image"].shape == (3, 12, 12) and first["target"].shape == (12, 12)
    assert set(first["target"].unique().tolist()) <= {0, 1, 255}
    assert (first["name"], first["draw"]) == ("03.png", Draw(3, 2, 50))
    others = [dataset[Draw(3, epoch, 0)] for epoch in range(6)]
    assert len({tuple(sample["target"].flatten().tolist()) for sample in others}) > 1
    assert len(dataset) == COUNT


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(tmp_path, workers):
    dataset = training(open_dataset(tmp_path))
    collator = Collator(PROCESSOR, "segmentation")
    batches = list(
        DataLoader(
            dataset, batch_sampler=StreamSampler(len(dataset), 5, 4, stop=16), collate_fn=collator, num_workers=workers
        )
    )
    assert [batch["pixel_values"].shape for batch in batches] == [(4, 3, 12, 12)] * 4
    alone = collator([dataset[draw] for draw in next(iter(StreamSampler(len(dataset), 5, 4, start=8, stop=16)))])
    assert torch.equal(batches[2]["pixel_values"], alone["pixel_values"])
    assert torch.equal(batches[2]["labels"], alone["labels"])


def test_worker_errors_keep_their_message(tmp_path):
    dataset = training(open_dataset(tmp_path))
    Image.new("L", (24, 20), 7).save(tmp_path / "masks/03.png")
    with pytest.raises(UnknownValueError, match=r"masks/03\.png: the mask has the unknown values 7"):
        list(DataLoader(dataset, batch_sampler=StreamSampler(COUNT, 0, 5, stop=COUNT), num_workers=1, collate_fn=list))


def test_keypoint_names_come_from_the_source(tmp_path):
    with pytest.raises(ClassTableError, match=r"the source has the keypoints a, b, but data\.classes has b, a"):
        RawDataset(
            NamedSource(("a", "b")), ClassTable.from_recipe(recipe("pose", train={}, classes=["b", "a"]).data), "pose"
        )


class NamedSource:
    def __init__(self, class_names):
        self.class_names = class_names

    def __len__(self):
        return 0


CAMVID = ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Cyclist"]


@pytest.mark.shared
def test_camvid(shared):
    folder = shared / "data/camvid"
    sources = {
        split: {"kind": "folders", "images": f"{folder}/{own}/images", "masks": f"{folder}/{own}/masks"}
        for split, own in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    made = recipe(**sources, classes=CAMVID, ignore=[11])
    datasets = {split: open_split(made, split) for split in sources}
    assert {split: len(dataset) for split, dataset in datasets.items()} == {
        "train": 367,
        "validation": 101,
        "test": 233,
    }
    dataset, seen = datasets["validation"], set()
    for index in range(0, len(dataset), 10):
        sample = dataset.read(index)
        assert sample.image.shape == (3, 360, 480) and sample.target.shape == (360, 480)
        seen |= set(sample.target.unique().tolist())
        raw = dataset.raw(index).target
        assert torch.equal(torch.where(raw == 11, 255, raw), sample.target)
    assert seen == {*range(11), 255}
    without = open_split(recipe(**sources, classes=CAMVID), "validation")
    with pytest.raises(UnknownValueError, match=r"\.png: the mask has the unknown values 11 .*classes have 0 \.\. 10"):
        without.read(0)


@pytest.mark.shared
def test_nuclei(shared):
    folder = shared / "data/nuclei/val"
    made = recipe(
        train={"kind": "folders", "images": f"{folder}/images/{{stem}}.png", "masks": f"{folder}/masks/{{stem}}.png"},
        classes=["background", "nucleus"],
        validation_share=0.2,
    )
    train, validation = open_split(made, "train"), open_split(made, "validation")
    assert (len(train), len(validation)) == (24, 6)
    for index in range(len(validation)):
        sample = validation.read(index)
        assert sample.image.shape[1:] == sample.target.shape
        assert sample.target.unique().tolist() == [0, 1]


@pytest.mark.shared
def test_people_of_one_image_are_in_the_same_split(shared):
    folder = shared / "data/coco_pose_mini"
    source = {
        "kind": "coco_keypoints",
        "annotations": f"{folder}/person_keypoints.json",
        "images": f"{folder}/images",
    }
    made = recipe("pose", train=source, validation_share=0.3)
    train, validation = open_split(made, "train"), open_split(made, "validation")
    groups = [{dataset.group(i) for i in range(len(dataset))} for dataset in (train, validation)]
    assert len(train) + len(validation) == 29
    assert len(groups[1]) == 3 and not groups[0] & groups[1]
    assert train.class_table.names[:2] == ("nose", "left_eye") and len(train.class_table.names) == 17
    assert train.read(0).target.keypoints.shape == (17, 3)
