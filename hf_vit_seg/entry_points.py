"""Load entry points of other packages one by one, so that a broken one does not affect the others.

If several entry points have the same name, the first is used: this package's own, then in the order of their names and
targets.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hf_vit_seg.data.sources.source import Source
    from hf_vit_seg.data.transforms.context import TransformContext
    from hf_vit_seg.export.graphs import Geometry
    from hf_vit_seg.inference.runtimes import Program
    from hf_vit_seg.training.losses.terms import LossTerm

PACKAGE = "hf_vit_seg"
PREFIX = PACKAGE + "."  # prefix of every group

logger = logging.getLogger(__name__)


class HeadClass(Protocol):
    """A segmentation head: a subclass of torch.nn.Module with this constructor.

    `in_channels` are the channels C_i of the feature maps, the finest first. Further parameters need defaults;
    `hidden_size`, `num_layers`, `norm`, `norm_eps`, `dropout_prob` and `hidden_act` get the values of the config
    (`decode_head_hidden_size`, ...) where it sets them. `forward` maps a list of feature maps (B, C_i, H_i, W_i) to
    logits (B, num_labels, H, W). The file of the class imports only torch and siblings: it is saved with models.
    """

    def __call__(self, in_channels: Sequence[int], num_labels: int) -> "nn.Module":
        """Build the head."""
        ...


class LossRecord(Protocol):
    """A loss: a subclass of `Loss`, whose fields are the settings of the recipe."""

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None) -> "LossTerm":
        """Build the term for a model with `num_classes` outputs; labels with `ignore_index` do not contribute."""
        ...


class DataSourceRecord(Protocol):
    """A data source: a subclass of `SourceRecord`, whose fields are the settings of the recipe."""

    def open(self, task: str, channels: int) -> "Source":
        """Find the samples, without reading images."""
        ...


class TransformRecord(Protocol):
    """A transform: a subclass of `TransformOptions`, whose fields are the settings of the recipe."""

    def build(self, context: "TransformContext") -> Callable[..., Any]:
        """Build a callable from an image and a target to an image and a target, as in torchvision.transforms.v2."""
        ...


class BatchTransformRecord(Protocol):
    """A batch transform: a subclass of `BatchOptions`, whose fields are the settings of the recipe."""

    def build(self, num_classes: int) -> Callable[..., Any]:
        """Build a callable from images (B, C, H, W) and classes (B,) to images and soft targets (B, num_classes)."""
        ...


class ExporterRecord(Protocol):
    """An export format: a subclass of `Exporter`, whose fields are the options of `--set`."""

    file: ClassVar[str]  # the name of the file, such as "model.onnx"

    def write(self, graph: "nn.Module", geometry: "Geometry", dtype: "torch.dtype", path: Path) -> None:
        """Write the graph with weights of `dtype` to `path`."""
        ...


class RuntimeFunction(Protocol):
    """A runtime: a function that loads the file of an export format."""

    def __call__(self, path: Path) -> "Program":
        """Load a file."""
        ...


@dataclass(frozen=True)
class Plugin:
    """An entry point with its value, or the error of loading it."""

    group: str
    name: str
    target: str
    origin: str
    value: Any = None
    error: str | None = None


def origin(entry: EntryPoint) -> str:
    """Return the name and version of the package that defines an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"


def entries(*groups: str) -> list[EntryPoint]:
    """Return the entry points of some groups, this package's own first."""
    installed = entry_points()
    matches = [entry for group in groups for entry in installed.select(group=group)]
    # An editable install can be listed twice.
    unique = {(origin(entry), entry.group, entry.name, entry.value): entry for entry in matches}
    return sorted(unique.values(), key=lambda e: (e.dist is None or e.dist.name != PACKAGE, e.name, e.value))


def installed_versions() -> dict[str, Path]:
    """Return the installed versions of this package and where they are, the first of Python's path first."""
    versions: dict[str, Path] = {}
    for distribution in distributions(name=PACKAGE):  # an editable install can be listed twice
        versions.setdefault(distribution.version, Path(str(distribution.locate_file(""))))
    return versions


def load_entry(entry: EntryPoint, accept: Callable[[Any], None]) -> Plugin:
    """Load one entry point and check its value with `accept`; exceptions of both are stored as the error."""
    try:
        value = entry.load()
        accept(value)
    except (Exception, SystemExit) as error:  # third-party imports may raise anything
        return Plugin(entry.group, entry.name, entry.value, origin(entry), error=f"{type(error).__name__}: {error}")
    return Plugin(entry.group, entry.name, entry.value, origin(entry), value)


def load_all(group: str, accept: Callable[[Any], None], built_in: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Load every entry point of a group; those with a duplicate or `built_in` name get an error instead."""
    owners = dict.fromkeys(built_in, PACKAGE)
    plugins = []
    for entry in entries(group):
        if entry.name in owners:
            reason = f"the name is already used by {owners[entry.name]}; choose another"
            plugins.append(Plugin(group, entry.name, entry.value, origin(entry), error=reason))
            continue
        owners[entry.name] = origin(entry)
        plugins.append(load_entry(entry, accept))
    return tuple(plugins)


def entries_by_name(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, not loaded."""
    return {entry.name: entry for entry in reversed(entries(group))}


def qualified_name(kind: type) -> str:
    """Return "module.Class", which a reload of the module does not change."""
    return f"{kind.__module__}.{kind.__qualname__}"


def subclass_check(kind: type) -> Callable[[Any], None]:
    """Return a check that accepts only subclasses of `kind`; TypeError for other values."""

    def accept(value: Any) -> None:
        if not (isinstance(value, type) and issubclass(value, kind)):
            found = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"expected a subclass of {kind.__module__}.{kind.__name__}, found {found}")

    return accept


def check_contract(value: Any, contract: type) -> None:
    """Raise TypeError if a class or function lacks an attribute or method of a `contract` (a Protocol)."""
    name = getattr(value, "__name__", type(value).__name__)
    for attribute in getattr(contract, "__annotations__", {}):
        if not hasattr(value, attribute):
            raise TypeError(f"{name} has no attribute `{attribute}`, which {contract.__name__} requires")
    for method, expected in vars(contract).items():
        if method == "__call__":
            check_parameters(value, expected, name)
        elif callable(expected) and not method.startswith("_"):
            check_method(value, method, expected, contract)


def check_method(value: type, method: str, expected: Any, contract: type) -> None:
    """Raise TypeError if a class does not define a method, or defines it with other parameters."""
    owner = next((base for base in value.__mro__ if method in vars(base)), None)
    if owner is None or (owner.__module__.startswith(PREFIX) and is_abstract(vars(owner)[method])):
        raise TypeError(f"{value.__name__} does not define `{method}{describe_call(expected)}` of {contract.__name__}")
    check_parameters(getattr(value, method), expected, f"{value.__name__}.{method}", skip=1)


def is_abstract(function: Any) -> bool:
    """Return whether a function only raises NotImplementedError."""
    return "NotImplementedError" in getattr(getattr(function, "__code__", None), "co_names", ())


def check_parameters(function: Any, expected: Any, name: str, skip: int = 0) -> None:
    """Raise TypeError if a function cannot be called with the parameters of another, whose first is self."""
    try:
        own = signature(function)
    except (TypeError, ValueError):
        return  # a compiled function, which cannot be inspected
    expected_parameters = list(signature(expected).parameters.values())[1:]
    try:
        own.bind(*[None] * skip, *[None] * len(expected_parameters))
    except TypeError as error:
        raise TypeError(f"{name}{own} must be callable as {name}{describe_call(expected)}: {error}") from None
    for parameter in own.parameters.values():
        if parameter.kind is Parameter.KEYWORD_ONLY and parameter.default is Parameter.empty:
            raise TypeError(f"{name}{own} must be callable as {name}{describe_call(expected)}")


def describe_call(expected: Any) -> str:
    """Format the parameters of a method of a contract, without self and annotations."""
    return f"({', '.join(list(signature(expected).parameters)[1:])})"


def implements(kind: type, contract: type) -> Callable[[Any], None]:
    """Return a check that raises TypeError except for subclasses of `kind` that implement a contract."""

    def accept(value: Any) -> None:
        subclass_check(kind)(value)
        check_contract(value, contract)

    return accept


__all__ = [
    "PACKAGE",
    "PREFIX",
    "BatchTransformRecord",
    "DataSourceRecord",
    "ExporterRecord",
    "HeadClass",
    "LossRecord",
    "Plugin",
    "RuntimeFunction",
    "TransformRecord",
    "check_contract",
    "entries",
    "entries_by_name",
    "implements",
    "installed_versions",
    "load_all",
    "load_entry",
    "origin",
    "qualified_name",
    "subclass_check",
]
