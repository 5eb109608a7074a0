"""A source: everything about one checkpoint format of one architecture, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_vit_seg.provenance import Provenance

from .labels import USUAL, LabelSet
from .layouts import Sizes
from .rules import Rule


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """What an export hands to a writer: tensors by the reference's names, and all that describes them."""

    tensors: Mapping[str, Tensor]
    config: PreTrainedConfig
    labels: LabelSet | None
    processor: Mapping[str, Any]


Writer = Callable[[Outgoing, Path], None]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One layout of a format's files.

    A file has this form if all names in `marks` are in it. `model` is the Auto class of what it becomes,
    `settings` are the config values that follow from the form; on the way back they are what it can hold.
    `numerics` are added to the source's, `remarks` to its remarks; `labels` are the label sets that such files
    usually have. Forms without a writer are read and never
    written; `directory` says that the writer makes a directory. A form with a `refusal` is recognized so that
    a reader is told why it cannot be converted.
    """

    model: str
    marks: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = USUAL
    remarks: tuple[str, ...] = ()
    write: Writer | None = None
    directory: bool = False
    refusal: str = ""


def no_sizes(config: PreTrainedConfig) -> Sizes:
    """For sources whose layouts need no lengths from the config."""
    return {}


def nothing(_: Any) -> dict[str, Any]:
    """For sources that have nothing to say on a question."""
    return {}


def refusal(marks: tuple[str, ...], sentence: str) -> Form:
    """A form that is known and not read."""
    return Form(model="", marks=marks, refusal=sentence)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint format of one architecture.

    The first form whose marks are all present is taken. `infer` reads config fields out of the translated
    tensors (KeyError: a tensor that it needs is missing), `observe` out of the source's own, whose axes say what
    a layout loses. `numerics` are config fields with the values that the reference has in its code; `settings`
    names the fields that a config.json beside the file may give, under another name if `beside_names` has one,
    `defaults` their values where it does not;
    `unseen` those that shapes cannot show. `preprocessing` gives, for a config, what the reference does to images.
    `sizes` gives the axis lengths that layouts need on the way back. `remarks` are for the report. `weights` tells the
    licence of the published checkpoints, where all have the same.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    observe: Callable[[Mapping[str, Tensor]], dict[str, Any]] = nothing
    numerics: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    beside_names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    preprocessing: Callable[[Any], dict[str, Any]] = nothing
    sizes: Callable[[PreTrainedConfig], Sizes] = no_sizes
    remarks: tuple[str, ...] = ()
    weights: Provenance = field(default_factory=Provenance)
