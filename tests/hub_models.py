"""Tiny models as directories, to be pushed, and what is in a repository then."""

from pathlib import Path
from typing import Any

import transformers
from hub_server import Hub
from random_weights import randomise

from hf_vit_seg import architectures

SIZE = {"height": 64, "width": 64}


def saved(
    folder: Path,
    name: str = "segformer",
    auto: str = "AutoModelForSemanticSegmentation",
    seed: int = 0,
    **fields: Any,
) -> Path:
    """A tiny model with random weights and its image processor, as a directory; by default of three classes."""
    architecture = architectures()[name]
    config = architecture.variant_config("tiny", **(fields or {"num_labels": 3}))
    randomise(getattr(transformers, auto).from_config(config), seed).save_pretrained(folder)
    architecture.image_processor["torchvision"](size=SIZE).save_pretrained(folder)
    return folder


def contents(hub: Hub, repo: str = "me/model", revision: str = "main") -> dict[str, bytes]:
    return dict(hub.repo(repo).files(revision))
