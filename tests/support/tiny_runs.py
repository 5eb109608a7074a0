"""Runs that take seconds: small images of shapes on a background, and a tiny SegFormer without dropout."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file

from hf_vit_seg.text_files import dump
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.loop.trainer import RunStatus, train
from hf_vit_seg.training.recipe_loading import load_recipe

SIZE, IMAGES = 48, 10
COLORS = np.array([[40, 60, 90], [220, 80, 60], [90, 200, 120]])


def write_images(folder: Path, count: int = IMAGES, seed: int = 0) -> Path:
    """`images/` and `masks/` of discs (1) and bars (2) on noise (0), with different numbers of ignored pixels."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        x, y = random.integers(8, SIZE - 8, 2)
        mask[(rows - y) ** 2 + (columns - x) ** 2 < 36] = 1
        mask[:, (x + 16) % SIZE : (x + 16) % SIZE + 4] = 2
        image = COLORS[mask] + random.integers(-20, 20, (SIZE, SIZE, 3))
        mask[: number * 2] = 255
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02}.png")
    return folder


def settings(data: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of `data`/{train,validation} for 8 steps of two images: GroupNorm, random transforms, no dropout."""
    split = {name: {"kind": "folders", "images": str(data / name / "images"), "masks": str(data / name / "masks")}
             for name in ("train", "validation")}  # fmt: skip
    recipe: dict[str, Any] = {
        "model": {
            "architecture": "segformer",
            "variant": "tiny",
            "norm": "group",
            "fields": {"drop_path_rate": 0.0, "decode_head_dropout_prob": 0.0},
        },
        "processor": {"do_resize": False},
        "data": {**split, "classes": ["ground", "disc", "bar"], "workers": 0},
        "transforms": [{"random_crop": {"size": [32, 32]}}, "random_flip"],
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"steps": 8, "batch_size": 2, "log_every": 1, "evaluate_every": 4},
        "evaluation": {"samples": 1},
    }
    return recipe | changes


def write_data(folder: Path) -> Path:
    """Both splits."""
    write_images(folder / "train")
    write_images(folder / "validation", 3, seed=1)
    return folder


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(dump(recipe))
    return path


def run(recipe: Path, out: Path, *overrides: str, **options: bool) -> RunStatus:
    """Train in this process, as if it was the first run in it."""
    forget_accelerate()
    torch.manual_seed(int.from_bytes(os.urandom(4)))  # a run depends only on the seed of its recipe
    return train(load_recipe(recipe, overrides), RunDirectory(out), **options)


def forget_accelerate() -> None:
    """accelerate keeps the state of a process for its lifetime."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def start(command: list[str], processes: int = 1, script: str | None = None) -> subprocess.Popen[str]:
    """Run `train` with these arguments, or a Python `script` that gets them, on this number of CPU processes."""
    what = ["-m", "hf_vit_seg.training"] if script is None else [script]
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    if processes > 1:  # one process uses as many threads as this one: other partial sums round differently
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, *launcher, *what, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a separate process group, as for Ctrl-C of a terminal
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    """The output of a process that exited as expected."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, output
    return output


def log(out: Path, key: str = "loss") -> list[tuple[int, float]]:
    """The values of a metric over the steps of a run."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines if key in line]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """The weights of a model directory or checkpoint."""
    return load_file(directory / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    """The largest difference between the weights of two models."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
