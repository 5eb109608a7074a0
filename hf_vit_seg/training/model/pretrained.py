"""Load a pretrained model for other classes and channels, and report every tensor that is not taken over unchanged."""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit_seg.loading.models import unwrap_saved_modules
from hf_vit_seg.plugins import architectures
from hf_vit_seg.records import RecordError

from .adapters import detach_adapters
from .classifier_rows import copy_rows, describe_rows, matching_rows
from .parameter_names import INITIALIZED, SAVED_ADAPTERS, plain_name
from .shape_probing import channel_axes, class_axes, class_names, differing_axes

NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")  # layer index in a tensor's name


@dataclass(frozen=True)
class Checkpoint:
    """A directory or Hub id, and the Auto class that loads it.

    Adapters that are saved with it are merged into the weights, unless `keep_adapters`: then they become the model's
    attribute `SAVED_ADAPTERS`.
    """

    path: str
    auto_class: str
    keep_adapters: bool = False

    def load(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the model with this config in float32; also return transformers' loading info."""
        try:
            model, account = getattr(transformers, self.auto_class).from_pretrained(
                self.path,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            mismatched = {(plain_name(name), *shapes) for name, *shapes in account["mismatched_keys"]}
            model, adapters = detach_adapters(unwrap_saved_modules(model), merge=not self.keep_adapters)
            if adapters is not None and self.keep_adapters:
                setattr(model, SAVED_ADAPTERS, adapters)
            return model, {**account, "mismatched_keys": mismatched}
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise RecordError(
                f"model.from_pretrained: {self.path}: transformers has no {self.auto_class} for '{config.model_type}'; "
                "convert it with `hf-vit-seg convert`, or add a head to a backbone with model.architecture "
                f"{' or '.join(head_architectures(self.auto_class)) or '(none installed)'}"
            ) from None

    def tensors(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Return the checkpoint's tensors by the model's parameter names."""
        model, account = self.load(config)
        absent = {*account["missing_keys"], *(name for name, *_ in account["mismatched_keys"])}
        return {name: tensor for name, tensor in model.state_dict().items() if name not in absent}


@dataclass(frozen=True)
class ConvertedModel(Checkpoint):
    """A checkpoint in another format: its tensors by the names of this package's models."""

    state_dict: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def load(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the tensors into the architecture's class."""
        architecture = next(a for a in architectures().values() if a.config is type(config))
        model_class: Any = architecture.models.get(self.auto_class)
        if model_class is None:
            raise RecordError(
                f"model.from_pretrained: {self.path} is converted to {architecture.name}, which has no "
                f"{self.auto_class}; set model.convert to false to load it with transformers"
            )
        model, account = model_class.from_pretrained(
            None,
            config=config,
            state_dict={name: tensor.float() for name, tensor in self.state_dict.items()},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        model.name_or_path = model.config.name_or_path = self.path  # peft saves it with adapters
        return model, account


@dataclass(frozen=True)
class BareBackbone(Checkpoint):
    """A checkpoint without a head; `head_class.from_backbone` adds one."""

    head_class: Any = None

    def load(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the backbone and add a newly initialized head."""
        try:
            return self.head_class.from_backbone(
                self.path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise RecordError(f"model.from_pretrained: {error}") from None


def head_architectures(auto_class: str) -> list[str]:
    """Return the architectures whose model of this Auto class adds a head to backbones of other architectures."""
    return [a.name for a in architectures().values() if hasattr(a.models.get(auto_class), "from_backbone")]


def adapt_pretrained_model(
    checkpoint: Checkpoint, stored: PreTrainedConfig, target: PreTrainedConfig, copy_classes: bool
) -> tuple[PreTrainedModel, list[str]]:
    """Load a checkpoint with config `stored` as a model with config `target`; also return notes for the log.

    Tensors with a row per class get the rows of classes with the same name, and tensors with a slice per channel are
    adapted. Other tensors that are missing or have another shape are newly initialized.
    """
    model, account = checkpoint.load(target)
    missing = set(account["missing_keys"])
    mismatched = {name: (there, here) for name, there, here in account["mismatched_keys"]}
    names, old_names = class_names(target), class_names(stored)
    rows = matching_rows(old_names, names) if copy_classes else {}
    same = len(names) == len(old_names) and rows == {row: row for row in range(len(names))}
    classes = {} if same else class_axes(model.config, checkpoint.auto_class)  # the same classes need no change
    heads = {name: axis for name, axis in classes.items() if name not in missing}
    stems = adaptable_axes(mismatched, channel_axes(model.config, checkpoint.auto_class)) if mismatched else {}
    notes = missing_notes(missing, set(account["unexpected_keys"]))
    setattr(model, INITIALIZED, frozenset(missing | mismatched.keys()))
    rest = mismatched.keys() - heads.keys() - stems.keys()
    if rest:
        notes.append(f"Newly initialized, because the checkpoint has other shapes: {format_tensor_names(rest)}")
    if heads or stems:
        old = checkpoint.tensors(stored)
        notes += adapt_stems(model, old, stems)
        notes += adapt_heads(model, checkpoint, old, heads, rows)
    return model, notes


def adaptable_axes(mismatched: Mapping[str, tuple[torch.Size, torch.Size]], axes: Mapping[str, int]) -> dict[str, int]:
    """Return the tensors whose shapes differ only in the channel axis."""
    ones, others = ({name: shapes[side] for name, shapes in mismatched.items()} for side in (0, 1))
    return {name: axis for name, axis in differing_axes(ones, others).items() if axes.get(name) == axis}


@torch.no_grad()
def adapt_stems(model: PreTrainedModel, old: dict[str, torch.Tensor], stems: dict[str, int]) -> list[str]:
    """Adapt tensors with a slice per input channel, and describe the changes."""
    notes, tensors = [], model.state_dict()
    for name, axis in stems.items():
        channels = tensors[name].shape[axis]
        tensors[name].copy_(adapt_input_conv(old[name], channels, axis))
        notes.append(
            f"{name} is adapted to {channels} input channels: {describe_adaptation(old[name].shape[axis], channels)}"
        )
    return notes


@torch.no_grad()
def adapt_heads(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    old: dict[str, torch.Tensor],
    heads: dict[str, int],
    rows: dict[int, int],
) -> list[str]:
    """Reinitialize tensors with a row per class, except for the rows {new: old} of known classes."""
    if not heads:
        return []
    config = copy.deepcopy(model.config)
    fresh = getattr(transformers, checkpoint.auto_class).from_config(config).state_dict()
    tensors, by_fit = model.state_dict(), {True: [], False: []}
    for name, axis in heads.items():
        together = None
        if name in old:
            further = match_extra_rows(fresh[name].shape[axis], old[name].shape[axis], len(class_names(model.config)))
            together = copy_rows(fresh[name], old[name], axis, {**rows, **further})
        tensors[name].copy_(fresh[name] if together is None else together)
        by_fit[together is not None].append(name)
    notes = []
    if by_fit[True]:
        notes.append(f"{format_tensor_names(by_fit[True])}: {describe_rows(class_names(model.config), rows)}")
    if by_fit[False]:
        notes.append(
            f"Newly initialized, because the checkpoint has other shapes: {format_tensor_names(by_fit[False])}"
        )
    return notes


def match_extra_rows(new: int, old: int, classes: int) -> dict[int, int]:
    """Match the rows after those of the classes, {new: old}, as "no object" of a query head; both tensors have them."""
    count = new - classes
    return {classes + number: old - count + number for number in range(count)}


def missing_notes(missing: set[str], unexpected: set[str]) -> list[str]:
    """Describe tensors that the checkpoint lacks, and tensors of the checkpoint that the model lacks."""
    notes = []
    if missing:
        notes.append(f"Missing in the checkpoint, newly initialized: {format_tensor_names(missing)}")
    if unexpected:
        notes.append(f"In the checkpoint, but not used by this model: {format_tensor_names(unexpected)}")
    return notes


def format_tensor_names(names: Iterable[str]) -> str:
    """Join tensor names with commas; names that differ only in numbers are grouped: `layers.{0, 1}.weight`."""
    families: dict[str, list[list[str]]] = {}
    for name in sorted(names, key=natural_sort_key):
        if not name.endswith("num_batches_tracked"):
            families.setdefault(NUMBER.sub("{}", name), []).append(NUMBER.findall(name))
    return ", ".join(family_name(pattern, numbers) for pattern, numbers in families.items())


def natural_sort_key(name: str) -> list[int | str]:
    """Return a sort key that orders layer 10 after layer 9."""
    return [int(part) if index % 2 else part for index, part in enumerate(NUMBER.split(name))]


def family_name(pattern: str, numbers: list[list[str]]) -> str:
    """Format the numbers of a group of names into their common pattern."""
    columns = [list(dict.fromkeys(column)) for column in zip(*numbers, strict=True)]
    return pattern.format(*(values[0] if len(values) == 1 else f"{{{', '.join(values)}}}" for values in columns))


def adapt_input_conv(weight: torch.Tensor, channels: int, axis: int = 1) -> torch.Tensor:
    """Adapt kernels (D, S, h, w) of a first convolution, with S channels on `axis`, to C `channels`: (D, C, h, w).

    As in timm's `adapt_input_conv`, for any number of pretrained channels. To one channel: the sum over the S slices,
    so that a gray image gives the same output as S equal channels. To C channels: the slices are repeated in turn and
    scaled by S / C, which keeps the magnitude of outputs. Convolutions with weight standardization (hybrid ViT) remove
    any scale.
    """
    trained = weight.shape[axis]
    if channels == 1:
        return weight.sum(axis, keepdim=True)
    turn = torch.arange(channels, device=weight.device) % trained
    return weight.index_select(axis, turn) * (trained / channels)


def describe_adaptation(trained: int, channels: int) -> str:
    """Describe the change made by `adapt_input_conv`, for the log."""
    if channels == 1:
        return f"its {trained} channels are summed into one"
    return f"its {trained} channels are repeated to {channels} and scaled by {trained}/{channels}"
