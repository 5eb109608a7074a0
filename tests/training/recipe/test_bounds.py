"""Bounds of the numbers of a recipe."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import run, settings, write_data, write_recipe

from hf_vit_seg.data.sources.source_registry import SOURCES
from hf_vit_seg.data.transforms.batch_mixing import BATCH_TRANSFORMS
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.losses.loss_registry import LOSSES
from hf_vit_seg.training.optimization.parameter_groups import GroupRow
from hf_vit_seg.training.recipe.location import RecipeFileError
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe

TABLES = (LOSSES, SOURCES, TRANSFORMS, BATCH_TRANSFORMS)
RECORDS = [Recipe, Protocol, GroupRow, *(table.row(name, "") for table in TABLES for name in table.rows)]
UPPER_BOUNDS = {"maximum", "exclusiveMaximum"}
LOWER_BOUNDS = {"minimum", "exclusiveMinimum"}
NUMBERS = {"number", "integer"}
UNBOUNDED = ("fill", "nodata", "flip_pairs")  # raw pixel values; indices that are checked by name


def unbounded(node: Any, path: str, definitions: dict[str, Any], bounds: Set[str]) -> Iterator[str]:
    """Yield the paths of numbers without any of the bounds in a JSON schema."""
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    if node.get("type") in NUMBERS and not bounds & node.keys():
        yield path
    parts = [*node.get("anyOf", ()), *node.get("prefixItems", ()), node.get("items")]
    for part in [each for each in parts if isinstance(each, dict)]:
        yield from unbounded(part, path, definitions, bounds)
    for name, part in node.get("properties", {}).items():
        yield from unbounded(part, f"{path}.{name}".strip("."), definitions, bounds)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_number_has_a_bound(record):
    schema = record.model_json_schema()
    for bounds in (LOWER_BOUNDS, UPPER_BOUNDS):
        found = set(unbounded(schema, "", schema.get("$defs", {}), bounds))
        assert {path for path in found if path.rpartition(".")[2] not in UNBOUNDED} == set()


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("loss.cross_entropy.class_weights=[-1,1,1]", "loss.cross_entropy.class_weights.0"),
        ("loss.cross_entropy.class_weights=[0,0,0]", "loss.cross_entropy.class_weights"),
        ("loss.focal.alpha=2", "loss.focal.alpha"),
        ("loss.focal.alpha=-0.1", "loss.focal.alpha"),
        ("loss.focal.alpha=[0.5,-1]", "loss.focal.alpha.1"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps"),
        ("schedule.milestones=[0.5,1.5]", "schedule.milestones.1"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas.1"),
        ("loop.epochs=1e300", "loop.epochs"),
        ("optimizer.learning_rate=1e300", "optimizer.learning_rate"),
        ("optimizer.weight_decay=1e300", "optimizer.weight_decay"),
        ("optimizer.head_multiplier=1e300", "optimizer.head_multiplier"),
        ("optimizer.groups=[{match: head, learning_rate_scale: 1e300}]", "optimizer.groups.0.learning_rate_scale"),
        ("model.lora={alpha: 1e300}", "model.lora.alpha"),
        ("loss.cross_entropy.weight=1e300", "loss.cross_entropy.weight"),
        ("loss.focal.gamma=1e300", "loss.focal.gamma"),
        ("loss.cross_entropy.class_weights=[1e300,1,1]", "loss.cross_entropy.class_weights.0"),
        ("schedule.power=1e300", "schedule.power"),
        ("data.workers=1000000000", "data.workers"),
        ("transforms=[{random_crop: {size: [1000000000,1000000000]}}]", "transforms.0.random_crop.size.0"),
        ("transforms=[{pad: {size: 1000000000}}]", "transforms.0.pad.size"),
        ("transforms=[{random_resize: {scale: [1,1e300]}}]", "transforms.0.random_resize.scale.1"),
        ("loop.steps=1000000000000000000000", "loop.steps"),
        ("seed=4294967296", "seed"),
        ("loop.batch_size=0", "loop.batch_size"),
        ("data.ignore=[[300,0,0]]", "data.ignore.0.0"),
        ("data.ignore=[99999999999999999999]", "data.ignore.0"),
    ],
)
def test_number_out_of_bounds_raises(tmp_path, override, name):
    recipe = write_recipe(tmp_path, settings(Path("data")))
    with pytest.raises(RecipeFileError) as error:
        load_recipe(recipe, [override])
    assert f": {name} should be" in str(error.value) or f": {name}: found" in str(error.value)


@pytest.mark.parametrize("override", ["loss.cross_entropy.class_weights=[0,1,2.5]", "loss.focal.alpha=[0,1,3]"])
def test_weight_of_zero_is_accepted(tmp_path, override):
    load_recipe(write_recipe(tmp_path, settings(Path("data"))), [override])


@pytest.mark.parametrize(
    "field", ["image_std=[0,1,1]", "image_std=[1,-1,1]", "rescale_factor=0", "image_mean=[.nan,0,0]"]
)
def test_normalization_that_divides_by_zero_raises(tmp_path, field):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    with pytest.raises(RecordError, match=field.partition("=")[0]):
        run(recipe, tmp_path / "run", f"processor.{field}")


# Losses, batch transforms and the task


@pytest.mark.parametrize(
    "overrides",
    [
        ["batch_transforms=[mixup]", "loss={focal: null}"],
        ["batch_transforms=[cutmix]", "loss={cross_entropy: null, focal: {weight: 0.5}}"],
        ["loss={dice: null}"],
        ["batch_transforms=[{mixup: {probability: 0.7}},{cutmix: {probability: 0.7}}]"],
    ],
)
def test_losses_that_do_not_fit_a_classifier_are_rejected_when_read(overrides):
    with pytest.raises(RecipeFileError):
        load_recipe("digits", overrides)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_losses_of_soft_labels_take_batch_transforms(loss):
    assert load_recipe("digits", ["batch_transforms=[mixup]", f"loss={{{loss}: null}}"]).loss.keys() == {loss}


def test_batch_transforms_of_segmenters_are_rejected_when_read():
    with pytest.raises(RecipeFileError, match="classification"):
        load_recipe("nuclei", ["batch_transforms=[mixup]"])


def test_losses_of_pose_models_are_rejected_when_read():
    with pytest.raises(RecipeFileError, match="own loss"):
        load_recipe("coco_pose_mini", ["loss={cross_entropy: null}"])


@pytest.mark.parametrize("loss", ["{binary_cross_entropy: null}", "{cross_entropy: {class_weights: [1, 2]}}"])
def test_losses_of_other_class_counts_are_rejected_before_the_data_are_read(tmp_path, monkeypatch, loss):
    recipe = write_recipe(tmp_path, settings(write_data(tmp_path / "data")))
    monkeypatch.setattr("hf_vit_seg.training.loop.setup.check_data", lambda *_: pytest.fail("the data were read"))
    with pytest.raises(RecordError, match=r"loss\."):
        run(recipe, tmp_path / "run", f"loss={loss}")
