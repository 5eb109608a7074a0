"""The registry: which sources the installed architectures bring, and which of them a file belongs to."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import import_module

from hf_vit_seg.plugins import Architecture, architectures

from .errors import ConversionError, first_few
from .readers import Checkpoint
from .source import Form, Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recognized:
    """The architecture, source and form of a checkpoint."""

    architecture: Architecture
    source: Source
    form: Form


def load(place: str) -> Source:
    """Import a source named "module:attribute"."""
    module, _, attribute = place.partition(":")
    source = getattr(import_module(module), attribute)
    if not isinstance(source, Source):
        raise TypeError(f"expected a hf_vit_seg.conversion.source.Source, found {type(source).__name__}")
    return source


def sources_of(architecture: Architecture) -> list[Source]:
    """The sources of one architecture; one that fails to import is logged and never takes the others down."""
    found = []
    for place in architecture.conversions:
        try:
            found.append(load(place))
        except Exception as error:  # a stranger's import may raise anything
            logger.warning(
                "conversion '%s' of architecture '%s' is skipped: %s: %s",
                place,
                architecture.name,
                type(error).__name__,
                error,
            )
    return found


def sources() -> list[tuple[Architecture, Source]]:
    """Every source of every installed architecture."""
    return [(arch, source) for arch in architectures().values() for source in sources_of(arch)]


def qualified(architecture: Architecture, source: Source) -> str:
    """The full name of a source; the short one is enough where no other architecture has it."""
    return f"{architecture.name}/{source.name}"


def by_name(name: str) -> list[tuple[Architecture, Source]]:
    """The sources that a user can mean by a name."""
    every = sources()
    meant = [pair for pair in every if name in (pair[1].name, qualified(*pair))]
    if not meant:
        listed = ", ".join(qualified(*pair) for pair in every)
        raise ConversionError(f"there is no source '{name}'; the installed ones are {listed}")
    return meant


def fitting_form(source: Source, names: Collection[str]) -> Form | None:
    """The first form whose marks are all there."""
    return next((form for form in source.forms if all(mark in names for mark in form.marks)), None)


def recognize(checkpoint: Checkpoint, name: str | None) -> Recognized:
    """Find out by its keys what a checkpoint is; `name` restricts the search to one source."""
    candidates = by_name(name) if name else sources()
    names = checkpoint.tensors.keys()
    found = [
        Recognized(architecture, source, form)
        for architecture, source in candidates
        if (form := fitting_form(source, names)) is not None
    ]
    if not found:
        raise ConversionError(unknown(checkpoint, candidates, name))
    if len(found) > 1:
        raise ConversionError(
            f"'{checkpoint.path}' has the keys of {len(found)} sources, "
            f"{first_few(qualified(f.architecture, f.source) for f in found)}; it must be of one: separate "
            "them, or name the source"
        )
    if refused := found[0].form.refusal:
        raise ConversionError(f"'{checkpoint.path}' is not converted: {refused}")
    return found[0]


def unknown(checkpoint: Checkpoint, candidates: Sequence[tuple[Architecture, Source]], name: str | None) -> str:
    """The sentence for keys that no candidate recognizes."""
    model_type = checkpoint.config.get("model_type")
    if model_type in {architecture.config.model_type for architecture in architectures().values()}:
        return (
            f"'{checkpoint.path}' is already in this package's format (model_type '{model_type}'); load it with "
            "from_pretrained, or export it"
        )
    first = first_few(checkpoint.tensors)
    if name is None:
        known = ", ".join(qualified(*pair) for pair in candidates)
        return f"no known source has the keys of '{checkpoint.path}' ({first}); the known sources are {known}"
    marks = [mark for _, source in candidates for form in source.forms for mark in form.marks]
    lacking = dict.fromkeys(mark for mark in marks if mark not in checkpoint.tensors)
    return (
        f"'{checkpoint.path}' is not of source '{name}': its keys are {first}, and of those that tell this "
        f"source apart it lacks {first_few(lacking)}; leave the source out to have it found"
    )
