"""Names with accented letters, composed (NFC) or decomposed (NFD)."""

import json
import unicodedata

import pytest
from PIL import Image

from hf_vit_seg.data.labels.class_table import ClassTable, ClassTableError
from hf_vit_seg.data.sources.source_registry import SourceError, open_source
from hf_vit_seg.training.recipe.schema import DataRecipe

FORMS = [("NFC", "NFC"), ("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")]


def form(kind: str, text: str) -> str:
    return unicodedata.normalize(kind, text)


def save(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3)).save(path)


@pytest.mark.parametrize(("first", "second"), FORMS)
@pytest.mark.parametrize("template", ["{folder}", "{folder}/é_{{stem}}.png"])
def test_folders_are_paired_in_any_form(tmp_path, first, second, template):
    save(tmp_path / "images" / form(first, "é_ü.png"))
    save(tmp_path / "masks" / form(second, "é_ü.png"))
    places = {part: template.format(folder=tmp_path / part) for part in ("images", "masks")}
    source = open_source({"kind": "folders", **places}, "segmentation")
    assert source.read(0).target.shape == (3, 4)


def test_images_that_differ_in_form_only_raise(tmp_path):
    for kind in ("NFC", "NFD"):
        save(tmp_path / "images" / form(kind, "é.png"))
    save(tmp_path / "masks" / "é.png")
    with pytest.raises(SourceError, match="two files with the stem"):
        open_source({"kind": "folders", "images": f"{tmp_path}/images", "masks": f"{tmp_path}/masks"}, "segmentation")


@pytest.mark.parametrize(("disk", "listed"), FORMS)
def test_lists_and_annotations_find_files_in_any_form(tmp_path, disk, listed):
    save(tmp_path / form(disk, "é/ü.png"))
    name = form(listed, "é/ü.png")
    (tmp_path / "l.csv").write_text(f"image,label\n{name},{form(listed, 'é')}\n", encoding="utf-8")
    source = open_source({"kind": "list", "file": str(tmp_path / "l.csv")}, "classification")
    assert source.read(0).target == 0
    assert source.class_names == (form("NFC", "é"),)
    content = {
        "images": [{"id": 1, "file_name": name, "height": 3, "width": 4}],
        "annotations": [],
        "categories": [{"id": 1, "name": form(listed, "é")}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    settings = {"kind": "coco_masks", "annotations": str(tmp_path / "a.json"), "images": str(tmp_path)}
    source = open_source({**settings, "categories": [form(disk, "é")]}, "segmentation")
    assert source.read(0).target.shape == (3, 4)


@pytest.mark.parametrize(("disk", "recipe"), FORMS)
def test_classes_match_folders_in_any_form(tmp_path, disk, recipe):
    for name in ("é", "a"):
        save(tmp_path / form(disk, name) / "1.png")
    source = open_source({"kind": "class_folders", "root": str(tmp_path)}, "classification")
    data = DataRecipe(train={}, classes=(form(recipe, "é"), "a"))
    table = ClassTable.from_recipe(data, source.class_names).match_source(source.class_names)
    found = [table.names[table.class_index(source.read(index).target)] for index in range(len(source))]
    assert sorted(found) == ["a", form("NFC", "é")]


def test_labels_in_two_forms_are_one_class(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    rows = f"a.png,{form('NFC', 'é')}\nb.png,{form('NFD', 'é')}\n"
    (tmp_path / "l.csv").write_text(f"image,label\n{rows}", encoding="utf-8")
    source = open_source({"kind": "list", "file": str(tmp_path / "l.csv")}, "classification")
    assert len(source.class_names) == 1


def test_classes_that_differ_in_form_only_raise():
    with pytest.raises(ClassTableError, match="twice"):
        ClassTable.from_recipe(DataRecipe(train={}, classes=(form("NFC", "é"), form("NFD", "é"))))


@pytest.mark.parametrize(
    ("task", "word"), [("classification", "labels"), ("segmentation", "masks"), ("pose", "keypoints")]
)
def test_missing_classes_raise_in_terms_of_the_task(task, word):
    with pytest.raises(ClassTableError) as error:
        ClassTable.from_recipe(DataRecipe(train={}), None, task)
    assert word in str(error.value)
    assert task == "segmentation" or "masks" not in str(error.value)
