"""Convert a reference checkpoint to a directory for `from_pretrained`; `export` is the inverse."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.atomic_io import atomic_path
from hf_vit_seg.provenance import Provenance, provenance_from, write_card

from .checkpoint_readers import LICENSE, Checkpoint, read_checkpoint, read_shapes
from .errors import ConversionError
from .export import export
from .files.download import locate, repository_id
from .files.staging import check_apart, check_directory, lock_output
from .registry import DetectedFormat, full_name, recognize
from .report import Report
from .rules import Translation, origin, translate
from .settings import config_building, preprocessing, variants
from .settings.labels import LabelSet, describe_labels, resolve_labels
from .settings.preprocessing import IMAGENET
from .strict_loading import build_model, load_model

__all__ = ["Conversion", "ConversionError", "Report", "convert", "convert_checkpoint", "convert_in_memory", "export"]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    source: str | None = None,
    to: str | None = None,
    weights: str | None = None,
    labels: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **hub: Any,
) -> Report:
    """Convert a checkpoint to config, weights and image processor in `out`, as `hf-vit-seg convert` does.

    The checkpoint is a file, a directory, a Hub id, or the https address of a file.

    The source is detected from the keys, unless given. `labels` is the name of a label set or a JSON file.
    `settings` are config fields that take precedence over detected values. `overwrite` replaces an existing `out`
    after a successful conversion. `weights` names the weights to convert if the file has several, such as
    `state_dict_ema`. `hub` has the options of `from_pretrained` that locate files, such as `revision` and `token`.

    `to` exports a model directory back to this format; it takes none of the options but `overwrite`.

    Raises ConversionError if the input cannot be converted; `out` is not changed then.
    """
    out = Path(out)
    if to is not None:
        if source or labels or settings or weights or hub:
            raise ConversionError("convert with `to` exports the model unchanged: pass no option but overwrite")
        return export(Path(checkpoint), out, to=to, overwrite=overwrite)
    check_directory(out, overwrite)
    if Path(checkpoint).exists():
        check_apart(Path(checkpoint), out)
    with lock_output(out, directory=True, overwrite=overwrite):
        converted = convert_in_memory(checkpoint, weights, source=source, labels=labels, overrides=settings, **hub)
        with atomic_path(out) as folder:
            converted.model.save_pretrained(folder)
            converted.processor.save_pretrained(folder)
            write_card(folder, converted.provenance, folder.name)
            for file in converted.license_files:
                shutil.copyfile(file, folder / file.name)
    return replace(converted.report, path=out)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted checkpoint in memory: the model with its image processor, provenance, and report.

    `assumed_fields` describes fields of the config that neither the checkpoint nor a published size determines, if
    there are any. `assumes_preprocessing` is true if the checkpoint has no image processor.
    """

    detected: DetectedFormat
    model: PreTrainedModel
    processor: BaseImageProcessor
    provenance: Provenance
    report: Report
    license_files: tuple[Path, ...] = ()
    assumed_fields: str = ""
    assumes_preprocessing: bool = False


def convert_in_memory(
    name: str | Path,
    weights: str | None = None,
    *,
    source: str | None = None,
    labels: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    **hub: Any,
) -> Conversion:
    """Find, read and convert a checkpoint, without writing it; the options are those of `convert`.

    The shapes are compared with those of the model before any data are read. Raises UnsupportedCheckpoint if no source
    describes the checkpoint, and ConversionError if it is damaged or cannot be found.
    """
    path = locate(name, **hub)
    with add_path_to_errors(path):
        if (outline := read_shapes(path, weights)) is not None:
            plan_conversion(outline, source, labels, overrides or {}, build_model)
        checkpoint = replace(read_checkpoint(path, weights), repository=repository_id(name))
        converted = convert_checkpoint(checkpoint, source=source, labels=labels, overrides=overrides)
    licenses = sorted(path.glob(LICENSE + "*")) if path.is_dir() else []
    return replace(converted, license_files=tuple(file for file in licenses if file.is_file()))


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add the path to the message of a ConversionError that does not contain it."""
    try:
        yield
    except ConversionError as error:
        if str(path) not in str(error):
            error.args = (f"'{path}': {error}",)
        raise


def convert_checkpoint(
    checkpoint: Checkpoint,
    *,
    source: str | None = None,
    labels: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Conversion:
    """Convert a checkpoint in memory; the options are those of `convert`.

    Raises UnsupportedCheckpoint if no source describes the checkpoint, and ConversionError if it is damaged.
    """
    planned = plan_conversion(checkpoint, source, labels, overrides or {}, load_model)
    detected, translation, shapes = planned.detected, planned.translation, planned.shapes
    label_set, config, model = planned.label_set, planned.config, planned.model
    other = preprocessing.other_processor(checkpoint.processor, checkpoint.config)
    settings = preprocessing.settings(
        detected.form.model,
        label_set,
        checkpoint.processor,
        labels_requested=labels is not None,
        reference=detected.source.preprocessing(config),
    )
    preprocessing.check_channels(checkpoint.processor, config.num_channels, checkpoint.path)
    provenance = source_provenance(detected, checkpoint)
    variant, differing = variants.find_variant(detected.architecture, config, shapes)
    is_published = variant != variants.CUSTOM
    assumed = (
        "" if is_published else config_building.describe_assumed(detected, config, checkpoint.config, overrides or {})
    )
    notes = [
        *([f"{assumed}, as in the published sizes; set other values with overrides"] if assumed else []),
        *variant_notes(variant, differing, config),
    ]
    report = Report(
        path=None,
        source=f"{full_name(detected.architecture, detected.source)}, {detected.source.title}",
        architecture=detected.architecture.name,
        variant=variant,
        model=type(model).__name__,
        mapped=len(checkpoint.tensors) - len(translation.dropped),
        dropped=(*translation.dropped.items(), *checkpoint.dropped.items()),
        weights=checkpoint.weights,
        parameters=model.num_parameters(),
        labels=describe_labels(label_set),
        license=provenance.describe_license(),
        notes=(*notes, *preprocessing_notes(checkpoint, settings, other), *detected.form.notes, *detected.source.notes),
    )
    return Conversion(
        detected=detected,
        model=model,
        processor=other or processor_class(detected)(**settings),
        provenance=provenance,
        report=report,
        assumed_fields=assumed,
        assumes_preprocessing=not checkpoint.processor,
    )


def processor_class(detected: DetectedFormat) -> type:
    """Return the class of the image processor of a checkpoint's model."""
    task = "instance" if detected.form.model == preprocessing.UNIVERSAL else None
    return detected.architecture.processor_classes(task)["torchvision"]


@dataclass(frozen=True)
class Plan:
    """The model of a checkpoint: its format, translated tensors, what was inferred from shapes, labels and config."""

    detected: DetectedFormat
    translation: Translation
    shapes: Mapping[str, Any]
    label_set: LabelSet | None
    config: PreTrainedConfig
    model: PreTrainedModel


def plan_conversion(
    checkpoint: Checkpoint,
    source: str | None,
    labels: str | Path | None,
    overrides: Mapping[str, Any],
    build: Callable[..., PreTrainedModel],
) -> Plan:
    """Find the model of a checkpoint, and build it by `build_model` or `load_model`."""
    detected = recognize(checkpoint, source)
    translation = translate(detected.form.rules, checkpoint.tensors)
    shapes = config_building.infer(detected, translation.tensors, checkpoint.tensors)
    label_set = find_labels(detected, checkpoint, shapes.get("num_labels"), labels)
    config = config_building.build_config(detected, shapes, checkpoint.config, overrides, label_set)
    model_class = detected.architecture.models[detected.form.model]
    model = build(model_class, config, translation.tensors, partial(origin, detected.form.rules))
    return Plan(detected, translation, shapes, label_set, config, model)


def source_provenance(detected: DetectedFormat, checkpoint: Checkpoint) -> Provenance:
    """Return the provenance of the weights; a license in the checkpoint's model card overrides that of the source."""
    card = provenance_from(checkpoint.card)
    provenance = card if card.license else detected.source.weights
    base = (checkpoint.repository,) if checkpoint.repository else card.base_model
    own = {"source": detected.source.title, "base_model": base, "datasets": card.datasets}
    return provenance.model_copy(update=own)


def find_labels(
    detected: DetectedFormat, checkpoint: Checkpoint, count: int | None, requested: str | Path | None
) -> LabelSet | None:
    """Find the label set of a model with a head; None without one."""
    if count is None:
        return None
    return resolve_labels(
        count,
        requested=requested,
        meta=checkpoint.meta,
        config=checkpoint.config,
        processor=checkpoint.processor,
        usual=detected.form.labels,
    )


def variant_notes(variant: str, differing: Mapping[str, Any], config: PreTrainedConfig) -> list[str]:
    """Note the fields that differ from the published size."""
    return [
        f"{name} is {getattr(config, name)}; the published {variant} has {value}" for name, value in differing.items()
    ]


def preprocessing_notes(
    checkpoint: Checkpoint, settings: Mapping[str, Any], other: BaseImageProcessor | None
) -> list[str]:
    """Return a note if an image processor is used unchanged, or if the preprocessing is assumed."""
    if other is not None:
        return [f"the image processor is {type(other).__name__} of transformers, whose steps differ from ours"]
    if preprocessing.saved_settings(checkpoint.processor):
        return []
    mean, deviation = settings["image_mean"], settings["image_std"]
    values = (
        "ImageNet mean and standard deviation"
        if mean == IMAGENET["image_mean"]
        else f"mean {mean}, standard deviation {deviation}"
    )
    return [f"preprocessing is assumed: size {settings['size']}, {values}"]
