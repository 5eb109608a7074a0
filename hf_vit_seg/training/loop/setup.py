"""Build all components of a run from the recipe."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import filterwarnings

import torch
from accelerate import Accelerator, DataLoaderConfiguration, InitProcessGroupKwargs
from accelerate.utils import (
    GradientAccumulationPlugin,
    disable_fsdp_ram_efficient_loading,
    set_seed,
)
from torch.utils.data import DataLoader
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.checks.check import require_valid_data
from hf_vit_seg.data.checks.report import SplitFacts
from hf_vit_seg.data.collation import Collator
from hf_vit_seg.data.datasets import RawDataset, Split, TrainingDataset, open_split
from hf_vit_seg.data.labels.segment_classes import PANOPTIC, SEGMENT_TASKS
from hf_vit_seg.data.sample_weights import rare_class_weights, read_weights
from hf_vit_seg.data.statistics import compute_statistics
from hf_vit_seg.data.stream import Draw, StreamSampler
from hf_vit_seg.data.transforms.pipeline import TransformContext, read_pipeline
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.inference.classifier import MULTI_LABEL, SINGLE_LABEL
from hf_vit_seg.keypoint_names import Pairs
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.main_process import on_main_process
from hf_vit_seg.training.checkpoints.resume import check_same_data, resume_notes
from hf_vit_seg.training.checkpoints.state import DataFingerprint, Manifest, data_fingerprint
from hf_vit_seg.training.evaluation.trial import extreme_samples, try_evaluation
from hf_vit_seg.training.losses.loss_registry import describe_losses
from hf_vit_seg.training.losses.objectives import OBJECTIVES, Batch, HeadObjective, Objective
from hf_vit_seg.training.model.building import PAIRS_FIELD, BuiltModel, build_model, output_names, prepare_for_training
from hf_vit_seg.training.model.freezing import ParameterCounts, count_parameters
from hf_vit_seg.training.model.normalization import convert_sync_batchnorm
from hf_vit_seg.training.model.processor import MEASURED, recipe_white
from hf_vit_seg.training.model.queries import recipe_queries
from hf_vit_seg.training.optimization.ema import WeightAverage
from hf_vit_seg.training.optimization.gathered_weights import SHARDING, check_average_is_not_sharded
from hf_vit_seg.training.optimization.mask_annealing import MaskAnnealing
from hf_vit_seg.training.optimization.parameter_groups import build_optimizer
from hf_vit_seg.training.optimization.schedules import build_schedule
from hf_vit_seg.training.recipe.keypoints import describe_pairs, describe_sigmas, flip_pairs
from hf_vit_seg.training.recipe.metric_names import check_metrics
from hf_vit_seg.training.recipe.paths import describe_data
from hf_vit_seg.training.recipe.schema import Recipe

from .batch_size_search import find_batch_size, parameters_without_gradient
from .signals import leave_signals_to_parent

TIMEOUT = timedelta(hours=2)  # for processes that wait while the main process checks the data


@dataclass(frozen=True, eq=False)
class Data:
    """The opened splits, and the weights of the training samples if they are not drawn equally often."""

    train: RawDataset
    validation: RawDataset | None
    test: RawDataset | None
    weights: Sequence[float] | None = None

    @cached_property
    def fingerprint(self) -> DataFingerprint:
        """The fingerprint of the training split."""
        return data_fingerprint(self.train, self.weights)

    def with_indices(self, indices: Mapping[Split, Sequence[int]]) -> "Data":
        """Return the splits with only these indices of their sources; others are unchanged."""
        splits: dict[str, Any] = {
            split: dataset.with_indices(indices[split])
            for split, dataset in self.evaluation_splits.items()
            if split in indices and dataset is not None
        }
        train = self.train.with_indices(indices["train"]) if "train" in indices else self.train
        return replace(self, train=train, **splits)

    @property
    def evaluation_splits(self) -> dict[Split, RawDataset | None]:
        """The splits of evaluations."""
        return {"validation": self.validation, "test": self.test}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of classes or keypoints."""
        return self.train.class_table.names


@dataclass(frozen=True, eq=False)
class TrainingComponents:
    """All components of a run. `recipe` is resolved; `scattered` is a copy of the model if weights are sharded."""

    recipe: Recipe
    accelerator: Accelerator
    data: Data
    model: Any
    processor: BaseImageProcessor
    objective: Objective
    optimizer: Any
    schedule: Any
    annealing: MaskAnnealing | None
    loader: Any
    average: WeightAverage | None
    scattered: Any
    steps: int
    parameters: ParameterCounts
    notes: list[str]
    skipped: list[dict[str, str]]  # unusable samples

    @property
    def samples_per_step(self) -> int:
        """The number of samples that all processes draw for one step."""
        return samples_per_step(self.recipe, self.accelerator)

    def draws(self, step: int) -> list[Draw]:
        """Return the draws of a step (from 1) on all processes."""
        size, length = self.samples_per_step, len(self.data.train)
        sampler = StreamSampler(length, self.recipe.seed, size, (step - 1) * size, step * size, self.data.weights)
        return list(sampler.draws())


def build_accelerator(recipe: Recipe, directory: Path) -> Accelerator:
    """Create the Accelerator from its own configuration and the recipe."""
    precision = recipe.loop.precision
    # For depthwise kernels, with a second dimension of 1, the strides differ but the layout does not.
    filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    disable_fsdp_ram_efficient_loading()  # it does not support BatchNorm's buffers
    settings: dict[str, Any] = dict(
        mixed_precision=None if precision == "default" else precision,
        # The stream ends with a complete window, so accelerate need not detect the end of an epoch.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=recipe.loop.accumulation, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        step_scheduler_with_optimizer=False,  # one step of the schedule is one of the optimizer on all processes
        project_dir=str(directory),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    try:
        accelerator = Accelerator(**settings)
    except ValueError as error:  # a precision that the device does not support
        raise RecordError(f"loop.precision={precision} is not supported: {error_sentence(error)}") from error
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise RecordError(  # accelerate would train in float32
            f"loop.precision={precision}: fp16 is not supported on a CPU, expected bf16 or no"
            + (" (fp16 is from accelerate's configuration)" if precision == "default" else "")
        )
    return accelerator


def prepare_training(
    recipe: Recipe, accelerator: Accelerator, facts: Path, start: Manifest | None
) -> TrainingComponents:
    """Open and check the data, and build and prepare model, optimizer and loader; called by all processes.

    `facts` is the file that caches the data checks.
    """
    check_sharding(recipe, accelerator)
    seed_run(recipe)
    data, checked = open_usable_data(recipe, accelerator, facts, start)
    built = build_model_for_data(recipe, accelerator, data)
    if start is None:
        try_evaluation_once(recipe, accelerator, data, checked, built)
    model = prepare_for_training(built.model, recipe.model)
    objective = build_objective(recipe, data.train, checked.counts, built.model)
    annealing = MaskAnnealing.of(built.model, recipe.schedule)
    dataset, collator = training_set(recipe, data, built)
    sample = collator([dataset[Draw(0, 0, 0)]])
    notes = setup_notes(recipe, data, checked, built, objective)
    notes += freeze_unused(accelerator, model, objective, sample)
    parameters = count_parameters(model, recipe.model.freeze)
    notes += parameters.notes()
    size = choose_batch_size(recipe, accelerator, model, objective, sample, len(dataset))
    recipe = resolve_recipe(recipe, accelerator, size)
    notes += resume_notes(start, recipe, accelerator.num_processes) if start else []
    steps = step_count(recipe, accelerator, len(dataset))
    if recipe.model.norm == "sync":
        model = convert_sync_batchnorm(model)
    scattered = copy.deepcopy(model) if accelerator.distributed_type in SHARDING else None
    optimizer = build_optimizer(model, recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.schedule, steps)
    loader = stream_loader(recipe, accelerator, dataset, collator, start.step if start else 0, steps, data.weights)
    configure_deepspeed(accelerator, recipe)
    model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)
    set_seed(recipe.seed, device_specific=True)  # different dropout on each process
    return TrainingComponents(
        recipe=recipe,
        accelerator=accelerator,
        data=data,
        model=model,
        processor=built.processor,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        annealing=annealing,
        loader=loader,
        average=WeightAverage(model, recipe.loop.ema) if recipe.loop.ema else None,
        scattered=scattered,
        steps=steps,
        parameters=parameters,
        notes=notes,
        skipped=checked.skipped,
    )


def check_sharding(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raise RecordError for ways to divide the weights among processes that the recipe or the setup do not support."""
    check_average_is_not_sharded(recipe, accelerator)
    check_zero_stage(accelerator)


def seed_run(recipe: Recipe) -> None:
    """Seed the global random states, and select deterministic kernels if the recipe asks for them."""
    if recipe.loop.deterministic:
        torch.use_deterministic_algorithms(True)
    set_seed(recipe.seed)


def open_usable_data(
    recipe: Recipe, accelerator: Accelerator, facts: Path, start: Manifest | None
) -> "tuple[Data, CheckedData]":
    """Open the splits without their unusable samples, and return the results of the data check.

    BadDataError for bad data, CheckpointError if the run to resume was trained on other data.
    """
    data = open_data(recipe)
    checked = on_main_process(accelerator, lambda: check_data(recipe, data, facts))
    data = replace(data.with_indices(checked.indices), weights=checked.weights)
    if start is not None:
        check_same_data(start, data.fingerprint)
    return data, checked


def try_evaluation_once(
    recipe: Recipe, accelerator: Accelerator, data: Data, checked: "CheckedData", built: BuiltModel
) -> None:
    """Evaluate the untrained model on its largest samples, so that a failure ends the run before it has begun."""

    def run() -> None:
        splits = data.evaluation_splits
        try_evaluation(recipe, built.model, built.processor, accelerator, checked.extremes, splits)

    on_main_process(accelerator, run)


def setup_notes(
    recipe: Recipe, data: Data, checked: "CheckedData", built: BuiltModel, objective: Objective
) -> list[str]:
    """Describe the data, the model and the losses, for the log."""
    notes = [*describe_data(recipe.data.model_dump()), *checked.warnings, *built.notes, *loss_notes(recipe, objective)]
    return [*notes, *keypoint_notes(recipe, built.model, data.names)]


def open_data(recipe: Recipe) -> Data:
    """Open the splits of a run.

    RecordError if a requested evaluation lacks data or cannot compute its metric, or a loss does not fit the classes.
    """
    train, validation = open_split(recipe, "train"), open_split(recipe, "validation")
    assert train is not None  # checked by the record
    if validation is None and (recipe.loop.evaluate_every or recipe.loop.early_stop):
        raise RecordError(
            "loop.evaluate_every and loop.early_stop need a validation split; set data.validation or "
            "data.validation_share"
        )
    if validation is not None or recipe.data.test is not None:
        check_metrics(recipe, train.class_table.names)
    build_objective(recipe, train, [1] * len(train.class_table.names))
    return Data(train, validation, open_split(recipe, "test"))


def build_objective(recipe: Recipe, train: RawDataset, counts: list[int], model: Any = None) -> Objective:
    """Build the training objective; `counts` is the frequency of each class. Without a model, check the recipe."""
    outputs, ignored = len(output_names(recipe, train.class_table.names)), train.class_table.ignore_index
    return OBJECTIVES[recipe.task](recipe, outputs, ignored, counts if outputs > 1 else None, model)


@dataclass(frozen=True)
class CheckedData:
    """The results of the data check.

    `counts` are the frequencies of the classes in the training split (pixels, images), `extremes` the positions of the
    samples of the trial evaluation. `indices` are the source's indices of the usable samples of each split that has
    `skipped` samples, and `weights` those of the training samples.
    """

    counts: list[int]
    warnings: list[str]
    extremes: dict[Split, list[int]]
    indices: dict[Split, list[int]]
    skipped: list[dict[str, str]]
    weights: list[float] | None


def check_data(recipe: Recipe, data: Data, facts: Path) -> CheckedData:
    """Check all splits. BadDataError for bad data."""
    report = require_valid_data(recipe, {"train": data.train, **data.evaluation_splits}, facts, progress=True)
    report = replace(report, queries=recipe_queries(recipe))
    indices = {split: list(part.dataset.indices) for split, part in report.splits.items() if part.skipped}
    extremes: dict[Split, list[int]] = {}
    for split, whole in data.evaluation_splits.items():
        if whole is not None:
            part, places = report.splits[split], indices.get(split, whole.indices)
            extremes[split] = [places.index(part.dataset.indices[index]) for index in extreme_samples(part.facts)]
    skipped = [sample for part in report.splits.values() for sample in part.skipped_samples]
    weights = sample_weights(recipe, report.splits["train"])
    return CheckedData(report.class_counts("train"), report.warnings, extremes, indices, skipped, weights)


def sample_weights(recipe: Recipe, part: SplitFacts) -> list[float] | None:
    """Compute the weights of the training samples, None without `data.sampling`."""
    sampling = recipe.data.sampling
    if sampling is None:
        return None
    if recipe.data.check is not None:
        raise RecordError("data.sampling requires the facts of all samples: remove data.check")
    if sampling.file is not None:
        names = [part.dataset.name(index) for index in range(len(part.dataset))]
        return read_weights(Path(sampling.file), names).tolist()
    if recipe.task == "pose":
        raise RecordError("data.sampling: rare_classes supports segmentation and classification; use weights")
    return rare_class_weights(part, sampling.temperature).tolist()


def build_model_for_data(recipe: Recipe, accelerator: Accelerator, data: Data) -> BuiltModel:
    """Build the model and its image processor, with statistics of the training images if the recipe needs them."""
    table, statistics = data.train.class_table, None
    if MEASURED in recipe.processor.values():
        images = range(len(data.train))
        white = recipe_white(recipe)
        statistics = on_main_process(accelerator, lambda: compute_statistics(map(data.train.read, images), white))
    built = build_model(recipe, table.names, table.ignore_index, recipe.data.channels, table.palette, statistics)
    if recipe.task in SEGMENT_TASKS:  # also replaces the classes of the initial model
        fused = sorted(table.stuff) if recipe.task == PANOPTIC else None
        built.processor.label_ids_to_fuse = fused  # pyright: ignore[reportAttributeAccessIssue]
    if recipe.task == "classification":
        built.model.config.problem_type = MULTI_LABEL if recipe.data.multi_label else SINGLE_LABEL
    return built


def training_set(recipe: Recipe, data: Data, built: BuiltModel) -> tuple[TrainingDataset, Collator]:
    """Return the training split with its transforms, and the collator."""
    ignored = data.train.class_table.ignore_index
    pairs = model_flip_pairs(recipe, built.model, data.names)
    context = TransformContext.from_processor(built.processor, recipe.task, ignored, pairs)
    data.train.use_context(context)
    pipeline = read_pipeline(recipe.transforms, context)
    collator = Collator(
        built.processor,
        recipe.task,
        recipe.batch_transforms,
        len(data.names),
        recipe.seed,
        segment_ids=getattr(built.model, "needs_segment_ids", False),
    )
    return TrainingDataset(data.train, pipeline, recipe.seed), collator


def model_flip_pairs(recipe: Recipe, model: Any, names: Sequence[str]) -> Pairs | None:
    """Return the keypoints that a flip swaps: those of the model's config, if it has them; None if unknown."""
    if recipe.task != "pose":
        return None
    stated = flip_pairs(recipe, names)
    pairs = getattr(model.config, PAIRS_FIELD, stated)
    return tuple((left, right) for left, right in pairs) if pairs else stated


def keypoint_notes(recipe: Recipe, model: Any, names: Sequence[str]) -> list[str]:
    """Describe the sigmas and flip pairs of keypoints, for the log."""
    if recipe.task != "pose":
        return []
    pairs = model_flip_pairs(recipe, model, names)
    sentences = [f"keypoints are scored with {describe_sigmas(recipe, names)}"]
    return sentences if pairs is None else [*sentences, describe_pairs(recipe, names, pairs)]


def loss_notes(recipe: Recipe, objective: Objective) -> list[str]:
    """Describe the losses, for the log."""
    if isinstance(objective, HeadObjective):
        return [f"loss: that of the head '{objective.model.config.decode_head}'"]
    return [f"loss: {describe_losses(recipe.loss)}"] if recipe.loss else []


def freeze_unused(accelerator: Accelerator, model: Any, objective: Objective, sample: Batch) -> list[str]:
    """Freeze parameters that get no gradient, because DDP would wait for it; return a note for the log."""
    if accelerator.num_processes == 1:
        return []
    names = parameters_without_gradient(model, objective, sample)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return [f"{len(names)} parameters, such as {names[0]}, get no gradient and are frozen"] if names else []


def choose_batch_size(
    recipe: Recipe, accelerator: Accelerator, model: Any, objective: Objective, sample: Batch, max_size: int
) -> int:
    """Return the recipe's batch size, or the largest up to `max_size` that fits on every process."""
    if recipe.loop.batch_size != "auto":
        return recipe.loop.batch_size
    autocast: Any = accelerator.autocast
    fitting = find_batch_size(model, objective, sample, accelerator.device, autocast, max_size)
    sizes: Any = accelerator.gather(torch.tensor([fitting], device=accelerator.device))
    return int(sizes.min())


def resolve_recipe(recipe: Recipe, accelerator: Accelerator, batch_size: int) -> Recipe:
    """Return the recipe with the batch size and precision of this run."""
    settled = {"batch_size": batch_size, "precision": accelerator.mixed_precision}
    return recipe.model_copy(update={"loop": recipe.loop.model_copy(update=settled)})


def samples_per_step(recipe: Recipe, accelerator: Accelerator) -> int:
    """Return the number of samples that all processes draw for one optimizer step."""
    assert recipe.loop.batch_size != "auto"
    return recipe.loop.batch_size * recipe.loop.accumulation * accelerator.num_processes


def step_count(recipe: Recipe, accelerator: Accelerator, length: int) -> int:
    """Return the number of steps; epochs over `length` samples are rounded up to a whole step."""
    if recipe.loop.steps is not None:
        return recipe.loop.steps
    assert recipe.loop.epochs is not None
    return math.ceil(recipe.loop.epochs * length / samples_per_step(recipe, accelerator))


def stream_loader(
    recipe: Recipe,
    accelerator: Accelerator,
    dataset: TrainingDataset,
    collator: Collator,
    start: int,
    steps: int,
    weights: Sequence[float] | None,
) -> DataLoader[Any]:
    """Return a loader of all processes' batches after step `start`; accelerate distributes these in turn."""
    assert recipe.loop.batch_size != "auto"
    dataset.raw.preload()
    each = samples_per_step(recipe, accelerator)
    sampler = StreamSampler(len(dataset), recipe.seed, recipe.loop.batch_size, start * each, steps * each, weights)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=recipe.data.workers,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # otherwise each loader would draw from the global random state
    )


def check_zero_stage(accelerator: Accelerator) -> None:
    """Raise RecordError for ZeRO stage 3, which partitions weights while the model is built; setup needs the whole
    model.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise RecordError(
            "DeepSpeed ZeRO stage 3 is not supported; set zero_stage to 2 in accelerate's configuration, or use FSDP2"
        )


def configure_deepspeed(accelerator: Accelerator, recipe: Recipe) -> None:
    """Copy batch size, accumulation and clipping of a resolved recipe to DeepSpeed's configuration, if it is used.

    Call this before `Accelerator.prepare`, which cannot infer the batch size from the sampler. A different
    accumulation would change the number of steps.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": recipe.loop.batch_size,
            "gradient_accumulation_steps": recipe.loop.accumulation,
            "gradient_clipping": recipe.loop.clip_norm or 0.0,
        }
