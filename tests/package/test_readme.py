"""Runs the commands of the README, unchanged, in a temporary folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from snippets import PROGRAM, snippets

import hf_vit_seg

README = (REPOSITORY / "README.md").read_text()
FIRST = next(snippet for snippet in snippets(README) if snippet.mark == "run")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_first_command_reaches_the_documented_score(reader):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for words in FIRST.commands:
        if words[0] == PROGRAM:  # already installed
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert len(list(Path("out/predictions").glob("*.overlay.png"))) == 60
    assert json.loads(Path("out/test/metrics.json").read_text())["scores"]["mean_iou"] >= 0.88


@pytest.mark.usefixtures("segformer_on_hub")
def test_snippets_run(reader):
    for snippet in snippets(README):
        if not snippet.mark:
            reader.read(snippet)
    assert len(list(Path("masks").rglob("*.json"))) == 3
    assert Path("quick/test/metrics.json").exists() and Path("data-check").is_dir()
    assert Path("tiles/slide.labels.tif").exists()
    assert len(list(Path("by_onnx").glob("*.overlay.png"))) == 2
    assert Path("overlay.png").stat().st_size > 1000


def test_folders_exist():
    tree = README.split("## Repository layout")[1].split("```")[1]
    for name in re.findall(r"^([a-z_]+/) ", tree, flags=re.MULTILINE):
        assert (REPOSITORY / name).is_dir(), name


def test_all_variants_are_listed():
    for architecture in hf_vit_seg.architectures().values():
        assert f"`{architecture.config.model_type}`" in README
        for variant in architecture.variant_rows():
            stem = variant.removesuffix("-distilled").removesuffix("-registers")  # README: "each also"
            assert variant.startswith("tiny") or re.search(rf"\b{stem}\b", README, flags=re.IGNORECASE), variant
