"""A pretrained model, fitted to the classes and bands of a run, with a report of every tensor that is not as it was."""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit_seg.plugins import architectures
from hf_vit_seg.records import RecordError

from .classifier_rows import fit_in_words, fitted, matching_rows
from .shape_probing import band_axes, class_axes, class_names, differing_axes
from .stem import adaptation_in_words, adapted

NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")  # of a layer, in a tensor's name


@dataclass(frozen=True)
class Checkpoint:
    """A directory or Hub id, and the Auto class under which it is loaded."""

    path: str
    auto_class: str

    def load(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model with this config in float32, and transformers' account of the tensors."""
        try:
            return getattr(transformers, self.auto_class).from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise RecordError(
                f"model.from_pretrained: transformers has no {self.auto_class} for '{config.model_type}', which "
                f"{self.path} is; `hf-vit-seg convert` may turn it into a model of this package, and a bare backbone "
                f"wears a head with model.architecture {' or '.join(wearers(self.auto_class)) or '(none installed)'}"
            ) from None

    def tensors(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """What is in the checkpoint of the model with this config, by name."""
        model, account = self.load(config)
        absent = {*account["missing_keys"], *(name for name, *_ in account["mismatched_keys"])}
        return {name: tensor for name, tensor in model.state_dict().items() if name not in absent}


@dataclass(frozen=True)
class BareBackbone(Checkpoint):
    """A checkpoint without a head, which the class `wearer` puts one on."""

    wearer: Any

    def load(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The same for the backbone and a fresh head."""
        try:
            return self.wearer.from_backbone(
                self.path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise RecordError(f"model.from_pretrained: {error}") from None


def wearers(auto_class: str) -> list[str]:
    """The architectures whose model of this Auto class puts a head on bare backbones."""
    return [a.name for a in architectures().values() if hasattr(a.models.get(auto_class), "from_backbone")]


def fitted_model(
    checkpoint: Checkpoint, stored: PreTrainedConfig, target: PreTrainedConfig, copy_classes: bool
) -> tuple[PreTrainedModel, list[str]]:
    """The checkpoint, whose own config is `stored`, as a model of config `target`, and sentences on what is not its.

    Tensors with a row per class get the rows whose class has the same name; those with a slice per band are adapted.
    Others of another shape, or not in the checkpoint, are initialized anew.
    """
    model, account = checkpoint.load(target)
    missing = set(account["missing_keys"])
    mismatched = {name: (there, here) for name, there, here in account["mismatched_keys"]}
    names, old_names = class_names(target), class_names(stored)
    rows = matching_rows(old_names, names) if copy_classes else {}
    same = len(names) == len(old_names) and rows == {row: row for row in range(len(names))}
    classes = {} if same else class_axes(model.config, checkpoint.auto_class)  # the same are loaded as they are
    heads = {name: axis for name, axis in classes.items() if name not in missing}
    stems = adaptable(mismatched, band_axes(model.config, checkpoint.auto_class)) if mismatched else {}
    notes = absence_notes(missing, set(account["unexpected_keys"]))
    rest = mismatched.keys() - heads.keys() - stems.keys()
    if rest:
        notes.append(f"Initialized anew, because the checkpoint's have another shape: {listed(rest)}")
    if heads or stems:
        old = checkpoint.tensors(stored)
        notes += fit_stems(model, old, stems)
        notes += fit_heads(model, checkpoint, old, heads, rows)
    return model, notes


def adaptable(mismatched: Mapping[str, tuple[torch.Size, torch.Size]], axes: Mapping[str, int]) -> dict[str, int]:
    """The tensors whose two shapes differ in the axis of the bands alone."""
    ones, others = ({name: shapes[side] for name, shapes in mismatched.items()} for side in (0, 1))
    return {name: axis for name, axis in differing_axes(ones, others).items() if axes.get(name) == axis}


@torch.no_grad()
def fit_stems(model: PreTrainedModel, old: dict[str, torch.Tensor], stems: dict[str, int]) -> list[str]:
    """Adapt the tensors that have a slice per band."""
    notes, tensors = [], model.state_dict()
    for name, axis in stems.items():
        bands = tensors[name].shape[axis]
        tensors[name].copy_(adapted(old[name], bands, axis))
        notes.append(f"{name} is adapted to {bands} bands: {adaptation_in_words(old[name].shape[axis], bands)}")
    return notes


@torch.no_grad()
def fit_heads(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    old: dict[str, torch.Tensor],
    heads: dict[str, int],
    rows: dict[int, int],
) -> list[str]:
    """Begin the tensors with a row per class anew, but for the rows of classes that were known."""
    if not heads:
        return []
    config = copy.deepcopy(model.config)
    fresh = getattr(transformers, checkpoint.auto_class).from_config(config).state_dict()
    tensors, by_fit = model.state_dict(), {True: [], False: []}
    for name, axis in heads.items():
        together = fitted(fresh[name], old[name], axis, rows) if name in old else None
        tensors[name].copy_(fresh[name] if together is None else together)
        by_fit[together is not None].append(name)
    notes = []
    if by_fit[True]:
        notes.append(f"{listed(by_fit[True])}: {fit_in_words(class_names(model.config), rows)}")
    if by_fit[False]:
        notes.append(f"Initialized anew, because the checkpoint's have another shape: {listed(by_fit[False])}")
    return notes


def absence_notes(missing: set[str], unexpected: set[str]) -> list[str]:
    """What the checkpoint does not have, and what of it has no place."""
    notes = []
    if missing:
        notes.append(f"Not in the checkpoint, initialized anew: {listed(missing)}")
    if unexpected:
        notes.append(f"In the checkpoint, but without a place in this model: {listed(unexpected)}")
    return notes


def listed(names: Iterable[str]) -> str:
    """Names of tensors in a row, those that differ in numbers alone as one: `layers.{0, 1}.weight`."""
    families: dict[str, list[list[str]]] = {}
    for name in sorted(names, key=in_number_order):
        if not name.endswith("num_batches_tracked"):
            families.setdefault(NUMBER.sub("{}", name), []).append(NUMBER.findall(name))
    return ", ".join(family_name(pattern, numbers) for pattern, numbers in families.items())


def in_number_order(name: str) -> list[int | str]:
    """A sorting key that puts layer 10 behind layer 9."""
    return [int(part) if place % 2 else part for place, part in enumerate(NUMBER.split(name))]


def family_name(pattern: str, numbers: list[list[str]]) -> str:
    """A pattern with all numbers that stood in its places."""
    places = [list(dict.fromkeys(place)) for place in zip(*numbers, strict=True)]
    return pattern.format(*(place[0] if len(place) == 1 else f"{{{', '.join(place)}}}" for place in places))
