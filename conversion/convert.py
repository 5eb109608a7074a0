"""Convert a reference checkpoint to a directory for `from_pretrained`; `export` is the inverse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit_seg.atomic_io import atomic_path
from hf_vit_seg.provenance import Provenance, provenance_from, write_card

from . import config_building, preprocessing, variants
from .errors import ConversionError
from .export import export
from .labels import LabelSet, describe_labels, resolve
from .preprocessing import IMAGENET
from .readers import Checkpoint, read, read_shapes
from .registry import DetectedFormat, full_name, recognize
from .report import Report
from .rules import Translation, origin, translate
from .staging import check_apart, check_directory, lock_output
from .strict_loading import build_model, load_model

__all__ = ["ConversionError", "Report", "convert", "export"]


def convert(
    source_file: Path,
    out_dir: Path,
    *,
    source: str | None = None,
    labels: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    weights: str | None = None,
) -> Report:
    """Convert a checkpoint (file or directory) to config, weights and image processor in `out_dir`.

    The source is detected from the keys, unless given. `labels` is the name of a label set or a JSON file.
    `overrides` are config fields that take precedence over detected values. `force` replaces an existing `out_dir`
    after a successful conversion. `weights` names the weights to convert if the file has several, such as
    `state_dict_ema`.

    Raises ConversionError if the input cannot be converted; `out_dir` is not changed then.
    """
    source_file, out_dir, overrides = Path(source_file), Path(out_dir), overrides or {}
    check_directory(out_dir, force)
    check_apart(source_file, out_dir)
    with lock_output(out_dir, directory=True, force=force):
        return convert_locked(source_file, out_dir, source, labels, overrides, weights)


def convert_locked(
    source_file: Path,
    out_dir: Path,
    source: str | None,
    labels: str | Path | None,
    overrides: Mapping[str, Any],
    weights: str | None,
) -> Report:
    """Convert into a locked directory, which is replaced."""
    if (outline := read_shapes(source_file, weights)) is not None:  # before any data is read
        plan(outline, source, labels, overrides, build_model)
    checkpoint = read(source_file, weights)
    planned = plan(checkpoint, source, labels, overrides, load_model)
    found, translation, shapes = planned.found, planned.translation, planned.shapes
    label_set, config, model = planned.label_set, planned.config, planned.model
    settings = preprocessing.settings(
        found.form.model,
        label_set,
        checkpoint.processor,
        labels_requested=labels is not None,
        reference=found.source.preprocessing(config),
    )
    provenance = source_provenance(found, checkpoint)
    with atomic_path(out_dir) as folder:
        model.save_pretrained(folder)
        found.architecture.image_processor["torchvision"](**settings).save_pretrained(folder)
        write_card(folder, provenance, folder.name)
    variant, notes = find_variant(found, checkpoint, config, shapes, overrides)
    return Report(
        path=out_dir,
        source=f"{full_name(found.architecture, found.source)}, {found.source.title}",
        architecture=found.architecture.name,
        variant=variant,
        model=type(model).__name__,
        mapped=len(checkpoint.tensors) - len(translation.dropped),
        dropped=(*translation.dropped.items(), *checkpoint.dropped.items()),
        weights=checkpoint.weights,
        parameters=model.num_parameters(),
        labels=describe_labels(label_set),
        license=provenance.describe_license(),
        notes=(*notes, *preprocessing_notes(checkpoint, settings), *found.form.remarks, *found.source.remarks),
    )


@dataclass(frozen=True)
class Plan:
    """The model of a checkpoint: its format, translated tensors, what was inferred from shapes, labels and config."""

    found: DetectedFormat
    translation: Translation
    shapes: Mapping[str, Any]
    label_set: LabelSet | None
    config: PreTrainedConfig
    model: PreTrainedModel


def plan(
    checkpoint: Checkpoint,
    source: str | None,
    labels: str | Path | None,
    overrides: Mapping[str, Any],
    build: Callable[..., PreTrainedModel],
) -> Plan:
    """Find the model of a checkpoint, and build it by `build_model` or `load_model`."""
    found = recognize(checkpoint, source)
    translation = translate(found.form.rules, checkpoint.tensors)
    shapes = config_building.infer(found, translation.tensors, checkpoint.tensors)
    label_set = find_labels(found, checkpoint, shapes.get("num_labels"), labels)
    config = config_building.build(found, shapes, checkpoint.config, overrides, label_set)
    model_class = found.architecture.models[found.form.model]
    model = build(model_class, config, translation.tensors, partial(origin, found.form.rules))
    return Plan(found, translation, shapes, label_set, config, model)


def source_provenance(found: DetectedFormat, checkpoint: Checkpoint) -> Provenance:
    """Return the provenance of the weights; a license in the checkpoint's model card overrides that of the source."""
    card = provenance_from(checkpoint.card)
    known = card if card.license else found.source.weights
    own = {"source": found.source.title, "base_model": card.base_model, "datasets": card.datasets}
    return known.model_copy(update=own)


def find_labels(
    found: DetectedFormat, checkpoint: Checkpoint, count: int | None, requested: str | Path | None
) -> LabelSet | None:
    """Find the label set of a model with a head; None without one."""
    if count is None:
        return None
    return resolve(
        count,
        requested=requested,
        meta=checkpoint.meta,
        config=checkpoint.config,
        processor=checkpoint.processor,
        usual=found.form.labels,
    )


def find_variant(
    found: DetectedFormat,
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    shapes: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[str, list[str]]:
    """Return the variant and notes on the config, for the report."""
    variant, differing = variants.find(found.architecture, config, shapes)
    if variant == variants.CUSTOM:
        return variant, config_building.assumptions(found, config, checkpoint.config, overrides)
    return variant, [
        f"{name} is {getattr(config, name)}; the published {variant} has {value}" for name, value in differing.items()
    ]


def preprocessing_notes(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> list[str]:
    """Note the assumed preprocessing if the checkpoint has no preprocessor_config.json."""
    if preprocessing.saved_settings(checkpoint.processor):
        return []
    mean, deviation = settings["image_mean"], settings["image_std"]
    values = (
        "ImageNet mean and standard deviation"
        if mean == IMAGENET["image_mean"]
        else f"mean {mean}, standard deviation {deviation}"
    )
    return [f"preprocessing is assumed: size {settings['size']}, {values}"]
