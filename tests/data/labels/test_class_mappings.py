"""Classes as a mapping or as a JSON file."""

import json
from pathlib import Path

import pytest

from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import DataRecipe
from hf_vit_seg.training.recipe_loading import load_recipe

NAMES = ("back", "cell", "wall")


def table(classes) -> ClassTable:
    return ClassTable.from_recipe(DataRecipe(train={}, classes=classes))


def values(found: ClassTable) -> dict:
    return {raw: found.names[target] for raw, target in found.targets if target < len(found.names)}


@pytest.mark.parametrize(
    "classes",
    [
        {0: "back", 1: "cell", 2: "wall"},
        {"0": "back", "1": "cell", "2": "wall"},
        {"2": "wall", "0": "back", "1": "cell "},
        {2: "wall", "0": "back", 1: "cell"},
        {"back": 0, "cell": 1, "wall": 2},
        {"back": [0], "cell": [1], "wall": [2]},
    ],
)
def test_mappings_equal_a_list(classes):
    found = table(classes)
    assert found.names == NAMES
    assert values(found) == values(table(NAMES))


def test_ids_without_gaps_are_matched_to_the_source_by_name():
    found = table({"0": "back", "1": "cell"})
    assert found == table(["back", "cell"])
    assert found.match_source(("cell", "back")).class_index(0) == 1


def test_ids_with_gaps_are_raw_values():
    assert values(table({"10": "cell", "2": "back"})) == {2: "back", 10: "cell"}
    assert values(table({1: "cell", 255: "back"})) == {1: "cell", 255: "back"}


def test_names_with_several_values_and_colors():
    assert values(table({"back": 0, "cell": [1, 7]})) == {0: "back", 1: "cell", 7: "cell"}
    colors = {"back": [[0, 0, 0]], "cell": [[255, 0, 0], [0, 255, 0]]}
    assert values(table(colors)) == {(0, 0, 0): "back", (255, 0, 0): "cell", (0, 255, 0): "cell"}


@pytest.mark.parametrize(
    "content",
    [
        list(NAMES),
        dict(enumerate(NAMES)),
        {"model_type": "segformer", "id2label": dict(enumerate(NAMES)), "label2id": {}},
        {"names": list(NAMES)},
        {"back": 0, "cell": 1, "wall": 2},
    ],
)
def test_json_files(tmp_path, content):
    path = tmp_path / "id2label.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert values(table(str(path))) == values(table(NAMES))


def test_recipe_keeps_the_classes_of_a_file(tmp_path):
    path = tmp_path / "id2label.json"
    path.write_text('{"0": "back", "1": "cell"}')
    recipe = load_recipe("nuclei", [f"data.classes={path}"])
    path.unlink()
    assert recipe.data.classes == ("back", "cell")
    assert load_recipe("nuclei", ["data.classes={0: back, 1: cell}"]).data.classes == ("back", "cell")


@pytest.mark.parametrize(
    "classes",
    [
        {"a": "b", "c": "d"},
        {0: "a", "0": "b"},
        {0: "a", 1: None},
        {0.5: "a", 1: "b"},
        {True: "a", 0: "b"},
        {"01": "a", "2": "b"},
        {"a": 0, "b": True},
        {0: "a", 1: ["b"]},
    ],
)
def test_other_mappings_raise(classes):
    with pytest.raises(ValueError, match=r"expected|write each value once"):
        DataRecipe(train={}, classes=classes)


@pytest.mark.parametrize("content", ["", "{", "5", "[]", "{}", '{"0": "a", "0": "b"}', "\udcff"])
def test_other_files_raise(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordError, match=r"data\.classes"):
        load_recipe("nuclei", [f"data.classes={path}"])


def test_missing_file_raises(tmp_path: Path):
    with pytest.raises(RecordError, match=r"no\.json"):
        load_recipe("nuclei", [f"data.classes={tmp_path}/no.json"])


def test_paths_are_resolved_in_the_folder_of_the_recipe(tmp_path):
    """Also paths in lists, and those of lists of stems."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "id2label.json").write_text('{"0": "back", "1": "cell"}')
    for name in ("a.json", "b.json", "train.txt"):
        (folder / name).write_text("{}")
    recipe = {
        "model": {"architecture": "segformer", "variant": "b0"},
        "data": {
            "train": {"kind": "coco_masks", "annotations": ["a.json", "b.json"], "images": "nowhere"},
            "test": {"kind": "folders", "images": "nowhere", "masks": "nowhere", "stems": "train.txt"},
            "classes": "id2label.json",
        },
        "loop": {"steps": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    data = load_recipe(folder / "recipe.yaml").data
    assert data.classes == ("back", "cell")
    assert data.train["annotations"] == [str(folder / "a.json"), str(folder / "b.json")]
    assert data.test is not None and data.test["stems"] == str(folder / "train.txt")


def test_mapping_in_a_recipe_file_has_integer_keys(tmp_path):
    text = "model: {architecture: segformer, variant: b0}\nloop: {steps: 1}\ndata:\n"
    source = "  train: {kind: folders, images: a, masks: b}\n"
    (tmp_path / "recipe.yaml").write_text(f"{text}{source}  classes:\n    0: back\n    7: cell\n")
    classes = load_recipe(tmp_path / "recipe.yaml").data.classes
    assert values(table(classes)) == {0: "back", 7: "cell"}
