"""The registry of all architectures' sources, and the detection of a checkpoint's source."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module

from hf_vit_seg.plugins import Architecture, architectures
from hf_vit_seg.records import nearest

from .checkpoint_readers import Checkpoint
from .errors import ConversionError, UnsupportedCheckpoint, first_few
from .source import Form, Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectedFormat:
    """The architecture, source and form of a checkpoint."""

    architecture: Architecture
    source: Source
    form: Form


def load_source(reference: str) -> Source:
    """Import a source named "module:attribute"."""
    module, _, attribute = reference.partition(":")
    source = getattr(import_module(module), attribute)
    if not isinstance(source, Source):
        raise TypeError(f"expected a hf_vit_seg.conversion.source.Source, found {type(source).__name__}")
    return source


def load_sources(architecture: Architecture) -> list[Source]:
    """Load the sources of one architecture; a source that fails to import is logged and skipped."""
    sources = []
    for reference in architecture.conversions:
        try:
            sources.append(load_source(reference))
        except Exception as error:  # third-party code may raise anything
            logger.warning(
                "conversion '%s' of architecture '%s' is skipped: %s: %s",
                reference,
                architecture.name,
                type(error).__name__,
                error,
            )
    return sources


def all_sources() -> list[tuple[Architecture, Source]]:
    """Load every source of every installed architecture."""
    return [(arch, source) for arch in architectures().values() for source in load_sources(arch)]


def full_name(architecture: Architecture, source: Source) -> str:
    """Return the full name of a source; the short name is enough if it is unique."""
    return f"{architecture.name}/{source.name}"


def find_sources(name: str) -> list[tuple[Architecture, Source]]:
    """Find the sources with a short or full name; ConversionError if there is none."""
    every = all_sources()
    meant = [pair for pair in every if name in (pair[1].name, full_name(*pair))]
    if not meant:
        names = [full_name(*pair) for pair in every]
        hint = nearest(name, [*names, *{source.name for _, source in every}]) if names else "there are none"
        raise ConversionError(f"unknown source '{name}'; {hint}")
    return meant


def find_form(source: Source, names: Collection[str]) -> Form | None:
    """Return the first form whose signature is present in `names`."""
    return next((form for form in source.forms if all(name in names for name in form.signature)), None)


def recognize(checkpoint: Checkpoint, name: str | None) -> DetectedFormat:
    """Detect the source and form of a checkpoint from its keys; `name` restricts the search to one source."""
    candidates = find_sources(name) if name else all_sources()
    names = checkpoint.tensors.keys()
    matches = [
        DetectedFormat(architecture, source, form)
        for architecture, source in candidates
        if (form := find_form(source, names)) is not None
    ]
    if not matches:
        raise UnsupportedCheckpoint(unknown_format_message(checkpoint, candidates, name))
    if len(matches) > 1:
        raise ConversionError(
            f"'{checkpoint.path}' has the keys of {len(matches)} sources, "
            f"{first_few(full_name(f.architecture, f.source) for f in matches)}, expected one; separate them, or "
            "choose the source"
        )
    if refused := matches[0].form.unsupported_reason:
        raise UnsupportedCheckpoint(f"'{checkpoint.path}' cannot be converted: {refused}")
    matches[0].source.check_config(checkpoint.config)
    return matches[0]


def unknown_format_message(
    checkpoint: Checkpoint, candidates: Sequence[tuple[Architecture, Source]], name: str | None
) -> str:
    """Format the error message for keys that match no candidate."""
    model_type = checkpoint.config.get("model_type")
    if model_type in {architecture.config.model_type for architecture in architectures().values()}:
        return (
            f"'{checkpoint.path}' is already in this package's format (model_type '{model_type}'); load it with "
            "from_pretrained, or export it"
        )
    first = first_few(checkpoint.tensors)
    if name is None:
        names = ", ".join(full_name(*pair) for pair in candidates)
        return f"'{checkpoint.path}' has the keys of no known source ({first}); the known sources are {names}"
    signature = [name for _, source in candidates for form in source.forms for name in form.signature]
    lacking = dict.fromkeys(name for name in signature if name not in checkpoint.tensors)
    return (
        f"'{checkpoint.path}' is not a checkpoint of source '{name}': its keys are {first}, and it lacks "
        f"{first_few(lacking)}; omit the source to detect it"
    )
