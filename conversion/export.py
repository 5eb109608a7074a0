"""Export of a model of this package in a reference's own format: the conversion's table read backwards."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit_seg.atomic_io import atomic_path
from hf_vit_seg.plugins import Architecture, architectures

from . import variants
from .errors import ConversionError
from .labels import LabelSet, completed, described, from_config, generated_palette
from .preprocessing import SEGMENTATION
from .readers import Checkpoint, read
from .registry import qualified, sources_of
from .report import Report
from .rules import inverted, translate
from .source import Form, Outgoing, Source, Writer
from .staging import check_apart, locked_output
from .strict_loading import loaded
from .variants import plain


def export(model_dir: Path, out_file: Path, *, to: str, force: bool = False) -> Report:
    """Write the model in `model_dir` to `out_file` as the source named `to` would have written it.

    A format that is a directory is written as one. `force` replaces what is at `out_file`, once the new is
    complete.

    Raises ConversionError, in one sentence, when the model cannot go there; `out_file` is untouched then.
    """
    model_dir, out_file = Path(model_dir), Path(out_file)
    check_apart(model_dir, out_file)
    checkpoint = read(model_dir)
    architecture, config = opened(checkpoint)
    auto_class, model_class = head_of(architecture, config, model_dir)
    source = target_source(architecture, to)
    form, write = target_form(source, architecture, auto_class, config)
    with locked_output(out_file, form.directory, force):
        model = loaded(model_class, config, checkpoint.tensors)
        translation = translate(inverted(form.rules), checkpoint.tensors, source.sizes(config))
        labels = outgoing_labels(checkpoint, auto_class)
        with atomic_path(out_file) as place:
            write(
                Outgoing(tensors=translation.tensors, config=config, labels=labels, processor=checkpoint.processor),
                place,
            )
    return Report(
        path=out_file,
        source=f"{model_dir}, exported to {qualified(architecture, source)}",
        architecture=architecture.name,
        variant=variants.find(architecture, config, {})[0],
        model=model_class.__name__,
        mapped=len(checkpoint.tensors),
        dropped=(),
        parameters=model.num_parameters(),
        labels=described(labels),
        notes=tuple(lost_numerics(source, form, config)),
    )


def opened(checkpoint: Checkpoint) -> tuple[Architecture, PreTrainedConfig]:
    """The architecture and config of a directory that this package has written."""
    model_type = checkpoint.config.get("model_type")
    for architecture in architectures().values():
        if architecture.config.model_type == model_type:
            return architecture, architecture.config.from_dict(dict(checkpoint.config))
    known = ", ".join(each.config.model_type for each in architectures().values() if each.conversions)
    raise ConversionError(
        f"'{checkpoint.path}' has model_type {model_type!r} in its config.json; a model of this package "
        f"({known}) is expected: convert it first"
    )


def head_of(architecture: Architecture, config: PreTrainedConfig, folder: Path) -> tuple[str, type[PreTrainedModel]]:
    """The Auto class and the class of a saved model, by the class name in its config."""
    saved: Any = (config.architectures or [None])[0]
    for auto_class, model_class in architecture.models.items():
        if model_class.__name__ == saved:
            return auto_class, model_class
    known = ", ".join(model_class.__name__ for model_class in architecture.models.values())
    raise ConversionError(f"'{folder}' was saved from {saved!r}; a model of class {known} is expected")


def target_source(architecture: Architecture, name: str) -> Source:
    """The source of a name among those of the model's architecture."""
    every = sources_of(architecture)
    for source in every:
        if name in (source.name, qualified(architecture, source)):
            return source
    known = ", ".join(source.name for source in every)
    raise ConversionError(f"a {architecture.name} cannot be exported to '{name}'; it can to {known}")


def target_form(
    source: Source, architecture: Architecture, auto_class: str, config: PreTrainedConfig
) -> tuple[Form, Writer]:
    """The form, with its writer, that holds such a model; its settings must be the config's."""
    refused = f"it has no form for {architecture.models[auto_class].__name__}"
    for form in source.forms:
        if form.model != auto_class or form.write is None:
            continue
        differing = {name: v for name, v in form.settings.items() if plain(getattr(config, name)) != plain(v)}
        if not differing:
            return form, form.write
        refused = ", ".join(
            f"this model has {name} '{getattr(config, name)}' and {source.name} can only hold '{value}'"
            for name, value in differing.items()
        )
    raise ConversionError(f"the model cannot be exported to {source.name}: {refused}")


def outgoing_labels(checkpoint: Checkpoint, auto_class: str) -> LabelSet | None:
    """The names and colors of a saved model, for formats that keep them."""
    found = from_config(checkpoint.config, checkpoint.processor)
    if found is None:
        return None
    found = completed(found)
    if auto_class == SEGMENTATION and not found.palette:
        return LabelSet(found.names, generated_palette(len(found.names)), found=found.found)
    return found


def lost_numerics(source: Source, form: Form, config: PreTrainedConfig) -> list[str]:
    """Numerical choices of the model that the reference's code makes otherwise."""
    differing = [
        f"{name} {getattr(config, name)} (there {value})"
        for name, value in {**source.numerics, **form.numerics}.items()
        if getattr(config, name) != value
    ]
    if not differing:
        return []
    return [
        f"{source.name} has these numbers in its code and will compute slightly differently: {', '.join(differing)}"
    ]
