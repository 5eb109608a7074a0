"""Persons with keypoints, and a recipe for a tiny pose model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_NAMES = ("nose", *(f"{side}_{part}" for part in PARTS for side in ("left", "right")))


def pose_recipe(folder: Path) -> dict[str, Any]:
    source = {"kind": "coco_keypoints", "annotations": str(folder / "people.json"), "images": str(folder)}
    return {
        "task": "pose",
        "model": {"architecture": "vit", "variant": "tiny"},
        "processor": {"size": {"height": 64, "width": 48}},
        "data": {"train": source, "validation": source, "workers": 0},
        "transforms": ["person_affine"],
        "loop": {"steps": 2, "batch_size": 3, "log_every": 1},
        "evaluation": {"batch_size": 2, "samples": 1},
    }


def write_people(folder: Path, images: int, names: Sequence[str] = COCO_NAMES, **category: Any) -> None:
    """Noise, with two persons in each image."""
    keypoints = len(names)
    random = np.random.default_rng(0)
    annotations = []
    for number in range(images):
        Image.fromarray(random.integers(0, 255, (80, 100, 3), np.uint8)).save(folder / f"{number}.png")
        for place in (5, 50):
            x, y = random.integers(place, place + 40, keypoints), random.integers(10, 70, keypoints)
            points = np.column_stack([x, y, [2] * keypoints])
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 2400.0}
            annotations.append(row | {"bbox": [place, 10, 40, 60], "keypoints": points.flatten().tolist()})
    coco = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 80, "width": 100} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": list(names), **category}],
    }
    (folder / "people.json").write_text(json.dumps(coco))
