"""Recipes, tiny models and steps for the training tests."""

from pathlib import Path
from typing import Any

import torch
import transformers
from random_weights import randomize_weights
from torch import nn
from transformers import PreTrainedModel

from hf_vit_seg import architectures
from hf_vit_seg.records import read_record
from hf_vit_seg.training.model.building import build_model
from hf_vit_seg.training.model.shape_probing import set_classes
from hf_vit_seg.training.recipe.schema import ModelRecipe, Recipe

OLD = ("sky", "Road", "car", "tree")
NEW = ("road", "boat", "SKY")
SEGMENTERS = [n for n, a in architectures().items() if "AutoModelForSemanticSegmentation" in a.models]
# A head with BatchNorm in every architecture.
FIELDS = {"vit": {"decode_head": "feature_pyramid"}}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(2))


def model_recipe(**settings: Any) -> ModelRecipe:
    """A recipe section for a model; without an origin, a new tiny SegFormer."""
    origin = {} if "from_pretrained" in settings else {"architecture": "segformer", "variant": "tiny"}
    return read_record(ModelRecipe, origin | settings)


def recipe(model: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    """A run recipe with minimal defaults."""
    least = {"data": {"train": {"kind": "folders"}}, "loop": {"steps": 10}}
    return read_record(Recipe, least | {"model": model_recipe(**(model or {}))} | settings)


def save(
    folder: Path, name: str = "segformer", names=OLD, auto_class: str = "AutoModelForSemanticSegmentation", **fields
) -> PreTrainedModel:
    """A random tiny model, and the same saved to a folder."""
    config = architectures()[name].variant_config("tiny", **fields)
    set_classes(config, names)
    model = randomize_weights(getattr(transformers, auto_class).from_config(config)).eval()
    model.save_pretrained(folder)
    return model


def random_model(name: str, **settings: Any) -> PreTrainedModel:
    """A new random tiny segmentation model with BatchNorm in its head."""
    wanted = {"architecture": name, "variant": "tiny", "fields": FIELDS.get(name, {})} | settings
    return randomize_weights(build_model(recipe(wanted), NEW).model)


def classifier(model: PreTrainedModel) -> nn.Module:
    """The layer of a segmentation head with one row per class."""
    return getattr(model.decode_head, "all_mlp", model.decode_head).classifier


def train_steps(model: nn.Module, steps: int = 2, images: torch.Tensor = IMAGES) -> nn.Module:
    """Some steps on the same images."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(steps):
        model.train()
        model(images, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@torch.no_grad()
def logits(model: nn.Module, images: torch.Tensor = IMAGES) -> torch.Tensor:
    """The output of a model in evaluation mode."""
    return model.eval()(images).logits
