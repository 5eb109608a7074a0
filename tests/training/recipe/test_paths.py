"""Relative paths in recipes: which file is meant from any working directory, and after a move."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_runs import run, settings, weights, write_data, write_recipe

from hf_vit_seg.data.sources.source_registry import SourceError
from hf_vit_seg.training.checkpoints.resume import resume_notes
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.checkpoints.state import CheckpointError, checkpoints, read_manifest
from hf_vit_seg.training.recipe.differences import differences
from hf_vit_seg.training.recipe.files import publishable_recipe_text, recipe_text
from hf_vit_seg.training.recipe.paths import describe_data, relative_paths
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.train_commands import evaluate_command


def relative_recipe(folder: Path) -> Path:
    """Write data and a recipe with relative paths to a folder."""
    write_data(folder)
    changes = settings(folder)
    for split in ("train", "validation"):
        changes["data"][split] |= {"images": f"{split}/images", "masks": f"{split}/masks/{{stem}}.png"}
    return write_recipe(folder, changes)


def image_folder(recipe: Path, *overrides: str) -> str:
    return load_recipe(recipe, overrides).data.train["images"]


@pytest.fixture
def project(tmp_path) -> Path:
    """A project with a recipe and its data, and another one with data of the same names."""
    relative_recipe(tmp_path / "other")
    return relative_recipe(tmp_path / "project").parent


@pytest.mark.parametrize("current", ["project", "other", "."])
def test_data_of_a_recipe_do_not_depend_on_the_working_directory(project, current, monkeypatch):
    monkeypatch.chdir(project.parent / current)
    recipe = Path(os.path.relpath(project / "recipe.yaml"))
    assert image_folder(recipe) == str(project / "train" / "images")
    assert load_recipe(recipe).data.train["masks"] == str(project / "train" / "masks" / "{stem}.png")


def test_paths_missing_in_the_recipes_folder_start_from_the_working_directory(project, monkeypatch):
    (project / "configs").mkdir()
    recipe = project / "configs" / "recipe.yaml"
    (project / "recipe.yaml").rename(recipe)
    monkeypatch.chdir(project)
    assert image_folder(recipe) == str(project / "train" / "images")
    monkeypatch.chdir(project.parent)
    assert image_folder(recipe) == "train/images"


def test_overrides_start_from_the_working_directory(project, monkeypatch):
    other = project.parent / "other"
    monkeypatch.chdir(other)
    override = "data.train={kind: folders, images: train/images, masks: train/masks}"
    assert image_folder(project / "recipe.yaml", override) == str(other / "train" / "images")
    assert load_recipe(project / "recipe.yaml", [override]).data.validation["images"].startswith(str(project))


def test_hub_ids_and_absolute_paths_are_unchanged(project, monkeypatch):
    monkeypatch.chdir(project)
    source = "data.train={kind: huggingface, name: owner/dataset, split: train}"
    assert load_recipe(project / "recipe.yaml", [source]).data.train["name"] == "owner/dataset"
    start = ["model={from_pretrained: owner/model}"]
    assert load_recipe(project / "recipe.yaml", start).model.from_pretrained == "owner/model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A project with a run of one step, and another project with data of the same names."""
    folder = tmp_path_factory.mktemp("trained")
    relative_recipe(folder / "other")
    recipe = relative_recipe(folder / "project")
    run(recipe, recipe.parent / "out", "loop.steps=1")
    return folder


@pytest.fixture
def moved(trained, tmp_path) -> Path:
    """The project with its run, moved as a whole."""
    shutil.copytree(trained, tmp_path / "all")
    folder = tmp_path / "all" / ("renamed" * 10)  # longer than a value that messages shorten
    shutil.move(tmp_path / "all" / "project", folder)
    for path in folder.glob("out/**/recipe.yaml"):  # the old place no longer exists
        path.write_text(path.read_text().replace(str(trained / "project"), str(tmp_path / "gone")))
    for path in folder.glob("out/**/manifest.json"):
        path.write_text(path.read_text().replace(str(trained / "project"), str(tmp_path / "gone")))
    return folder


def test_evaluate_reads_the_data_of_the_run_from_any_directory(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all" / "other")
    model = tmp_path / "all" / "project" / "out" / "last"
    assert evaluate_command(str(model), [], None, "validation", None) == 0
    # the copy's recipe still names the data of the original, which exist
    printed = capsys.readouterr().out
    assert str(trained / "project" / "validation" / "images") in printed
    assert str(tmp_path / "all" / "other") not in printed
    (metrics,) = model.glob("*/metrics.json")
    assert json.loads(metrics.read_text())["images"] == 3


def test_moved_project_finds_its_data(moved, monkeypatch, capsys):
    monkeypatch.chdir(moved.parent / "other")
    assert evaluate_command(str(moved / "out" / "last"), [], None, "validation", None) == 0
    assert str(moved / "validation" / "images") in capsys.readouterr().out


def test_saved_recipes_never_use_the_working_directory(moved, monkeypatch):
    shutil.rmtree(moved / "validation")
    monkeypatch.chdir(moved.parent / "other")
    assert evaluate_command(str(moved / "out" / "last"), [], None, "validation", None) == 2


def test_published_recipes_never_use_the_working_directory(trained, monkeypatch, tmp_path):
    text = publishable_recipe_text((trained / "project" / "out" / "recipe.yaml").read_text())
    assert str(trained) not in text and "./train/images" in text
    published = tmp_path / "recipe.yaml"
    published.write_text(text)
    monkeypatch.chdir(trained / "other")
    assert image_folder(published) == str(tmp_path / "train" / "images")


def test_resume_after_the_data_moved(moved):
    out = moved / "out"
    run(moved / "recipe.yaml", out, "loop.steps=2", resume=True)
    assert read_manifest(checkpoints(out / "checkpoints")[-1]).step == 2
    assert weights(out / "last")


def test_another_hub_dataset_is_not_moved_data(project):
    one, other = (
        load_recipe(project / "recipe.yaml", [f"data.train={{kind: huggingface, name: owner/{name}, split: train}}"])
        for name in ("one", "other")
    )
    assert set(differences(one, other)) == {"data.train.name"}


def test_moved_data_are_reported(moved):
    manifest = read_manifest(checkpoints(moved / "out" / "checkpoints")[-1])
    notes = resume_notes(manifest, load_recipe(moved / "recipe.yaml", ["loop.steps=1"]), 1)
    assert sum("data.train.images" in note and str(moved) in note for note in notes) == 1


def test_resume_with_other_data_that_exist_raises(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "all")
    with pytest.raises(CheckpointError, match=r"data\.train\.images"):
        run(tmp_path / "all" / "other" / "recipe.yaml", tmp_path / "all" / "project" / "out", resume=True)


def test_saved_recipe_is_the_same_recipe(project, tmp_path):
    recipe = load_recipe(project / "recipe.yaml")
    saved = tmp_path / "run" / "recipe.yaml"
    saved.parent.mkdir()
    saved.write_text(recipe_text(recipe, saved.parent))
    assert load_recipe(saved) == recipe
    absolute = str(project / "train" / "images")
    assert relative_paths(recipe.model_dump(), saved.parent)[absolute] == "../project/train/images"


def test_class_files_belong_to_the_recipe(project, monkeypatch):
    (project / "classes.json").write_text('["ground", "disc", "bar"]')
    (project.parent / "other" / "classes.json").write_text('["a", "b", "c"]')
    changes = settings(project)
    changes["data"]["classes"] = "classes.json"
    recipe = write_recipe(project, changes)
    monkeypatch.chdir(project.parent / "other")
    assert load_recipe(recipe).data.classes == ("ground", "disc", "bar")


def test_data_are_described(project):
    recipe = load_recipe(project / "recipe.yaml")
    lines = describe_data(recipe.data.model_dump())
    assert [line.partition(":")[0] for line in lines] == ["data.train", "data.validation"]
    assert f"images {project / 'train' / 'images'}, masks" in lines[0]


def test_missing_data_of_a_recipe_name_the_path(project):
    shutil.rmtree(project / "train")
    with pytest.raises(SourceError, match=r"data\.train: images: train/images: the folder does not exist"):
        run(project / "recipe.yaml", RunDirectory(project / "run").path)


@pytest.mark.parametrize("name", ["nuclei", "nuclei_hybrid"])
def test_data_of_shipped_recipes_are_installed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_recipe(name).data
    for split in (data.train, data.test):
        assert all(any(Path(split[folder]).iterdir()) for folder in ("images", "masks"))
    own = tmp_path / "examples" / "nuclei" / "data" / "train" / "images"
    own.mkdir(parents=True)
    assert load_recipe(name).data.train["images"] == str(own)
