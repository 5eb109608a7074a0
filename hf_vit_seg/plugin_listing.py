"""List all installed plugins, for the commands `plugins` and `models`.

Every entry point of every group is loaded, and an architecture's variants, conversions and export forms are checked,
so that errors are found early.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from rich.console import Group
from rich.table import Table as View

from hf_vit_seg.data.sources.source_registry import SOURCES
from hf_vit_seg.data.transforms.batch_mixing import BATCH_TRANSFORMS
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.export.exporters import EXPORTERS
from hf_vit_seg.export.forms import load_forms
from hf_vit_seg.loading.models import AUTO_CLASSES
from hf_vit_seg.training.losses.loss_registry import LOSSES

from .entry_points import PREFIX, Plugin, entries, load_all, origin
from .inference import runtimes
from .plugins import GROUP, HEADS_GROUP, Architecture, architectures, heads, plugins
from .records import nearest

TABLES = (LOSSES, SOURCES, TRANSFORMS, BATCH_TRANSFORMS, EXPORTERS)
GROUPS = (GROUP, HEADS_GROUP, *(table.group for table in TABLES), runtimes.GROUP)


def list_plugins() -> tuple[Plugin, ...]:
    """Load every entry point of every group; failed ones have an error."""
    of_tables = [plugin for table in TABLES for plugin in table.plugins()]
    suffixes = [suffix.removeprefix(".") for suffix in runtimes.PROGRAMS]
    programs = load_all(runtimes.GROUP, runtimes.check_runtime, suffixes)
    return (*map(check_plugin, plugins()), *heads(), *of_tables, *programs, *unknown_groups())


def check_plugin(plugin: Plugin) -> Plugin:
    """Return an architecture's plugin, with an error if its variants, conversions or export forms are broken."""
    if plugin.error:
        return plugin
    failures_text = "; ".join(failures(plugin.value))
    return replace(plugin, error=failures_text) if failures_text else plugin


def failures(architecture: Architecture) -> Iterator[str]:
    """Describe broken variants, conversions and export forms of an architecture."""
    from .conversion import registry

    try:
        for variant in architecture.variant_rows():
            architecture.variant_config(variant)
    except Exception as error:  # errors of YAML, files and strict configs
        yield f"variants: {error_sentence(error, short=True)}"
    for reference in architecture.conversions:
        try:
            registry.load_source(reference)
        except Exception as error:  # third-party code may raise anything
            yield f"conversion {reference}: {type(error).__name__}: {error_sentence(error, short=True)}"
    for reference in architecture.forms:
        try:
            load_forms(reference)
        except Exception as error:  # third-party code may raise anything
            yield f"export forms {reference}: {type(error).__name__}: {error_sentence(error, short=True)}"


def unknown_groups() -> list[Plugin]:
    """Return the entry points of unknown groups with this package's prefix."""
    unknown = sorted(group for group in entry_points().groups if group.startswith(PREFIX) and group not in GROUPS)
    return [
        Plugin(group, entry.name, entry.value, origin(entry), error=f"unknown group; {nearest(group, GROUPS)}")
        for group in unknown
        for entry in entries(group)
    ]


def plugins_view(installed: Iterable[Plugin]) -> View:
    """Return a table with a row per plugin."""
    view = View(box=None)
    for title in ("group", "plugin", "from", "entry point", "state"):
        view.add_column(title, overflow="fold")
    for plugin in installed:
        group = plugin.group.removeprefix(PREFIX)
        view.add_row(group, plugin.name, plugin.origin, plugin.target, "failed" if plugin.error else "ok")
    return view


def list_variants() -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each variant of each architecture, and errors of variants that cannot be read.

    Rows have the keys `architecture`, `model_type`, `variant`, `parameters` and `tasks`.
    """
    rows, sentences = list[dict[str, Any]](), []
    for name, architecture in architectures().items():
        try:
            counts = {variant: row.get("parameters", 0) for variant, row in architecture.variant_rows().items()}
        except Exception as error:  # a third-party file may be invalid in any way
            sentences.append(f"the variants of '{name}' cannot be read: {error_sentence(error, short=True)}")
            continue
        for variant, count in counts.items():
            row = {"architecture": name, "model_type": architecture.config.model_type}
            rows.append(row | {"variant": variant, "parameters": count, "tasks": supported_tasks(architecture)})
    return rows, sentences


def supported_tasks(architecture: Architecture) -> list[str]:
    """Return the tasks that an architecture has a model for."""
    return [task for task, auto_class in AUTO_CLASSES.items() if auto_class in architecture.models]


def models_view(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of the rows of `list_variants`, and below it one of the tasks of each architecture."""
    variants = View("architecture", "model_type", "variant", "parameters", box=None)
    for row in rows:
        variants.add_row(row["architecture"], row["model_type"], row["variant"], f"{row['parameters']:,}")
    tasks = View("architecture", "tasks", box=None)
    for name, of_each in {row["architecture"]: row["tasks"] for row in rows}.items():
        tasks.add_row(name, ", ".join(of_each))
    return Group(variants, "", tasks)


def plugin_rows(installed: Iterable[Plugin]) -> list[dict[str, Any]]:
    """Convert plugins to JSON values; `error` is None if a plugin loads."""
    return [
        {
            "group": plugin.group.removeprefix(PREFIX),
            "name": plugin.name,
            "origin": plugin.origin,
            "entry_point": plugin.target,
            "error": plugin.error,
        }
        for plugin in installed
    ]


__all__ = ["GROUPS", "list_plugins", "list_variants", "models_view", "plugin_rows", "plugins_view"]
