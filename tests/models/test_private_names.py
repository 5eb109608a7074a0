"""Model code works without the private names of torch that it uses, in this package and in its copies on the Hub."""

import ast
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bare_environment import bare_packages, read_bare
from hub_models import save_tiny_model
from PIL import Image
from random_weights import randomize_weights

import hf_vit_seg.models
from hf_vit_seg import architectures
from hf_vit_seg.models import cpu_kernels
from hf_vit_seg.models.losses import semantic_segmentation_loss

MODELS = Path(hf_vit_seg.models.__file__).parent
# Variables of cpu_kernels with the default of `private` for a missing name.
MISSING: dict[str, Any] = {
    "transforms_are_active": cpu_kernels.assume_true,
    "in_dispatch_mode": cpu_kernels.assume_true,
    "has_global_hooks": cpu_kernels.assume_true,
    "forward_ad": types.SimpleNamespace(),
    "HOOK_TABLES": ("_no_such_table",),
    "onednn_linear": None,
    "onednn_convolution": None,
    "onednn_packed_convolution": None,
    "onednn_pack": None,
    "bilinear_backward": None,
}
# Together they have every fast path.
VARIANTS = [("segformer", "b0"), ("vit", "r-ti-16"), ("cvt", "cvt-13")]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[transformers.PreTrainedModel, torch.Tensor, torch.Tensor]]:
    """Models, each with an image and its logits."""
    found = {}
    for name, variant in VARIANTS:
        config = architectures()[name].variant_config(variant, num_labels=3)
        model = randomize_weights(transformers.AutoModelForSemanticSegmentation.from_config(config)).eval()
        image = torch.randn(1, 3, 96, 64)
        with torch.no_grad():
            found[name] = model, image, model(image).logits
    return found


@pytest.mark.parametrize("variable", MISSING)
def test_each_private_name_can_be_missing(variable, models, monkeypatch):
    monkeypatch.setattr(cpu_kernels, variable, MISSING[variable])
    for model, image, expected in models.values():
        with torch.no_grad():
            torch.testing.assert_close(model(image).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variable", ["transforms_are_active", "in_dispatch_mode", "has_global_hooks", "forward_ad"])
def test_unverifiable_conditions_disable_fast_paths(variable, monkeypatch):
    assert cpu_kernels.is_plain_eager()
    monkeypatch.setattr(cpu_kernels, variable, MISSING[variable])
    assert not cpu_kernels.is_plain_eager()


def test_layers_with_unknown_hook_tables_count_as_hooked(monkeypatch):
    layers = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert not cpu_kernels.has_inner_hooks(layers)
    monkeypatch.setattr(cpu_kernels, "HOOK_TABLES", MISSING["HOOK_TABLES"])
    assert cpu_kernels.has_inner_hooks(layers)


def test_loss_gradient_is_the_same_without_the_torch_kernel(monkeypatch):
    gradients = []
    labels = torch.randint(0, 7, (2, 37, 41))
    logits = torch.randn(2, 7, 9, 10, dtype=torch.float64)
    for kernel in (cpu_kernels.bilinear_backward, None):
        monkeypatch.setattr(cpu_kernels, "bilinear_backward", kernel)
        inputs = logits.clone().requires_grad_()
        semantic_segmentation_loss(inputs, labels, 255).backward()
        gradients.append(inputs.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_looked_up_names_exist_and_unknown_ones_use_the_default():
    assert len(cpu_kernels.PRIVATE_NAMES) == len(set(cpu_kernels.PRIVATE_NAMES)) == len(MISSING) - 1
    assert cpu_kernels.private("torch.nn.no_such.name", "default") == "default"
    cpu_kernels.PRIVATE_NAMES.remove("torch.nn.no_such.name")
    missing = [name for name in cpu_kernels.PRIVATE_NAMES if not exists(name)]
    assert not missing, "torch has renamed these: adapt cpu_kernels"


def exists(path: str) -> bool:
    """Whether torch has a name."""
    found: Any = torch
    for name in path.split(".")[1:]:
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def private_names(tree: ast.AST) -> set[str]:
    """The private names of torch in a file: those with an underscore, and operators."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "torch" and (any(p.startswith("_") for p in parts) or parts[1:2] in (["ops"],)):
                found.add(name)
    return found


def test_private_names_are_used_in_one_module():
    for path in MODELS.glob("*.py"):
        assert not private_names(ast.parse(path.read_text())), path.name


@pytest.mark.parametrize(
    "line", ["from torch.nn.modules.module import _x", "import torch._C", "torch._C._x()", "torch.ops.aten.add(1, 2)"]
)
def test_private_name_is_detected(line):
    assert private_names(ast.parse(line))


def test_copies_on_the_hub_work_without_each_name(tmp_path):
    """One process without the package: a name is deleted from torch before the code of a model is imported."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    cases = []
    for name in ("segformer", "vit"):
        fields = {"num_labels": 3} | (
            {"stem": "resnetv2", "stem_depths": [1], "patch_size": 1} if name == "vit" else {}
        )
        folder = save_tiny_model(tmp_path / name, name, **fields)
        wanted = tmp_path / f"{name}.npy"
        np.save(wanted, logits(folder, tmp_path / "image.png"))
        for number, missing in enumerate(["", *cpu_kernels.PRIVATE_NAMES]):
            copied = tmp_path / f"{name}_{number}"  # transformers imports the code of each directory separately
            copied.symlink_to(folder)
            case = {"model": str(copied), "auto": "AutoModelForSemanticSegmentation", "without": missing}
            cases.append(case | {"image": str(tmp_path / "image.png"), "wanted": str(wanted)})
    (tmp_path / "packages").mkdir()
    read_bare(bare_packages(tmp_path / "packages"), cases, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"))


def logits(folder: Path, image: Path) -> np.ndarray:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**processor(Image.open(image), return_tensors="pt")).logits.numpy()


def code_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py") if path.name != "__init__.py"}


SEMANTIC, UNIVERSAL = "AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"
LIMITS = [("segformer", SEMANTIC, 11), ("cvt", SEMANTIC, 11), ("vit", SEMANTIC, 14)]
LIMITS += [("segformer", UNIVERSAL, 16), ("cvt", UNIVERSAL, 17), ("vit", UNIVERSAL, 18)]


@pytest.mark.parametrize(("name", "auto", "limit"), LIMITS)
def test_saved_model_has_few_files(name, auto, limit, tmp_path):
    config = architectures()[name].variant_config("tiny")
    getattr(transformers, auto).from_config(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"][auto].startswith("modeling_")
    files = code_files(tmp_path)
    assert "cpu_kernels.py" in files and len(files) <= limit, sorted(files)
    architectures()[name].image_processor["torchvision"]().save_pretrained(tmp_path)
    assert len(code_files(tmp_path) - files) <= 4
    assert code_files(tmp_path) <= {path.name for path in MODELS.glob("*.py")}  # no export forms
