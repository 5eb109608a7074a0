"""A model directory to push, written by `save_pretrained`, `convert` or a training run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.conversion.in_memory import find_config
from hf_vit_seg.entry_points import PACKAGE, Plugin
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.loading.errors import INVALID_FILES
from hf_vit_seg.loading.image_processors import open_processor
from hf_vit_seg.local_paths import is_local_path
from hf_vit_seg.models.layers import OBJECT_HEADS, SEMANTIC_MODELS, object_auto_classes
from hf_vit_seg.models.mask_classification import UniversalSegmentation
from hf_vit_seg.plugins import heads, plugins
from hf_vit_seg.provenance import Provenance, card_metadata, provenance_from
from hf_vit_seg.remote_code import model_code, source_file
from hf_vit_seg.text_files import read_json_object, read_text
from hf_vit_seg.training.checkpoints.run_directory import RECIPE, SAMPLES, RunDirectory
from hf_vit_seg.training.recipe.files import publishable_recipe_text
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.metrics_report import EVALUATION, MetricsReport, read_report
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.run_log import FILE as LOG

from .heads import model_classes
from .repository import PushError

ADAPTER, PROCESSOR = "adapter_config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SPLITS = ("test", "validation", "train")  # the order of reports
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of BatchNorm
BACKENDS = {"timm_backbone": "timm", "timm_wrapper": "timm"}  # required packages by `model_type`


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory; `run` is the directory of its training run, if any."""

    path: Path
    run: Path | None

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's config. PushError if its architecture is not installed."""
        try:
            find_config(self.path)  # refuses fields whose types transformers does not check
            return AutoConfig.from_pretrained(self.path)
        except INVALID_FILES as error:
            raise PushError(
                f"{self.path}: the architecture of config.json is not installed, see hf-vit-seg models: "
                f"{error_sentence(error, short=True)}"
            ) from error

    @cached_property
    def auto_class(self) -> str:
        """The Auto class that loads the model."""
        names = self.config.architectures or []
        model_classes_by_name = model_classes(self.config)
        for auto_class, kind in model_classes_by_name.items():
            if kind.__name__ in names:
                return auto_class
        raise PushError(
            f"{self.path}: config.json has the class {' or '.join(names) or 'None'}, expected one of "
            f"{', '.join(kind.__name__ for kind in model_classes_by_name.values())}"
        )

    @cached_property
    def processor(self) -> BaseImageProcessor | None:
        """The image processor, or None. PushError if it cannot be loaded."""
        if not (self.path / PROCESSOR).is_file():
            return None
        try:
            return open_processor(self.path)
        except INVALID_FILES as error:
            raise PushError(f"{self.path / PROCESSOR} cannot be loaded: {error_sentence(error, short=True)}") from error

    @cached_property
    def provenance(self) -> Provenance:
        """The provenance of the weights, from the card."""
        return provenance_from(card_metadata(self.path))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe of the training run, or None."""
        return load_recipe(self.path / RECIPE) if (self.path / RECIPE).is_file() else None

    @cached_property
    def recipe_text(self) -> str | None:
        """The text of the recipe without local paths."""
        if self.recipe is None:
            return None
        return publishable_recipe_text(read_text(self.path / RECIPE))

    @cached_property
    def evaluations(self) -> list[Path]:
        """Folders with evaluations: of training, of its run on the test split, and of `evaluate`."""
        run = [] if self.run is None else [RunDirectory(self.run).test]
        folders = [self.path, *run, *sorted(self.path.glob(f"{EVALUATION}*"))]
        return [folder for folder in folders if (folder / METRICS).is_file()]

    @cached_property
    def reports(self) -> list[MetricsReport]:
        """The evaluation reports, that of the test split first; for the same data and protocol only the last one."""
        reports = [with_hub_data(read_report(folder / METRICS)) for folder in self.evaluations]
        last = {(report.split, report.dataset, report.dataset_split, report.protocol): report for report in reports}
        return sorted(last.values(), key=lambda report: SPLITS.index(report.split))

    @property
    def details(self) -> dict[str, Any]:
        """The facts of the run from its model report: data, time, parameters, and versions of packages."""
        reports = (read_report(folder / METRICS) for folder in self.evaluations[:1] if folder == self.path)
        return dict(next((report.details for report in reports), {}))

    @cached_property
    def samples(self) -> list[Path]:
        """Figures of predictions on samples, from evaluations or from the run."""
        for folder in [*self.evaluations, *([] if self.run is None else [self.run])]:
            if samples := sorted((folder / SAMPLES).glob("*.png")):
                return samples
        return []

    @cached_property
    def weights(self) -> list[Path]:
        """The weight files that from_pretrained reads: one file, or those in the index."""
        if (self.path / WEIGHTS).is_file() or not (self.path / INDEX).is_file():
            return [self.path / WEIGHTS]
        shards = read_json_object(self.path / INDEX).get("weight_map", {}).values()
        return [self.path / name for name in sorted(set(shards))]

    @cached_property
    def tensors(self) -> dict[str, int]:
        """The number of elements of each tensor. PushError for an incomplete file."""
        try:
            return {name: length for file in self.weights for name, length in lengths(file)}
        except SafetensorError as error:
            raise PushError(f"{self.path}: the weights are truncated or not safetensors: {error}") from error

    @property
    def parameters(self) -> int:
        """The number of parameters, without BatchNorm statistics."""
        return sum(length for name, length in self.tensors.items() if name.rpartition(".")[2] not in STATISTICS)

    @property
    def model_class(self) -> type:
        """The class to publish: for models that predict objects, the one with semantic outputs."""
        kind = model_classes(self.config)[self.auto_class]
        predicts_objects = getattr(self.config, "decode_head", None) in OBJECT_HEADS
        return SEMANTIC_MODELS.get(kind, kind) if predicts_objects else kind

    @cached_property
    def code(self) -> list[Path]:
        """The code files for users without this package."""
        processor = [] if self.processor is None else [type(self.processor)]
        return model_code([type(self.config), self.model_class, *processor], self.path)

    @property
    def auto_map(self) -> dict[str, str]:
        """The map from Auto classes to classes in the code, including other classes in the same files."""
        kinds = {"AutoConfig": type(self.config), **model_classes(self.config)}
        if issubclass(self.model_class, UniversalSegmentation):
            kinds |= object_auto_classes(self.model_class)
        return {auto: reference(kind) for auto, kind in kinds.items() if self.is_copied(kind)}

    @property
    def processor_map(self) -> dict[str, dict[str, str]]:
        """The auto map of the image processor, with a class per backend.

        With a single class, pipelines of transformers (5.23) also require the code of a video processor.
        """
        kind = type(self.processor)
        architecture = None if self.plugin is None else self.plugin.value
        own_processors = (
            () if architecture is None else (architecture.image_processor, architecture.universal_image_processor)
        )
        kinds = next((classes for classes in own_processors if kind in classes.values()), {"torchvision": kind})
        copied = {backend: reference(each) for backend, each in kinds.items() if self.is_copied(each)}
        return {"AutoImageProcessor": copied} if copied else {}

    def is_copied(self, kind: type) -> bool:
        """Return whether the file of a class is part of the code."""
        return source_file(kind).name in {path.name for path in self.code}

    @cached_property
    def plugin(self) -> Plugin | None:
        """The plugin that provides the architecture; None if transformers does."""
        loaded = (plugin for plugin in plugins() if plugin.value is not None)
        return next((plugin for plugin in loaded if plugin.value.config is type(self.config)), None)

    @cached_property
    def head_plugin(self) -> Plugin | None:
        """The plugin that provides the segmentation head, if any."""
        name = getattr(self.config, "decode_head", None)
        return next((plugin for plugin in heads() if plugin.value is not None and plugin.name == name), None)

    @property
    def packages(self) -> list[str]:
        """The packages and versions that provide the architecture, or the code, and the head."""
        own = f"{PACKAGE} {version(PACKAGE)}" if self.code else None
        packages = [self.plugin.origin if self.plugin else own, self.head_plugin and self.head_plugin.origin]
        return list(dict.fromkeys(filter(None, packages)))

    @property
    def backends(self) -> list[str]:
        """Optional dependencies of transformers that the model needs."""
        configs = (self.config, getattr(self.config, "backbone_config", None))
        return [
            name for kind, name in BACKENDS.items() if any(getattr(each, "model_type", "") == kind for each in configs)
        ]

    @property
    def distributions(self) -> list[str]:
        """The packages that the model needs, except for transformers."""
        return [package.partition(" ")[0] for package in self.packages] + self.backends


def with_hub_data(report: MetricsReport) -> MetricsReport:
    """Remove the dataset from a report if it is a local folder."""
    return replace(report, dataset=None, dataset_split=None) if is_local_path(report.dataset or "") else report


def reference(kind: type) -> str:
    """Return the name of a class in an auto map."""
    return f"{source_file(kind).stem}.{kind.__name__}"


def lengths(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the names and numbers of elements of the tensors in a safetensors file."""
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (not a mapping)
            yield name, math.prod(tensors.get_slice(name).get_shape())


def model_directory(path: Path) -> ModelDirectory:
    """Open a model directory, or the best model of a run directory. PushError if there is no model."""
    path = path.resolve()
    if not path.is_dir():
        raise PushError(f"directory {path} does not exist")
    if (path / LOG).is_file() and not (path / "config.json").is_file():
        path = RunDirectory(path).model
    run = path.parent if (path.parent / LOG).is_file() and RunDirectory(path.parent).model == path else None
    model = ModelDirectory(path, run)
    if (path / ADAPTER).is_file():
        raise PushError(f"{path} contains LoRA adapters; merge them with model.lora.merge=true")
    missing = [file.name for file in (path / "config.json", *model.weights) if not file.is_file()]
    if missing or not model.tensors:
        raise PushError(
            f"{path} contains no model: missing {', '.join(missing) or 'tensors'}, expected config.json and {WEIGHTS}, "
            "or all files of its index"
        )
    return model


__all__ = ["PROCESSOR", "ModelDirectory", "model_directory"]
