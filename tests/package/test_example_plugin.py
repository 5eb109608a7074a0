"""examples/plugin, installed by a user: it supports all features of the built-in architectures, and its code is saved.

One environment has the packages of this one and the plugin; this one, without the plugin, then loads the saved models.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from paths import REPOSITORY
from PIL import Image
from plugin_environment import environment, run_commands

from hf_vit_seg.plugin_listing import GROUPS

EXAMPLE = REPOSITORY / "examples" / "plugin"
SHORT = ("model.variant=tiny", "data.train.count=8", "data.validation.count=2", "loop.steps=3", "loop.batch_size=4")
HEADED = """
import sys
from hf_vit_seg import architectures
from transformers import AutoModelForSemanticSegmentation
backbones = {name: architectures()[name].variant_config("tiny") for name in ("cvt", "segformer", "vit")}
for name, settings in {"swin": {}, **{name: {"backbone_config": config} for name, config in backbones.items()}}.items():
    config = architectures()["backbone"].variant_config("tiny-swin", decode_head="top_down", **settings)
    model = AutoModelForSemanticSegmentation.from_config(config)
    assert type(model.decode_head).__name__ == "TopDownHead" and model.decode_head.smooth.out_channels == 32
    model.save_pretrained(f"{sys.argv[1]}/{name}")
"""
REMOTE = """
import sys
from importlib.util import find_spec
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
for directory in sys.argv[1:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(directory, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(torch.ones(1, 3, 40, 56)).logits
    torch.testing.assert_close(logits, torch.load(f"{directory}.pt"))
    model.save_pretrained(f"{directory}-again")
    torch.save(logits, f"{directory}-again.pt")
processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert processor(torch.zeros(3, 40, 56), return_tensors="pt")["pixel_values"].shape == (1, 3, 40, 56)
assert find_spec("conv_token") is None and "hf_vit_seg" not in sys.modules
"""


def run(python, folder, *arguments):
    ran = subprocess.run(
        [python, *map(str, arguments)], env=environment(folder / "home"), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def python(folder):
    """The Python of an environment with the packages of this one and the example."""
    run(sys.executable, folder, "-m", "venv", "--without-pip", folder / "venv")
    inside = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    site = Path(sysconfig.get_path("purelib", vars=inside))
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    shutil.copytree(EXAMPLE, folder / "source")  # building writes next to the source
    found = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(found, folder, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", folder / "source")
    return str(found)


@pytest.fixture(scope="module")
def commands_done(folder, python):
    """All commands with the plugin, and the directories that they wrote."""
    sys.path.insert(0, str(EXAMPLE / "tests"))
    try:
        from reference import trained
    finally:
        sys.path.pop(0)
    torch.save(trained().state_dict(), folder / "research.pth")
    Image.new("RGB", (56, 40), (200, 30, 60)).save(folder / "photo.png")
    model, program = folder / "run" / "best", folder / "program"
    run(python, folder, "-c", HEADED, folder)
    commands = {
        "plugins": ["plugins"],
        "models": ["models"],
        "train": ["train", EXAMPLE / "recipes" / "shapes.yaml", *SHORT, "--out", folder / "run"],
        "convert": ["convert", folder / "research.pth", folder / "converted", "--set", "num_attention_heads=2"],
        "export": ["export", model, program, "--to", "pt2"],
        "predict": ["predict", program / "model.pt2", folder / "photo.png", "--out", folder / "maps"],
    }
    directories = [model, folder / "converted", *(folder / name for name in ("swin", "cvt", "segformer", "vit"))]
    ran = run_commands(list(commands.values()), folder / "home", directories, python)
    return dict(zip(commands, ran, strict=True)), directories


@pytest.mark.parametrize("command", ["plugins", "models", "train", "convert", "export", "predict"])
def test_every_command_supports_the_plugin(commands_done, command):
    outcome = commands_done[0][command]
    assert outcome.code == 0, outcome.output + outcome.errors


def test_plugin_is_listed_with_all_entry_points(commands_done):
    lines = [line.split() for line in commands_done[0]["plugins"].output.splitlines() if "conv-token" in line]
    assert {f"hf_vit_seg.{line[0]}" for line in lines} == set(GROUPS) - {"hf_vit_seg.batch_transforms"}
    assert all(line[-1] == "ok" for line in lines)
    assert "conv_token_seg" in commands_done[0]["models"].output


def test_plugin_trains_by_recipe_and_predicts_after_export(commands_done, folder):
    assert "shapes" in (folder / "run" / "best" / "recipe.yaml").read_text()
    assert (folder / "run" / "best" / "metrics.json").exists()
    assert Image.open(folder / "maps" / "photo.png").size == (56, 40)
    assert "conv_token/research" in commands_done[0]["convert"].output


def test_saved_model_loads_and_saves_without_the_plugin(commands_done, folder):
    directories = commands_done[1]
    again = [directory.with_name(f"{directory.name}-again") for directory in directories]
    run(sys.executable, folder, "-c", REMOTE, *directories, *again)


def test_contributing_names_existing_files():
    text = (EXAMPLE.parents[1] / "CONTRIBUTING.md").read_text()
    package = EXAMPLE / "src" / "conv_token"
    steps = text.partition("## Add an architecture")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w*conv\w*\.(?:py|yaml))`", steps) + re.findall(r"`(conversion_\w+\.py)`", steps)
    assert len(named) >= 5 and all((package / name).is_file() for name in named), named
    assert len(re.findall(r"^\d\. ", steps, re.MULTILINE)) == 5
    assert set(re.findall(r"\| `(hf_vit_seg\.\w+)` \|", text)) | {"hf_vit_seg.architectures"} == set(GROUPS)


@pytest.mark.slow
def test_plugin_tests_pass_in_a_new_environment(folder, python):
    run(python, folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE, EXAMPLE / "tests")
