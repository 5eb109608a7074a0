"""What README promises is done, word for word, in a folder of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_vit_seg

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
# What stands in for files of the reader's own.
STAND_INS = {"segformer.b0.512x512.ade.160k.pth": "tests/oracles/nvlabs_segformer/segformer.tiny.7cls.pth"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(first: bool) -> list[str]:
    """Command lines of ours in README, those of its first block or the others; installing and testing go on already."""
    lines = [
        part.strip()
        for block in blocks("bash")
        if ("hf-vit-seg train nuclei --out out" in block) == first
        for line in block.splitlines()
        for part in line.split("&&")
    ]
    return [line for line in lines if line.startswith("hf-vit-seg")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """A folder as a reader would have it: the repository's examples, and files of the reader's own."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    for name, stand_in in STAND_INS.items():
        shutil.copy(REPOSITORY / stand_in, folder / name)
    photos = sorted((REPOSITORY / "examples/nuclei/data/test/images").glob("*.webp"))
    for place in ("photos", "more"):
        (folder / place).mkdir()
    shutil.copy(photos[0], folder / "photos")
    from PIL import Image

    Image.open(photos[1]).convert("RGB").save(folder / "more" / "photo.jpg")
    Image.open(photos[2]).convert("RGB").save(folder / "slide.tif")
    return folder


def run(command: str, folder: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_command_trains_what_it_promises(reader):
    for command in commands(first=True):
        run(command, reader)
    assert len(list((reader / "out/predictions").glob("*.overlay.png"))) == 60
    assert json.loads((reader / "out/test/metrics.json").read_text())["scores"]["mean_iou"] >= 0.88


def test_the_commands_run(reader):
    for command in commands(first=False):
        run(command, reader)
    assert len(list((reader / "masks").rglob("*.json"))) == 2
    assert (reader / "quick/test/metrics.json").exists() and (reader / "data-check").is_dir()
    assert (reader / "tiles/slide.labels.tif").exists()
    assert len(list((reader / "by_onnx").glob("*.overlay.png"))) == 1


def test_the_python_runs(reader):
    script = reader / "readme.py"
    script.write_text("\n".join(blocks("python")))
    run(f"{sys.executable} readme.py", reader)
    assert (reader / "overlay.png").stat().st_size > 1000


def test_links_and_folders_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target
    tree = README.split("## What is where")[1].split("```")[1]
    for name in re.findall(r"^([a-z_]+/) ", tree, flags=re.MULTILINE):
        assert (REPOSITORY / name).is_dir(), name


def test_all_variants_are_told():
    for architecture in hf_vit_seg.architectures().values():
        assert f"`{architecture.config.model_type}`" in README
        for variant in architecture.variant_rows():
            told = variant.removesuffix("-distilled").removesuffix("-registers")  # "each also" says README
            assert variant.startswith("tiny") or re.search(rf"\b{told}\b", README, flags=re.IGNORECASE), variant
