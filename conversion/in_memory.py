"""Convert pretrained checkpoints of other formats in memory, when a model of this package is loaded from them."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers import CONFIG_MAPPING
from transformers.utils.hub import extract_commit_hash

from hf_vit_seg.models.layers import hub_options
from hf_vit_seg.plugins import architectures
from hf_vit_seg.provenance import Provenance
from hf_vit_seg.records import shorten

from .checkpoint_readers import CONFIG, SUFFIXES, Checkpoint, read_checkpoint, read_json, read_shapes, weight_file
from .convert import Conversion, convert_in_memory, source_provenance
from .errors import ConversionError, UnsupportedCheckpoint
from .files.download import download_file, is_repository, is_url, locate, names_repository, repository_id
from .registry import all_sources, full_name, recognize

ADAPTER = "adapter_config.json"

logger = logging.getLogger(__name__)


def convert_pretrained(name: str | Path, **hub: Any) -> Conversion | None:
    """Convert a checkpoint in another format in memory.

    None if the checkpoint has the format of this package, or if only transformers has a class for it. `hub` has the
    options of `from_pretrained` that locate files. Raises ConversionError for a checkpoint that is damaged, or cannot
    be found.
    """
    hub = hub_options(hub)
    config = find_config(name, **hub)
    if config is None:
        check_location(name, **hub)
        return None
    if not is_convertible(config):
        return None
    try:
        converted = convert_in_memory(name, **hub)
    except UnsupportedCheckpoint as error:
        if not is_loadable(config):
            raise
        logger.warning("%s is not converted, transformers' class is used: %s", name, error)
        return None
    converted.model.name_or_path = converted.model.config.name_or_path = str(name)  # as from_pretrained sets them
    return converted


def pin_revision(name: str | Path, **hub: Any) -> dict[str, Any]:
    """Return the options of a checkpoint's files with the commit of a repository, so that all are of one revision.

    Raises ConversionError for a repository that cannot be read.
    """
    commit = find_commit(name, **hub)
    return hub if commit is None else hub | {"revision": commit}


def find_commit(name: str | Path, **hub: Any) -> str | None:
    """Return the commit of a repository on the Hub, or of its files in the cache; None for paths, or if unknown.

    Raises ConversionError for a repository that cannot be read.
    """
    if not names_repository(name):
        return None
    for file in (CONFIG, ADAPTER):
        if (path := download_file(str(name), file, **hub)) is not None:
            return extract_commit_hash(str(path), None)
    if hub.get("local_files_only"):
        return None
    try:
        return HfApi().model_info(str(name), revision=hub.get("revision"), token=hub.get("token")).sha
    except (OSError, HTTPError):  # no connection
        return None


def find_classes(name: str | Path, **hub: Any) -> list[str]:
    """Return the classes that a checkpoint's config.json names, or else the Auto class of its format; empty if unknown.

    Raises ConversionError for a checkpoint of an unknown format.
    """
    hub = hub_options(hub)
    config = find_config(name, **hub)
    if config is None or not is_convertible(config):
        return []
    saved = config.get("architectures")
    if isinstance(saved, list) and saved:
        return [str(name) for name in saved]
    try:
        return [recognize(read_outline(name, **hub), None).form.model]
    except UnsupportedCheckpoint:
        if not is_loadable(config):
            raise
        return ["AutoModelForImageClassification"] if config.get("num_classes") else []  # a timm checkpoint


def read_outline(name: str | Path, **hub: Any) -> Checkpoint:
    """Read a checkpoint without its data, if its format allows it, to recognize the format."""
    path = locate(name, **hub)
    checkpoint = read_shapes(path) or read_checkpoint(path)
    return replace(checkpoint, repository=repository_id(name))


def pretrained_provenance(name: str | Path) -> Provenance:
    """Return the provenance of a checkpoint in another format, from its card or its source; empty if it has none."""
    try:
        config = find_config(name)
        if config is None or not is_convertible(config):
            return Provenance()
        checkpoint = read_outline(name)
        return source_provenance(recognize(checkpoint, None), checkpoint)
    except ConversionError:
        return Provenance()


def find_config(name: str | Path, **hub: Any) -> Mapping[str, Any] | None:
    """Return the content of the config.json of a path, a Hub id or an address.

    It is empty for single files, and for directories and repositories without one; None for directories without
    weights, for adapters, and for paths that do not exist. Raises ConversionError for an invalid file.
    """
    path = Path(name).expanduser()
    if is_url(str(name)):
        return {}
    if path.is_file():
        return read_config(path.parent / CONFIG)
    if path.is_dir():
        folder = path / hub.get("subfolder", "")
        if (folder / CONFIG).exists():
            return read_config(folder / CONFIG)
        has_weights = folder.is_dir() and any(file.suffix in SUFFIXES for file in folder.iterdir())
        return {} if has_weights and not (folder / ADAPTER).exists() else None
    if not is_repository(str(name)):
        return None
    if (file := download_file(str(name), CONFIG, **hub)) is not None:
        return read_config(file)
    return None if download_file(str(name), ADAPTER, **hub) is not None else {}


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.json; empty if the file does not exist. Raises ConversionError if it is invalid."""
    config = read_json(file)
    if not isinstance(config.get("model_type"), str | None):
        raise ConversionError(f"'{file}': model_type is {shorten(config['model_type'])}, expected a name; correct it")
    if not isinstance(config.get("auto_map", {}), dict):
        raise ConversionError(f"'{file}': auto_map is {shorten(config['auto_map'])}, expected an object; remove it")
    return config


def check_location(name: str | Path, **hub: Any) -> None:
    """Raise ConversionError for a path that does not exist, and for a directory with neither weights nor an adapter."""
    folder = locate(name, **hub) if not is_repository(str(name)) or Path(name).is_dir() else None
    if folder is not None and not folder.is_dir():
        raise ConversionError(f"'{folder}' does not exist; pass the path of a checkpoint file or directory")
    if folder is not None and not (folder / ADAPTER).exists():
        weight_file(folder)


def is_convertible(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json may belong to a checkpoint of a source: of transformers or timm, or without a type.

    Not those of quantized checkpoints, which transformers loads.
    """
    if config.get("quantization_config"):
        return False
    model_type = config.get("model_type")
    if model_type in {architecture.config.model_type for architecture in architectures().values()}:
        return False
    return model_type is None or model_type in {name for _, source in all_sources() for name in source.model_types}


def is_loadable(config: Mapping[str, Any]) -> bool:
    """Return whether transformers has a class for a config.json: of one of its model types, or of timm."""
    return config.get("model_type") in CONFIG_MAPPING or "architecture" in config


def describe_conversion(name: str | Path, converted: Conversion) -> str:
    """Describe a conversion in one line."""
    detected, report = converted.detected, converted.report
    facts = [f"{report.mapped} tensors"]
    if report.dropped:
        reasons = ", ".join(dict.fromkeys(reason for _, reason in report.dropped))
        facts.append(f"{len(report.dropped)} not used ({reasons})")
    if detected.form.model != "AutoModel":
        facts.append(report.labels)
    if converted.assumed_fields:
        facts.append(f"{converted.assumed_fields} (hf-vit-seg convert sets other values)")
    if converted.assumes_preprocessing:
        facts.append("preprocessing assumed")
    return (
        f"{name}: converted in memory from {full_name(detected.architecture, detected.source)} to "
        f"{type(converted.model).__name__}, {', '.join(facts)}, license {converted.provenance.license or 'unknown'}"
    )


__all__ = [
    "ADAPTER",
    "convert_pretrained",
    "describe_conversion",
    "find_classes",
    "find_commit",
    "find_config",
    "is_convertible",
    "pin_revision",
    "pretrained_provenance",
]
