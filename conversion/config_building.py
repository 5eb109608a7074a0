"""The config of a converted model: a config.json beside, shapes, the reference's code, overrides."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_vit_seg.errors import error_sentence
from hf_vit_seg.models.errors import RENAMED_FIELDS
from hf_vit_seg.records import nearest

from .errors import ConversionError
from .labels import LabelSet
from .registry import Recognized
from .rules import origin
from .variants import plain


def inferred(found: Recognized, state: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes tell, `num_labels` among it if there is a head: the translated ones, and the `original`."""
    try:
        return found.source.infer(state) | found.source.observe(original)
    except KeyError as error:
        name = origin(found.form.rules, str(error.args[0]))
        raise ConversionError(f"the checkpoint lacks '{name}'; it is incomplete: get the whole file") from error
    except (IndexError, ArithmeticError) as error:
        raise ConversionError(
            f"tensors of the checkpoint have shapes that no {found.architecture.name} has ({error}); it is "
            "damaged, or of another model"
        ) from error


def check_fields(config: type[PreTrainedConfig], overrides: Mapping[str, Any]) -> None:
    """Refuse overrides of fields that the config does not have."""
    fields = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in overrides:
        if name not in fields:
            renamed = RENAMED_FIELDS.get(name)
            hint = f"it was renamed to '{renamed}'" if renamed else nearest(name, fields, "its fields")
            raise ConversionError(f"{config.__name__} has no field '{name}' to override; {hint}")


def from_beside(found: Recognized, beside: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a config.json beside the checkpoint gives."""
    there = {name: found.source.beside_names.get(name, name) for name in found.source.settings}
    return {name: beside[there[name]] for name in found.source.settings if there[name] in beside}


def build(
    found: Recognized,
    shapes: Mapping[str, Any],
    beside: Mapping[str, Any],
    overrides: Mapping[str, Any],
    labels: LabelSet | None,
) -> PreTrainedConfig:
    """The config. Of defaults, shapes, config.json, the reference's code and overrides, the later wins."""
    config_class = found.architecture.config
    check_fields(config_class, overrides)
    told = {name: value for name, value in shapes.items() if name != "num_labels"}
    fields = {**found.source.defaults, **told, **from_beside(found, beside)}
    fields |= {**found.source.numerics, **found.form.numerics, **found.form.settings, **overrides}
    if labels is not None:
        fields["id2label"] = dict(enumerate(labels.names))
        fields["label2id"] = {name: k for k, name in enumerate(labels.names)}
    try:
        return config_class(**fields)
    except Exception as error:  # strict configs raise types of their own
        raise ConversionError(
            f"no {config_class.__name__} can be built: {error_sentence(error)}; give the right values as overrides"
        ) from error


def assumptions(
    found: Recognized, config: PreTrainedConfig, beside: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[str]:
    """A sentence if fields that shapes cannot show were neither given beside nor overridden."""
    given = from_beside(found, beside) | dict(overrides)
    open_fields = [name for name in found.source.unseen if name not in given]
    if not open_fields:
        return []
    values = ", ".join(f"{name} {plain(getattr(config, name))}" for name in open_fields)
    return [f"shapes do not show {values}: assumed, as in the published sizes; overrides can say otherwise"]
