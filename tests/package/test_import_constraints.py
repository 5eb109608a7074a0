"""Which modules may import which, read from the source files."""

import ast
import sys
from pathlib import Path

import hf_vit_seg.configs
import hf_vit_seg.conversion
import pytest
from transformers.dynamic_module_utils import get_imports

import hf_vit_seg.models

MODELS = Path(hf_vit_seg.models.__file__).parent
PACKAGE = MODELS.parent
# The image processors have the requirements of transformers' processors.
ALLOWED = {"packaging", "torch", "transformers", "huggingface_hub"}
ALLOWED_FOR_MASKS = ALLOWED | {"scipy"}  # imported within `try`, which transformers does not require
ALLOWED_FOR_IMAGES = ALLOWED | {"numpy", "PIL", "torchvision"}
# Each folder maps to those that it may import.
ARROWS = {
    "models": set(),
    "data": {"models"},
    "metrics": set(),
    "drawing": set(),
    "loading": {"models", "conversion"},
    "inference": {"models", "data", "drawing", "conversion", "loading"},
    "training": {"models", "data", "metrics", "inference", "drawing", "conversion", "loading"},
    "export": {"models", "data", "inference", "loading"},
    "hub": {"models", "data", "inference", "training", "demo", "drawing", "conversion", "loading"},
    "demo": {"models", "data", "inference", "drawing", "loading"},
    "conversion": {"models"},
    "cli": {"data", "inference", "training", "export", "hub", "demo", "conversion"},
}

# Inside a folder, modules and subpackages import only those of later levels: no cycles.
LEVELS: dict[str, list[set[str]]] = {
    "training": [
        {"__main__"},
        {"train_commands", "data_check"},
        {"runs"},
        {"recipe_loading", "loop"},
        {"evaluate_saved"},
        {"figures"},
        {"evaluation", "checkpoints"},
        {"losses", "optimization"},
        {"model"},
        {"reports"},
        {"recipe"},
    ],
    "data": [
        {"sample_weights"},
        {"checks"},
        {"datasets", "collation"},
        {"sources", "transforms"},
        {"storage"},
        {"labels", "statistics", "stream"},
        {"samples"},
        {"images", "list_formatting"},
    ],
    "inference": [
        {"__init__", "predict_command", "pipeline"},
        {"tiles", "video", "batch"},
        {"files"},
        {"segmenter", "classifier", "pose_estimator", "instance_segmenter"},
        {"object_stitching", "image_segmenter"},
        {"segmentation", "found_segments", "dense", "runtimes"},
        {"image_model"},
        {"annotations", "image_inputs", "output_checks"},
    ],
    "loading": [{"models"}, {"devices", "image_processors"}, {"errors"}],
}

copied = sorted(path for path in MODELS.glob("*.py") if not path.name.startswith(("plugin_", "__init__")))


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", copied, ids=lambda path: path.name)
def test_models_import_only_what_the_hub_copies(path):
    siblings = {other.stem for other in copied}
    allowed = ALLOWED_FOR_IMAGES if path.stem.startswith(("image_processing", "label_maps")) else ALLOWED
    allowed = ALLOWED_FOR_MASKS if path.stem == "mask_loss" else allowed
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, ast.unparse(node)
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                top = (name or "").partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, ast.unparse(node)


def test_copies_on_the_hub_do_not_require_scipy():
    assert set(get_imports(MODELS / "mask_loss.py")) - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("path", copied, ids=lambda path: path.name)
def test_relative_imports_are_readable_by_the_hub(path):
    """transformers scans the text with a regular expression, so docstrings and TYPE_CHECKING blocks count."""
    text = path.read_text()
    assert "TYPE_CHECKING" not in text
    relative = [line for line in text.splitlines() if line.strip().startswith(("from .", "import ."))]
    assert len(relative) == sum(isinstance(n, ast.ImportFrom) and n.level == 1 for n in imports(path))


def imported_names(tree: ast.AST) -> set[str]:
    """The dotted names of all modules and of the names that a file imports from them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden_imports(tree: ast.AST, folder: str) -> set[str]:
    """Forbidden imports of a file in a package folder; top-level modules may be imported by all."""
    allowed = ARROWS[folder] | {folder, "configs"}
    walled = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {"conversion", "spaces"}
    parts = {name: name.split(".") for name in imported_names(tree) if name.startswith("hf_vit_seg.")}
    found = {name for name, dotted in parts.items() if dotted[1] in walled - allowed}
    above = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 1}
    return found | above


def parts_imported(path: Path, folder: Path) -> set[str]:
    """The modules and subpackages of `folder` that one of its files imports, except its own."""
    package = ["hf_vit_seg", folder.name, *path.relative_to(folder).parent.parts]
    names = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    dotted = [name.split(".") for name in names]
    return {part[2] for part in dotted if part[:2] == ["hf_vit_seg", folder.name] and len(part) > 2} - {
        own_part(path, folder)
    }


def own_part(path: Path, folder: Path) -> str:
    """The module or subpackage of `folder` that a file belongs to."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_subpackages_import_later_levels_only(name):
    folder = PACKAGE / name
    level = {part: number for number, parts in enumerate(LEVELS[name]) for part in parts}
    found = {own_part(path, folder) for path in folder.rglob("*.py")}
    assert found - set(level) <= {"__init__"}
    for path in folder.rglob("*.py"):
        own = level.get(own_part(path, folder), 0)
        for part in parts_imported(path, folder) & set(level):
            assert level[part] > own, f"{path} imports {part}"


def test_folders_have_few_files():
    """A folder has at most 16 files besides `__init__.py`; the folder of models is flat for the Hub."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE / "models"}
    counts = {folder: sum(path.name != "__init__.py" for path in folder.glob("*.py")) for folder in folders}
    assert not {folder: count for folder, count in counts.items() if count > 16}


def architectures_named(tree: ast.AST) -> set[str]:
    """Names of architecture classes and modules anywhere in a file."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {part for name in imported_names(tree) for part in name.split(".")}
    classes = ("SegFormer", "VisionTransformer", "CvT", "BackboneSegmentation", "BackboneForSemantic")
    return {word for word in names if word.startswith((*classes, "modeling_", "configuration_"))} - LIBRARY_MODULES


LIBRARY_MODULES = {"modeling_auto", "modeling_outputs", "modeling_utils", "modeling_layers", "configuration_utils"}
TREES = {
    (folder, path): ast.parse(path.read_text())
    for folder in ARROWS
    for path in (PACKAGE.parent / folder if folder == "conversion" else PACKAGE / folder).rglob("*.py")
}


def test_every_folder_has_files():
    assert {folder for folder, _ in TREES} == set(ARROWS)


@pytest.mark.parametrize("folder", sorted(ARROWS.keys() - {"models"}))
def test_dependencies_are_one_way(folder):
    for (home, path), tree in TREES.items():
        assert home != folder or not forbidden_imports(tree, folder), path


@pytest.mark.parametrize(
    "line",
    [
        "from hf_vit_seg import training",
        "import os, hf_vit_seg.hub.push",
        "from hf_vit_seg.conversion import registry",
        "from hf_vit_seg.cli import app",
        "def late():\n    from hf_vit_seg.training.loop.trainer import run",
        "from ..training import run",
    ],
)
def test_forbidden_import_is_detected(line):
    assert forbidden_imports(ast.parse(line), "metrics")


@pytest.mark.parametrize("folder", sorted(ARROWS.keys() - {"models", "conversion"}))
def test_code_outside_models_names_no_architecture(folder):
    for (home, path), tree in TREES.items():
        assert home != folder or not architectures_named(tree), path


@pytest.mark.parametrize(
    "line",
    [
        "from hf_vit_seg.models.modeling_vit import VisionTransformerModel as Model",
        "import hf_vit_seg.models.modeling_cvt",
        "hf_vit_seg.models.modeling_segformer.SegFormerModel",
    ],
)
def test_architecture_name_is_detected(line):
    assert architectures_named(ast.parse(line))


def test_conversion_uses_only_configs_and_parameter_names():
    for (home, path), tree in TREES.items():
        modules = {part for name in imported_names(tree) for part in name.split(".")}
        assert home != "conversion" or not [part for part in modules if part.startswith("modeling_")], path


def test_file_names_are_nouns():
    vague = {"utils", "helpers", "common", "misc", "base"}
    folders = [PACKAGE, Path(hf_vit_seg.conversion.__file__).parent, Path(hf_vit_seg.configs.__file__).parent]
    for folder in folders:
        assert not [p for p in folder.rglob("*.py") if vague & set(p.stem.split("_"))]
