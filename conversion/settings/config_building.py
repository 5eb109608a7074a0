"""Build the config of a converted model from config.json, shapes, constants of the reference, and overrides."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_vit_seg.conversion.errors import ConversionError, UnsupportedCheckpoint
from hf_vit_seg.conversion.registry import DetectedFormat
from hf_vit_seg.conversion.rules import origin
from torch import Tensor
from transformers import PreTrainedConfig

from hf_vit_seg.errors import error_sentence
from hf_vit_seg.keypoint_names import find_flip_pairs
from hf_vit_seg.models.errors import RENAMED_FIELDS
from hf_vit_seg.records import nearest

from .labels import LabelSet
from .variants import builtin_value

MISSING = object()
POSE = "AutoModelForPoseEstimation"


def infer(detected: DetectedFormat, state: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer config fields from the shapes of translated and `original` tensors, with `num_labels` if it has a head."""
    try:
        return detected.source.infer(state) | detected.source.infer_from_source(original)
    except KeyError as error:
        name = origin(detected.form.rules, str(error.args[0]))
        raise ConversionError(f"the checkpoint lacks '{name}'; it is incomplete: get the complete file") from error
    except ConversionError:
        raise
    except (IndexError, ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise ConversionError(
            f"tensors of the checkpoint have shapes that are invalid for {detected.architecture.name} ({error}); it is "
            "damaged, or belongs to another model"
        ) from error


def check_fields(config: type[PreTrainedConfig], overrides: Mapping[str, Any]) -> None:
    """Raise ConversionError for overrides of fields that the config does not have."""
    fields = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in overrides:
        if name not in fields:
            renamed = RENAMED_FIELDS.get(name)
            hint = f"it was renamed to '{renamed}'" if renamed else nearest(name, fields, "its fields")
            raise ConversionError(f"{config.__name__} has no field '{name}' to override; {hint}")


def from_config_file(detected: DetectedFormat, config_file: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings from the checkpoint's config.json."""
    names_in_file = {name: detected.source.config_names.get(name, name) for name in detected.source.settings}
    values = {name: nested_value(config_file, names_in_file[name]) for name in detected.source.settings}
    return {name: value for name, value in values.items() if value is not MISSING}


def nested_value(config_file: Mapping[str, Any], name: str) -> Any:
    """Return a value of a config.json by a name with dots; MISSING if there is none."""
    value: Any = config_file
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def build_config(
    detected: DetectedFormat,
    shapes: Mapping[str, Any],
    config_file: Mapping[str, Any],
    overrides: Mapping[str, Any],
    labels: LabelSet | None,
) -> PreTrainedConfig:
    """Build the config. Precedence increases from defaults, shapes, config.json, reference constants, to overrides."""
    config_class = detected.architecture.config
    check_fields(config_class, overrides)
    from_shapes = {name: value for name, value in shapes.items() if name != "num_labels"}
    fields: dict[str, Any] = {**detected.source.defaults, **from_shapes, **from_config_file(detected, config_file)}
    fields |= {**detected.source.numerics, **detected.form.numerics, **detected.form.settings, **overrides}
    if labels is not None:
        fields["id2label"] = dict(enumerate(labels.names))
        fields["label2id"] = {name: k for k, name in enumerate(labels.names)}
        if detected.form.model == POSE and (pairs := find_flip_pairs(labels.names)):
            fields.setdefault("pose_flip_pairs", pairs)
    try:
        return config_class(**fields)
    except Exception as error:  # strict configs raise their own types
        raise UnsupportedCheckpoint(
            f"{config_class.__name__} cannot be built: {error_sentence(error)}; pass the correct values as overrides"
        ) from error


def describe_assumed(
    detected: DetectedFormat, config: PreTrainedConfig, config_file: Mapping[str, Any], overrides: Mapping[str, Any]
) -> str:
    """Describe the fields that are neither in shapes and config.json, nor overridden; empty if there are none."""
    given = from_config_file(detected, config_file) | dict(overrides)
    values = [
        f"{name} {builtin_value(getattr(config, name))}" for name in detected.source.assumed_fields if name not in given
    ]
    return f"assumed {', '.join(values)}" if values else ""
