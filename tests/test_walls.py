"""The walls of the house, read from the imports."""

import ast
import sys
from pathlib import Path

import hf_vit_seg.configs
import hf_vit_seg.conversion
import pytest

import hf_vit_seg.models

MODELS = Path(hf_vit_seg.models.__file__).parent
PACKAGE = MODELS.parent
# The image processors need what transformers' own need.
ALLOWED = {"torch", "transformers", "huggingface_hub"}
ALLOWED_FOR_IMAGES = ALLOWED | {"numpy", "PIL", "torchvision"}
# An arrow goes from a folder to those it may import.
ARROWS = {
    "models": set(),
    "data": {"models"},
    "metrics": set(),
    "inference": {"models", "data"},
    "training": {"models", "data", "metrics", "inference"},
    "export": {"models", "data", "inference"},
    "hub": {"models", "data", "inference", "training", "demo"},
    "demo": {"models", "data", "inference"},
    "conversion": {"models"},
}

copied = sorted(path for path in MODELS.glob("*.py") if not path.name.startswith(("plugin_", "__init__")))


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", copied, ids=lambda path: path.name)
def test_models_import_what_the_hub_can_copy(path):
    siblings = {other.stem for other in copied}
    allowed = ALLOWED_FOR_IMAGES if path.stem.startswith(("image_processing", "label_maps")) else ALLOWED
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, ast.unparse(node)
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                top = (name or "").partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, ast.unparse(node)


@pytest.mark.parametrize("path", copied, ids=lambda path: path.name)
def test_no_relative_import_stands_where_the_hub_misreads_it(path):
    """transformers scans the text with a regular expression: docstrings and TYPE_CHECKING blocks count for it."""
    text = path.read_text()
    assert "TYPE_CHECKING" not in text
    relative = [line for line in text.splitlines() if line.strip().startswith(("from .", "import ."))]
    assert len(relative) == sum(isinstance(n, ast.ImportFrom) and n.level == 1 for n in imports(path))


@pytest.mark.parametrize("folder", sorted(ARROWS.keys() - {"models"}))
def test_arrows_go_one_way(folder):
    """Imports of other folders of the package; single files at its top, such as records.py, are everybody's."""
    home = PACKAGE.parent / "conversion" if folder == "conversion" else PACKAGE / folder
    allowed = ARROWS[folder] | {folder, "configs"}
    for path in home.rglob("*.py"):
        for node in imports(path):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), f"{path}: {ast.unparse(node)}"
            top = module.split(".")[1] if module.startswith("hf_vit_seg.") else ""
            assert top in allowed or not (PACKAGE / top).is_dir() or not top, f"{path}: {ast.unparse(node)}"


@pytest.mark.parametrize("folder", sorted(ARROWS.keys() - {"models", "conversion"}))
def test_nothing_outside_models_names_an_architecture(folder):
    names = {"SegFormer", "VisionTransformer", "CvT"}
    for path in (PACKAGE / folder).rglob("*.py"):
        identifiers = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not [i for i in identifiers if any(i.startswith(name) for name in names)], path.name


def test_conversion_knows_models_by_config_and_parameter_names_alone():
    for path in Path(hf_vit_seg.conversion.__file__).parent.glob("*.py"):
        for node in imports(path):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert "modeling_" not in module, f"{path.name}: {ast.unparse(node)}"


def test_files_have_nouns_for_names():
    vague = {"utils", "helpers", "common", "misc", "base"}
    folders = [PACKAGE, Path(hf_vit_seg.conversion.__file__).parent, Path(hf_vit_seg.configs.__file__).parent]
    for folder in folders:
        assert not [p for p in folder.rglob("*.py") if vague & set(p.stem.split("_"))]
