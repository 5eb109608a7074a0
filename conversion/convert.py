"""Conversion of a reference's checkpoint into a directory for `from_pretrained`; `export` is the way back."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hf_vit_seg.atomic_io import atomic_path
from hf_vit_seg.provenance import Provenance, provenance_from, write_card

from . import config_building, preprocessing, variants
from .errors import ConversionError
from .export import export
from .labels import LabelSet, described, resolve
from .preprocessing import IMAGENET
from .readers import Checkpoint, read
from .registry import Recognized, qualified, recognize
from .report import Report
from .rules import origin, translate
from .staging import check_apart, check_directory, locked_output
from .strict_loading import loaded

__all__ = ["ConversionError", "Report", "convert", "export"]


def convert(
    source_file: Path,
    out_dir: Path,
    *,
    source: str | None = None,
    labels: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Report:
    """Turn a checkpoint, a file or a directory, into config, weights and image processor in `out_dir`.

    The source is found by the keys, or named. `labels` is the name of a label set or a JSON file. `overrides`
    are config fields that win over all that is found. `force` replaces what is in `out_dir`, once the new is
    complete.

    Raises ConversionError, in one sentence, when the input cannot be converted; `out_dir` is untouched then.
    """
    source_file, out_dir, overrides = Path(source_file), Path(out_dir), overrides or {}
    check_directory(out_dir, force)
    check_apart(source_file, out_dir)
    with locked_output(out_dir, directory=True, force=force):
        return convert_locked(source_file, out_dir, source, labels, overrides)


def convert_locked(
    source_file: Path,
    out_dir: Path,
    source: str | None,
    labels: str | Path | None,
    overrides: Mapping[str, Any],
) -> Report:
    """`convert` into a locked directory, which is replaced."""
    checkpoint = read(source_file)
    found = recognize(checkpoint, source)
    translation = translate(found.form.rules, checkpoint.tensors)
    shapes = config_building.inferred(found, translation.tensors, checkpoint.tensors)
    label_set = resolved(found, checkpoint, shapes.get("num_labels"), labels)
    config = config_building.build(found, shapes, checkpoint.config, overrides, label_set)
    model_class = found.architecture.models[found.form.model]
    model = loaded(model_class, config, translation.tensors, partial(origin, found.form.rules))
    settings = preprocessing.settings(
        found.form.model,
        label_set,
        checkpoint.processor,
        labels_asked=labels is not None,
        reference=found.source.preprocessing(config),
    )
    provenance = origin_of(found, checkpoint)
    with atomic_path(out_dir) as folder:
        model.save_pretrained(folder)
        found.architecture.image_processor["torchvision"](**settings).save_pretrained(folder)
        write_card(folder, provenance, folder.name)
    variant, notes = judged(found, checkpoint, config, shapes, overrides)
    return Report(
        path=out_dir,
        source=f"{qualified(found.architecture, found.source)}, {found.source.title}",
        architecture=found.architecture.name,
        variant=variant,
        model=model_class.__name__,
        mapped=len(checkpoint.tensors) - len(translation.dropped),
        dropped=tuple(translation.dropped.items()),
        parameters=model.num_parameters(),
        labels=described(label_set),
        licence=provenance.licence(),
        notes=(*notes, *assumed_preprocessing(checkpoint, settings), *found.form.remarks, *found.source.remarks),
    )


def origin_of(found: Recognized, checkpoint: Checkpoint) -> Provenance:
    """Where the weights came from; a licence in the card beside them goes before that of the source."""
    beside = provenance_from(checkpoint.card)
    known = beside if beside.license else found.source.weights
    own = {"source": found.source.title, "base_model": beside.base_model, "datasets": beside.datasets}
    return known.model_copy(update=own)


def resolved(found: Recognized, checkpoint: Checkpoint, count: int | None, asked: str | Path | None) -> LabelSet | None:
    """The label set of a model with a head."""
    if count is None:
        return None
    return resolve(
        count,
        asked=asked,
        meta=checkpoint.meta,
        config=checkpoint.config,
        processor=checkpoint.processor,
        usual=found.form.labels,
    )


def judged(
    found: Recognized,
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    shapes: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> tuple[str, list[str]]:
    """The variant, and what a reader should know of the config."""
    variant, differing = variants.find(found.architecture, config, shapes)
    if variant == variants.CUSTOM:
        return variant, config_building.assumptions(found, config, checkpoint.config, overrides)
    return variant, [
        f"{name} is {getattr(config, name)}, the published {variant} has {value}" for name, value in differing.items()
    ]


def assumed_preprocessing(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> list[str]:
    """A sentence if no preprocessor_config.json lay beside the checkpoint."""
    if preprocessing.beside(checkpoint.processor):
        return []
    mean, deviation = settings["image_mean"], settings["image_std"]
    values = (
        "ImageNet's mean and deviation" if mean == IMAGENET["image_mean"] else f"mean {mean}, deviation {deviation}"
    )
    return [f"preprocessing is assumed: size {settings['size']}, {values}"]
