"""Export a model of this package to a reference's format, by the inverse of the conversion table."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit_seg.atomic_io import atomic_path
from hf_vit_seg.plugins import Architecture, architectures
from hf_vit_seg.records import nearest

from .checkpoint_readers import Checkpoint, read_checkpoint
from .errors import ConversionError
from .files.staging import check_apart, lock_output
from .files.state_dicts import copy_shared
from .registry import full_name, load_sources
from .report import Report
from .rules import invert_rules, translate
from .settings import variants
from .settings.labels import LabelSet, complete_labels, describe_labels, from_config, generate_palette
from .settings.preprocessing import SEGMENTERS
from .settings.variants import builtin_value
from .source import Form, Outgoing, Source, Writer
from .strict_loading import load_model


def export(model_dir: Path, out_file: Path, *, to: str, overwrite: bool = False) -> Report:
    """Export the model in `model_dir` to `out_file` in the format of the source `to`.

    For some formats `out_file` is a directory. `overwrite` replaces an existing `out_file` after a successful export.

    Raises ConversionError if the model cannot be exported; `out_file` is not changed then.
    """
    model_dir, out_file = Path(model_dir), Path(out_file)
    check_apart(model_dir, out_file)
    checkpoint = read_checkpoint(model_dir)
    architecture, config = find_architecture(checkpoint)
    auto_class, model_class = find_model_class(architecture, config, model_dir)
    source, form, write = find_target(architecture, to, auto_class, config)
    with lock_output(out_file, form.directory, overwrite):
        model = load_model(model_class, config, checkpoint.tensors)
        translation = translate(invert_rules(form.rules), checkpoint.tensors, source.sizes(config))
        labels = outgoing_labels(checkpoint, auto_class)
        with atomic_path(out_file) as path:
            write(
                Outgoing(tensors=translation.tensors, config=config, labels=labels, processor=checkpoint.processor),
                path,
            )
    return Report(
        path=out_file,
        source=f"{model_dir}, exported to {full_name(architecture, source)}",
        architecture=architecture.name,
        variant=variants.find_variant(architecture, config, {})[0],
        model=model_class.__name__,
        mapped=len(checkpoint.tensors),
        dropped=(),
        parameters=model.num_parameters(),
        labels=describe_labels(labels),
        notes=tuple(numerics_notes(source, form, config)),
    )


def export_model(model: PreTrainedModel, path: Path, *, to: str) -> list[str]:
    """Write a model in memory to `path` in the format of the source `to`, and return notes on differing numbers.

    Raises ConversionError.
    """
    config = model.config
    architecture = next((each for each in architectures().values() if each.config is type(config)), None)
    if architecture is None:
        raise ConversionError(f"found {type(model).__name__}, expected a model of this package")
    config.architectures = [type(model).__name__]
    auto_class, _ = find_model_class(architecture, config, path)
    source, form, write = find_target(architecture, to, auto_class, config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    translation = translate(invert_rules(form.rules), tensors, source.sizes(config))
    labels = outgoing_labels(Checkpoint(path, tensors, config=config.to_dict()), auto_class)
    write(Outgoing(tensors=copy_shared(translation.tensors), config=config, labels=labels, processor={}), path)
    return numerics_notes(source, form, config)


def find_architecture(checkpoint: Checkpoint) -> tuple[Architecture, PreTrainedConfig]:
    """Return the architecture and config of a model directory of this package."""
    model_type = checkpoint.config.get("model_type")
    for architecture in architectures().values():
        if architecture.config.model_type == model_type:
            return architecture, architecture.config.from_dict(dict(checkpoint.config))
    names = ", ".join(each.config.model_type for each in architectures().values() if each.conversions)
    raise ConversionError(
        f"'{checkpoint.path}' has model_type {model_type!r} in its config.json, expected one of this package "
        f"({names}); convert it first"
    )


def find_model_class(
    architecture: Architecture, config: PreTrainedConfig, folder: Path
) -> tuple[str, type[PreTrainedModel]]:
    """Return the Auto class and the class of a saved model, from the class name in its config."""
    saved: Any = (config.architectures or [None])[0]
    for auto_class, model_class in architecture.models.items():
        if model_class.__name__ == saved:
            return auto_class, model_class
    names = ", ".join(model_class.__name__ for model_class in architecture.models.values())
    raise ConversionError(f"'{folder}' was saved from class {saved!r}, expected {names}")


def find_target(
    architecture: Architecture, name: str, auto_class: str, config: PreTrainedConfig
) -> tuple[Source, Form, Writer]:
    """Find the source with a name, and the form for this model class and config.

    The name is a source's, or its first part, as "transformers" of "transformers-eomt".
    """
    meant = target_sources(architecture, name)
    suitable = [source for source in meant if any(form.model == auto_class and form.write for form in source.forms)]
    source = (suitable or meant)[0]
    return source, *target_form(source, architecture, auto_class, config)


def target_sources(architecture: Architecture, name: str) -> list[Source]:
    """Find the sources of the model's architecture with a name or first part of it."""
    every = load_sources(architecture)
    meant = [each for each in every if name in (each.name, full_name(architecture, each))]
    meant += [each for each in every if each not in meant and each.name.startswith(f"{name}-")]
    if not meant:
        hint = nearest(name, [source.name for source in every], "its formats")
        raise ConversionError(f"{architecture.name} cannot be exported to '{name}'; {hint}")
    return meant


def target_form(
    source: Source, architecture: Architecture, auto_class: str, config: PreTrainedConfig
) -> tuple[Form, Writer]:
    """Find the form, with its writer, for this model class and config; the error names the closest form's settings."""
    refused, closest = f"it does not support {architecture.models[auto_class].__name__}", -1
    for form in source.forms:
        if form.model != auto_class or form.write is None:
            continue
        differing = {
            name: v for name, v in form.settings.items() if builtin_value(getattr(config, name)) != builtin_value(v)
        }
        if not differing:
            return form, form.write
        equal = len(form.settings) - len(differing)
        if equal >= closest:
            closest = equal
            refused = ", ".join(
                f"this model has {name} '{getattr(config, name)}', but {source.name} supports only '{value}'"
                for name, value in differing.items()
            )
    raise ConversionError(f"the model cannot be exported to {source.name}: {refused}")


def outgoing_labels(checkpoint: Checkpoint, auto_class: str) -> LabelSet | None:
    """Return the names and colors of a saved model's classes, for formats that store them."""
    labels = from_config(checkpoint.config, checkpoint.processor)
    if labels is None:
        return None
    labels = complete_labels(labels)
    if auto_class in SEGMENTERS and not labels.palette:
        return LabelSet(labels.names, generate_palette(len(labels.names)), origin=labels.origin)
    return labels


def numerics_notes(source: Source, form: Form, config: PreTrainedConfig) -> list[str]:
    """Note numerical settings that differ from constants in the reference's code."""
    differing = [
        f"{name} {getattr(config, name)} (reference: {value})"
        for name, value in {**source.numerics, **form.numerics}.items()
        if getattr(config, name) != value
    ]
    if not differing:
        return []
    return [f"{source.name} uses other constants and will compute slightly different outputs: {', '.join(differing)}"]
