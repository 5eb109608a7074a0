"""Export forms: equivalent modules that replace those of a model before it is exported.

A module declares a marker, such as the class attribute `export_form = "mix_ffn"`. The record of an architecture names
tables of forms as "module:FORMS" (`Architecture.forms`), each of which rewrites the modules with one marker. Forms are
selected by marker and not by class, so that they also apply to models that were loaded with code from the Hub. They are
not part of that code. A plugin keeps its forms in its own package.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn

from hf_vit_seg.plugins import architectures

Target = Literal["any", "blocked_channels", "centered_norms"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportForm:
    """A rewrite of modules with a marker.

    `rewrite` receives a module of a copy of the model, in evaluation mode, and returns its replacement. It may modify
    the module, and returns it unchanged if the form does not apply (for example, if an adapter replaced a layer).

    `target` says which runtimes benefit: "any"; those that keep blocks of channels together ("blocked_channels", ONNX
    Runtime); or those that compute layer norms in many steps ("centered_norms", OpenVINO).
    """

    marker: str
    rewrite: Callable[[Any], nn.Module]
    target: Target = "any"


def load_forms(reference: str) -> tuple[ExportForm, ...]:
    """Import a table of forms named "module:attribute"."""
    module, _, attribute = reference.partition(":")
    forms = tuple(getattr(import_module(module), attribute))
    if invalid := next((form for form in forms if not isinstance(form, ExportForm)), None):
        raise TypeError(f"expected hf_vit_seg.export.forms.ExportForm, found {type(invalid).__name__}")
    return forms


@cache
def export_forms() -> tuple[ExportForm, ...]:
    """Return the forms of all installed architectures; a table that fails to import is logged and skipped."""
    by_reference: dict[str, tuple[ExportForm, ...]] = {}
    for architecture in architectures().values():
        for reference in architecture.forms:
            try:
                by_reference[reference] = load_forms(reference)
            except Exception as error:  # third-party code may raise anything
                reason = f"{type(error).__name__}: {error}"
                logger.warning("forms '%s' of architecture '%s' are skipped: %s", reference, architecture.name, reason)
    return tuple(form for forms in by_reference.values() for form in forms)


@torch.no_grad()
def with_export_forms(model: Any, targets: Sequence[Target] = ("any",)) -> Any:
    """Return a copy of a model in evaluation mode, in which forms for `targets` have replaced the modules they apply
    to.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    rewrites = {(form.target, form.marker): form.rewrite for form in export_forms()}
    for name, module in list(copied.named_modules()):
        for target in targets:
            rewrite = rewrites.get((target, getattr(module, "export_form", "")))
            if rewrite and name:
                copied.set_submodule(name, rewrite(module))
    return copied.requires_grad_(False)


__all__ = ["ExportForm", "Target", "export_forms", "load_forms", "with_export_forms"]
