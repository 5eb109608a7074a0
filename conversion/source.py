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

    A file has this form if it contains all tensor names in `signature`. `model` is the Auto class of the converted
    model. `settings` are config values of the form; on export, the config must have these values. `numerics` and
    `notes` are added to those of the source; `labels` are the usual label sets of such files. Forms without a writer
    cannot be exported; `directory` is true if the writer creates a directory. A form with an `unsupported_reason` is
    recognized, but the conversion fails with this reason.
    """

    model: str
    signature: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = USUAL
    notes: tuple[str, ...] = ()
    write: Writer | None = None
    directory: bool = False
    unsupported_reason: str = ""


def no_axis_lengths(config: PreTrainedConfig) -> Sizes:
    """Return no axis lengths (the default of `Source.sizes`)."""
    return {}


def accept_config(config: Mapping[str, Any]) -> None:
    """Accept any config.json (the default of `Source.check_config`)."""


def no_fields(_: Any) -> dict[str, Any]:
    """Return no fields (the default of several callbacks of `Source`)."""
    return {}


def unsupported_form(signature: tuple[str, ...], reason: str) -> Form:
    """Create a form that is recognized but not supported."""
    return Form(model="", signature=signature, unsupported_reason=reason)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint format of one architecture.

    The first form whose signature is present is used. `infer` reads config fields from the converted tensors, and
    raises KeyError if a required tensor is missing. `infer_from_source` reads them from the source's own tensors, for
    layouts that lose information. `numerics` are config fields with constants from the reference's code. `settings` are
    the fields that are read from the checkpoint's config.json, with `defaults` for missing ones; `config_names` maps a
    field to its name in that file (nested names are dotted). `check_config` raises ConversionError for values that have
    no equivalent. `assumed_fields` cannot be determined from tensor shapes. `preprocessing` returns the reference's
    image preprocessing for a config. `sizes` returns the axis lengths that layouts need on export. `notes` are added to
    the report. `weights` has the license of the published checkpoints, if they share one. `model_types` are the model
    types of transformers whose checkpoints have this format.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    infer_from_source: Callable[[Mapping[str, Tensor]], dict[str, Any]] = no_fields
    numerics: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    config_names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check_config: Callable[[Mapping[str, Any]], None] = accept_config
    assumed_fields: tuple[str, ...] = ()
    preprocessing: Callable[[Any], dict[str, Any]] = no_fields
    sizes: Callable[[PreTrainedConfig], Sizes] = no_axis_lengths
    notes: tuple[str, ...] = ()
    weights: Provenance = field(default_factory=Provenance)
    model_types: tuple[str, ...] = ()
