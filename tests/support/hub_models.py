"""Tiny model directories to push, and the content of a repository afterwards."""

from pathlib import Path
from typing import Any

import transformers
from hub_server import Hub
from random_weights import randomize_weights

from hf_vit_seg import architectures

SIZE = {"height": 64, "width": 64}


def save_tiny_model(
    folder: Path,
    name: str = "segformer",
    auto: str = "AutoModelForSemanticSegmentation",
    seed: int = 0,
    **fields: Any,
) -> Path:
    """Save a tiny model with random weights and its image processor to a directory; three classes by default."""
    architecture = architectures()[name]
    config = architecture.variant_config("tiny", **(fields or {"num_labels": 3}))
    randomize_weights(getattr(transformers, auto).from_config(config), seed).save_pretrained(folder)
    processors = architecture.processor_classes("instance" if "Universal" in auto else None)
    processors["torchvision"](size=SIZE).save_pretrained(folder)
    return folder


def contents(hub: Hub, repo: str = "me/model", revision: str = "main") -> dict[str, bytes]:
    return dict(hub.repo(repo).files(revision))
