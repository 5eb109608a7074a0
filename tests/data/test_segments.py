"""Segments: instance maps with one class or a class map, things and stuff, crops, and batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_vit_seg.data.checks.check import check
from hf_vit_seg.data.collation import Collator, segment_labels
from hf_vit_seg.data.datasets import RawDataset, TrainingDataset, open_split
from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.labels.class_table import ClassTableError, UnknownValueError
from hf_vit_seg.data.samples import RawSegments, Segments
from hf_vit_seg.data.sources.instance_maps import SEVERAL_CLASSES
from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.data.stream import Draw
from hf_vit_seg.data.transforms.pipeline import TransformContext, read_pipeline
from hf_vit_seg.data.transforms.sample_segments import MIN_AREA
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.recipe.schema import Recipe

MAP = np.zeros((6, 8), np.uint16)
MAP[0:2, 0:2], MAP[2:4, 3:8], MAP[5, 7] = 7, 60_000, 255
CLASSES = np.full((6, 8), 3, np.uint8)
CLASSES[0:2, 0:2], CLASSES[2:4, 3:8], CLASSES[5, 7] = 1, 2, 1


def recipe(task: str, **data) -> Recipe:
    model = {"architecture": "segformer", "variant": "b0"}
    return read_record(Recipe, {"task": task, "model": model, "loop": {"steps": 1}, "data": data})


def write(root: Path, instances: np.ndarray, classes: np.ndarray | None = None, name: str = "a") -> dict:
    """Write an image with its instance map and class map, and return the source."""
    arrays = {"images": np.zeros((*instances.shape, 3), np.uint8), "instances": instances, "masks": classes}
    for folder, array in arrays.items():
        if array is not None:
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{name}.png")
    kept = [folder for folder, array in arrays.items() if array is not None]
    return {"kind": "folders", **{folder: str(root / folder) for folder in kept}}


def opened(task: str, source: dict, **data) -> RawDataset:
    dataset = open_split(recipe(task, train=source, **data), "train")
    assert dataset is not None
    return dataset


def test_instance_map_of_one_class(tmp_path):
    dataset = opened("instance", write(tmp_path, MAP), classes=["nucleus"])
    target = dataset.read(0).target
    assert isinstance(target, Segments) and target.ids.dtype == torch.int32
    assert target.classes == (0, 0, 0)
    assert target.areas().tolist() == [4, 1, 10]  # numbered in the order of the values
    assert torch.equal(target.ids > 0, torch.from_numpy(MAP.astype(np.int64)) > 0)
    assert [path.parent.name for path in dataset.files(0)] == ["images", "instances"]


def test_255_is_an_object_not_an_ignored_value(tmp_path):
    target = opened("instance", write(tmp_path, MAP), classes=["nucleus"]).read(0).target
    assert target.ids[5, 7] == 2 and not (target.ids < 0).any()


def test_class_map_gives_classes_and_groups(tmp_path):
    """Pixels of a thing class without an object are a group, which is ignored; others are background."""
    classes = CLASSES.copy()
    classes[0, 7] = 1
    things = [{"name": "cell", "values": [1]}, {"name": "debris", "values": [2]}]
    target = opened("instance", write(tmp_path, MAP, classes), classes=things).read(0).target
    assert target.classes == (0, 0, 1)
    assert target.ids[0, 7] == -1 and (target.ids == -1).sum() == 1
    assert target.crowds[0, 7] == 0 and (target.crowds >= 0).sum() == 1
    assert target.ids[1, 7] == 0


def test_panoptic_merges_stuff_and_ignores_pixels_without_segment(tmp_path):
    classes = CLASSES.copy()
    classes[0, 7] = 1  # a group of things
    classes[1, 7] = 9  # ignored
    kinds = [{"name": "cell", "values": [1]}, {"name": "road", "values": [2, 3], "thing": False}]
    source = write(tmp_path, MAP, classes)
    target = opened("panoptic", source, classes=kinds, ignore=[9]).read(0).target
    assert target.classes == (0, 0, 1)
    assert target.areas().tolist() == [4, 1, 48 - 7]
    assert target.ids[0, 7] == target.ids[1, 7] == -1 and not (target.ids == 0).any()
    assert target.crowds[0, 7] == 0 and target.crowds[1, 7] == -1  # a group, and an ignored value


def test_objects_get_their_majority_class_with_a_note(tmp_path):
    classes = CLASSES.copy()
    classes[0, 0] = 2
    dataset = opened(
        "instance", write(tmp_path, MAP, classes), classes=[{"name": n, "values": [v]} for n, v in (("a", 1), ("b", 2))]
    )
    assert dataset.read(0).target.classes == (0, 0, 1)
    assert dataset.raw(0).notes == (SEVERAL_CLASSES,)


def test_cityscapes_instance_ids(tmp_path):
    ids = np.array([[7, 7, 26001, 26001], [7, 26, 26002, 4], [11, 11, 24000, 26002]], np.uint16)
    source = {**write(tmp_path, ids), "label_divisor": 1000}
    kinds = [
        {"name": "road", "values": [7], "thing": False},
        {"name": "building", "values": [11], "thing": False},
        {"name": "person", "values": [24]},
        {"name": "car", "values": [26]},
    ]
    target = opened("panoptic", source, classes=kinds, unknown="ignore").read(0).target
    assert isinstance(target, Segments)
    names = [kinds[index]["name"] for index in target.classes]
    assert sorted(zip(names, target.areas().tolist(), strict=True)) == [
        ("building", 2),
        ("car", 2),
        ("car", 2),
        ("person", 1),
        ("road", 3),
    ]
    assert target.ids[1, 1] == -1 and target.crowds[1, 1] == 3  # a group of cars
    assert target.ids[1, 3] == -1  # an unknown label
    things = [kind for kind in kinds if kind.get("thing", True)]
    target = opened("instance", source, classes=things).read(0).target
    assert sorted(target.classes) == [0, 1, 1]
    assert target.ids[0, 0] == 0 and target.ids[1, 1] == -1 and target.ids[1, 3] == 0


def test_unknown_class_of_an_object_raises(tmp_path):
    source = write(tmp_path, MAP, CLASSES)
    dataset = opened("instance", source, classes=[{"name": "cell", "values": [1]}])
    with pytest.raises(UnknownValueError) as caught:
        dataset.read(0)
    assert caught.value.counts == {2: 1}
    ignoring = opened("instance", source, classes=[{"name": "cell", "values": [1]}], unknown="ignore").read(0).target
    assert ignoring.classes == (0, 0) and (ignoring.ids == -1).sum() == 10


def test_several_classes_need_a_class_map(tmp_path):
    dataset = opened("instance", write(tmp_path, MAP), classes=["background", "nucleus"])
    with pytest.raises(ClassTableError):
        dataset.read(0)
    report = check(recipe("instance", train=write(tmp_path, MAP), classes=["background", "nucleus"]))
    assert len(report.problems) == 1 and "a.png" in report.problems[0]


def test_settings_that_do_not_fit_the_task(tmp_path):
    source = write(tmp_path, MAP, CLASSES)
    for task, wrong in (
        ("instance", {**source, "instances": None}),
        ("panoptic", {**source, "masks": None}),
        ("segmentation", source),
        ("panoptic", {**source, "label_divisor": 1000}),
    ):
        with pytest.raises(SourceError):
            opened(task, wrong, classes=["a", "b"])
    with pytest.raises(ClassTableError):
        opened("instance", source, classes=["a", {"name": "road", "thing": False}])


def test_unpaired_instance_maps_raise(tmp_path):
    source = write(tmp_path, MAP, CLASSES)
    write(tmp_path, MAP, name="b")
    with pytest.raises(SourceError):
        opened("panoptic", source, classes=["a", "b", "c", "d"])
    skipping = opened("panoptic", {**source, "unpaired": "skip"}, classes=["a", "b", "c", "d"])
    assert len(skipping) == 1


def test_instance_map_of_another_size_or_of_colors_raises(tmp_path):
    source = write(tmp_path, MAP)
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(tmp_path / "images/a.png")
    with pytest.raises(ImageFileError):
        opened("instance", source, classes=["nucleus"]).read(0)
    Image.fromarray(np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)).save(tmp_path / "instances/a.png")
    with pytest.raises(ImageFileError):
        opened("instance", source, classes=["nucleus"]).read(0)


@pytest.mark.parametrize("cache", [False, True])
def test_samples_are_copies(tmp_path, cache):
    dataset = opened("instance", write(tmp_path, MAP), classes=["nucleus"], cache=cache)
    dataset.read(0).target.ids.zero_()
    again = dataset.read(0).target
    assert again.ids.dtype == torch.int32 and again.areas().tolist() == [4, 1, 10]


def test_segment_recipes_reject_losses_and_batch_transforms(tmp_path):
    from hf_vit_seg.training.recipe_loading import complete_recipe

    given_data = {"train": write(tmp_path, MAP), "classes": ["nucleus"]}
    complete_recipe(recipe("instance", **given_data))
    for setting in ({"loss": {"dice": None}}, {"batch_transforms": ("mixup",)}):
        with pytest.raises(RecordError):
            complete_recipe(recipe("instance", **given_data).model_copy(update=setting))


def test_check_counts_objects(tmp_path):
    classes = CLASSES.copy()
    classes[0, 7] = 1  # a group is no object
    kinds = [{"name": "cell", "values": [1]}, {"name": "debris", "values": [2]}]
    report = check(recipe("instance", train=write(tmp_path, MAP, classes), classes=kinds))
    assert report.problems == [] and report.class_counts() == [2, 1]


def pipeline(entries: list, size: int = 16):
    processor = SemanticSegmentationImageProcessor(size={"height": size, "width": size})
    return read_pipeline(entries, TransformContext.from_processor(processor, "instance"))


def squares(side: int = 40, cell: int = 10) -> Segments:
    """A grid of square objects without background."""
    numbers = torch.arange(1, (side // cell) ** 2 + 1, dtype=torch.int32).view(side // cell, -1)
    ids = numbers.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return Segments(ids, tuple(index % 3 for index in range(int(numbers.max()))))


@given(seed=st.integers(0, 10_000))
def test_crops_keep_the_classes_of_objects_and_remove_slivers(seed):
    """An image whose pixels are the numbers of the objects shows which object each pixel is of."""
    torch.manual_seed(seed)
    whole = squares()
    image = whole.ids[None].to(torch.uint8)
    cropped, target = pipeline([{"random_crop": {"size": 16}}, {"random_flip": {"vertical": 0.5}}])(image, whole)
    assert target.ids.shape == (16, 16)
    for number, index in enumerate(target.classes, 1):
        own = cropped[0][target.ids == number].unique()
        assert len(own) == 1 and whole.classes[int(own) - 1] == index
    visible = torch.bincount(cropped[0].flatten().long(), minlength=17)[1:]
    assert len(target.classes) == int((visible >= 10).sum())  # a tenth of 100 pixels
    assert int((target.ids == -1).sum()) == int(visible[visible < 10].sum())
    assert not (target.ids == 0).any()
    assert all(area >= MIN_AREA for area in target.areas().tolist())


def test_small_objects_are_preserved_when_they_are_resized():
    """Objects of 100 pixels that shrink to 9 are whole, while those that a crop cuts to 9 are not."""
    target = pipeline([{"random_resize": {"scale": [0.3, 0.3], "relative_to": "image"}}])(
        torch.zeros(1, 40, 40, dtype=torch.uint8), squares()
    )[1]
    assert target.ids.shape == (12, 12) and len(target.classes) == 16
    assert target.areas().tolist() == [9] * 16


def test_resized_crops_measure_areas_at_the_new_scale():
    torch.manual_seed(0)
    step = pipeline([{"random_resized_crop": {"size": [64, 64], "scale": [0.1, 0.1], "ratio": [1, 1]}}])
    for _ in range(20):
        _, target = step(torch.zeros(1, 40, 40, dtype=torch.uint8), squares())
        scale = (64 / 13) ** 2
        assert all(area >= 0.1 * 100 * scale * 0.95 for area in target.areas().tolist())


def test_stuff_is_preserved_when_it_is_cut():
    ids = torch.ones(20, 20, dtype=torch.int32)
    ids[:, 1:] = 2
    segments = Segments(ids, (0, 1))
    step = pipeline([{"random_crop": {"size": [3, 20]}}])
    assert step(torch.zeros(1, 20, 20, dtype=torch.uint8), segments, frozenset({0}))[1].classes == (0, 1)
    assert step(torch.zeros(1, 20, 20, dtype=torch.uint8), segments)[1].classes == (1,)


def test_crops_are_placed_on_objects():
    """A single small object in a large image is in every crop that is placed on a class."""
    ids = torch.zeros(64, 64, dtype=torch.int32)
    ids[40:44, 50:54] = 1
    torch.manual_seed(0)
    step = pipeline([{"random_crop": {"size": 12, "class_probability": 1.0}}])
    for _ in range(30):
        cropped = step(torch.zeros(1, 64, 64, dtype=torch.uint8), Segments(ids, (0,)))[1].ids
        assert (cropped != 0).any()  # the object, or a sliver of it


def test_padding_is_ignored():
    _, target = pipeline([{"random_crop": {"size": 50}}])(torch.zeros(1, 40, 40, dtype=torch.uint8), squares())
    assert int((target.ids == -1).sum()) == 2500 - 1600


def test_collated_masks():
    ids = torch.zeros(2, 4, 6, dtype=torch.int32)
    ids[0, :2, :2], ids[0, 3, 5], ids[0, 3, 0] = 1, 2, -1
    targets = [Segments(ids[0], (4, 1)), Segments(ids[1], ())]  # the second image has no object
    labels = segment_labels(targets, segment_ids=True)
    assert [mask.shape for mask in labels["mask_labels"]] == [(2, 4, 6), (0, 4, 6)]
    assert all(mask.dtype == torch.bool for mask in labels["mask_labels"])
    assert labels["mask_labels"][0].sum((1, 2)).tolist() == [4, 1]
    assert [classes.tolist() for classes in labels["class_labels"]] == [[4, 1], []]
    assert all(classes.dtype == torch.int64 for classes in labels["class_labels"])
    assert labels["ignore_mask"].sum() == 1 and labels["ignore_mask"][0, 3, 0]
    assert torch.equal(labels["segment_ids"], ids)
    assert set(segment_labels(targets[1:])) == {"mask_labels", "class_labels"}


def test_batches_of_images_without_objects(tmp_path):
    """Stacking neither needs an object in each image nor in the batch."""
    source = write(tmp_path, MAP)
    write(tmp_path, np.zeros_like(MAP), name="b")
    dataset = opened("instance", source, classes=["nucleus"])
    processor = SemanticSegmentationImageProcessor(size={"height": 6, "width": 8})
    training = TrainingDataset(dataset, pipeline([]), seed=0)
    collate = Collator(processor, "instance", num_classes=1)
    for draws, counts in (([0, 1], [3, 0]), ([1, 1], [0, 0]), ([1], [0])):
        batch = collate([training[Draw(index, 0, place)] for place, index in enumerate(draws)])
        assert batch["pixel_values"].shape == (len(draws), 3, 6, 8)
        assert [len(classes) for classes in batch["class_labels"]] == counts
        assert [mask.shape for mask in batch["mask_labels"]] == [(count, 6, 8) for count in counts]


def test_missing_pixels_are_ignored(tmp_path):
    source = write(tmp_path, MAP)
    image = np.full((6, 8, 3), 9, np.uint8)
    image[0, 0] = 0
    Image.fromarray(image).save(tmp_path / "images/a.png")
    sample = opened("instance", source, classes=["nucleus"], nodata=0).read(0)
    assert sample.target.ids[0, 0] == -1 and sample.target.areas().tolist() == [3, 1, 10]


def test_shipped_nuclei_have_instance_maps():
    from paths import REPOSITORY

    counts = {}
    for split, images in (("train_uncropped", 120), ("test", 60)):
        folder = REPOSITORY / "examples/nuclei/data" / split
        source = {"kind": "folders", "images": str(folder / "images"), "instances": str(folder / "instances")}
        dataset = opened("instance", source, classes=["nucleus"])
        assert len(dataset) == images
        counts[split] = 0
        for index in range(images):
            raw = dataset.source.read(index).target
            assert isinstance(raw, RawSegments)
            if split == "test":
                mask = np.asarray(Image.open(folder / "masks" / f"{Path(dataset.name(index)).stem}.png"))
                assert np.array_equal(raw.ids.numpy() > 0, mask > 0)
            counts[split] += int(raw.ids.max())
    assert counts["test"] > 2000 and counts["train_uncropped"] > 4000
