"""A source: the complete description of one checkpoint format of one architecture, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_vit_seg.provenance import Provenance

from .layouts import Sizes
from .rules import Rule
from .settings.labels import USUAL, LabelSet


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """The input of a writer: tensors by the reference's names, with config, labels and image processor."""

    tensors: Mapping[str, Tensor]
    config: PreTrainedConfig
    labels: LabelSet | None
    processor: Mapping[str, Any]


Writer = Callable[[Outgoing, Path], None]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One layout of a format's files.

    A file has this form if it contains all names in `marks`. `model` is the Auto class of the converted model, and
    `settings` are config values of the form; on export, the config must have these values. `numerics` and `remarks`
    are added to those of the source; `labels` are the usual label sets of such files. Forms without a writer cannot
    be exported; `directory` is true if the writer creates a directory. A form with a `refusal` is recognized, but the
    conversion fails with this reason.
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
    """Return no axis lengths: the default of `Source.sizes`."""
    return {}


def accept(config: Mapping[str, Any]) -> None:
    """Accept any config.json: the default of `Source.check_config`."""


def nothing(_: Any) -> dict[str, Any]:
    """Return no fields: the default of several callbacks of `Source`."""
    return {}


def refusal(marks: tuple[str, ...], sentence: str) -> Form:
    """Create a form that is recognized but not supported."""
    return Form(model="", marks=marks, refusal=sentence)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint format of one architecture.

    The first form whose marks are all present is used. `infer` reads config fields from the converted tensors
    (KeyError: a required tensor is missing), `observe` from the source's own tensors, if a layout loses information.
    `numerics` are config fields with constants from the reference's code. `settings` are the fields that are read from
    the checkpoint's config.json, there named by `beside_names` (with a dot inside an object), with `defaults`, and
    `check_config` raises ConversionError for values that have no equivalent; `unseen` are fields that shapes do
    not determine. `preprocessing` returns the reference's image preprocessing for a config. `sizes` returns the axis
    lengths that layouts need on export. `remarks` are added to the report. `weights` has the license of the published
    checkpoints, if they share one. `model_types` are those of transformers' configs whose checkpoints have this format.
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
    check_config: Callable[[Mapping[str, Any]], None] = accept
    unseen: tuple[str, ...] = ()
    preprocessing: Callable[[Any], dict[str, Any]] = nothing
    sizes: Callable[[PreTrainedConfig], Sizes] = no_sizes
    remarks: tuple[str, ...] = ()
    weights: Provenance = field(default_factory=Provenance)
    model_types: tuple[str, ...] = ()
