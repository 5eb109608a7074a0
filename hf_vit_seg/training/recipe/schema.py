"""A recipe: one run of training, whole. `configs/recipes/*.yaml` are some; `recipe_files` reads and writes them.

Sizes are (height, width). What a table's row may say (data sources, transforms, losses) stands with the row.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import Record

Task = Literal["segmentation", "classification", "pose"]


class LoraRecipe(Record):
    """Low-rank adapters (peft) in place of full training; heads are always trained in full."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None  # None: all linear layers of the encoder's attention and MLP
    merge: bool = True  # the saved model is a plain one, with the adapters multiplied in


class ModelRecipe(Record):
    """Which model is trained: a variant from scratch, or a pretrained one whose head is fitted to the classes.

    An architecture that puts heads on bare backbones (`backbone`) stands beside `from_pretrained`, without a variant.
    """

    architecture: str | None = None  # a plugin's name, see `hf-vit-seg models`
    variant: str | None = None
    from_pretrained: str | None = None  # a directory or Hub id
    fields: dict[str, Any] = {}  # config fields, over the variant's or the pretrained model's; nested ones are merged
    copy_classes: bool = True  # classifier rows whose class name (case aside) is known already are kept
    single_output: bool = False  # of two classes the second alone has an output, 1 above a probability of one half
    norm: Literal["batch", "sync", "group"] = "batch"  # of BatchNorm layers: as they are, SyncBatchNorm, GroupNorm
    freeze: tuple[str, ...] = ()  # regular expressions (searched) of parameters that are not trained
    gradient_checkpointing: bool = False
    compile: bool = False
    lora: LoraRecipe | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelRecipe":
        if (self.from_pretrained is None) == (self.variant is None):
            raise HfVitSegError("give either architecture and variant (from scratch) or from_pretrained")
        if self.architecture is None and self.variant is not None:
            raise HfVitSegError("architecture and variant go together")
        return self


class ClassRecipe(Record):
    """A class, and the raw values of the masks that mean it; without `values` its place in the list."""

    name: str
    values: tuple[int | tuple[int, int, int], ...] | None = None
    color: tuple[int, int, int] | None = None  # for pictures; the mask's own color where values are colors


class DataRecipe(Record):
    """Where images and targets come from. Each source is `{kind: ..., ...}`, see `hf_vit_seg.data.sources.registry`."""

    renamed: ClassVar = {"bands": "channels"}

    train: dict[str, Any]
    validation: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    # of all images. 3: gray is repeated, transparency is composited on white; 1: all images become gray
    channels: int = Field(default=3, ge=1)
    # cut from `train`, seeded, where there is no validation
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    # None: as the source tells (class folders, Hub features); a name: a label set of configs/labels, such as ade20k
    classes: tuple[ClassRecipe | str, ...] | str | None = None
    ignore: tuple[int | tuple[int, int, int], ...] = (255,)  # raw values that do not count
    preset: Literal["reduce_zero_label"] | None = None  # 0 is ignored, every other raw value loses one
    unknown: Literal["error", "ignore"] = "error"  # raw values that are neither
    check: int | None = Field(default=None, ge=1)  # so many samples of a split are read before step 1; None: all
    workers: int = Field(default=2, ge=0)
    cache: bool = False  # keep decoded images in memory


class OptimizerRecipe(Record):
    """The optimizer and its parameter groups."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=6e-5, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd
    layer_decay: float | None = Field(default=None, gt=0, le=1)  # each layer's rate over that of the layer behind it
    head_multiplier: float = Field(default=1.0, gt=0)  # of everything that the base model does not have
    groups: tuple[dict[str, Any], ...] = ()  # {match, learning_rate_scale, weight_decay}; first match wins


class ScheduleRecipe(Record):
    """The learning rate over the steps, as a share of its peak."""

    name: Literal["poly", "cosine", "wsd", "multistep", "constant"] = "poly"
    warmup_steps: int | float = Field(default=0, ge=0)  # below 1: a share of all steps
    warmup_start: float = Field(default=0.0, ge=0, le=1)
    power: float = Field(default=1.0, gt=0)  # poly
    final: float = Field(default=0.0, ge=0, le=1)  # share of the peak at the end
    decay_share: float = Field(default=0.2, gt=0, le=1)  # wsd: of all steps, at their end
    milestones: tuple[float, ...] = ()  # multistep: shares of all steps, at each of which
    factor: float = Field(default=0.1, gt=0, lt=1)  # the rate is multiplied by this


class EmaRecipe(Record):
    """An exponential moving average of the weights, which is then evaluated and saved."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    warmup: bool = True  # decay is min(decay, (1 + step) / (10 + step))


class EarlyStopRecipe(Record):
    """Stop when the measure has not become better."""

    patience: int = Field(default=5, ge=1)  # evaluations
    least: float = Field(default=0.0, ge=0)  # improvement that counts


class LoopRecipe(Record):
    """How long, in which portions, and what is kept. One of `steps` (of the optimizer) and `epochs`."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int | Literal["auto"] = 8  # per process and forward pass
    accumulation: int = Field(default=1, ge=1)  # forward passes per step
    precision: Literal["default", "no", "bf16", "fp16"] = "default"  # default: as accelerate's configuration says
    clip_norm: float | None = Field(default=None, gt=0)
    ema: EmaRecipe | None = None
    early_stop: EarlyStopRecipe | None = None
    log_every: int = Field(default=10, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)  # steps; None: at the end only
    checkpoint_every: int | None = Field(default=None, ge=1)  # steps; None: at evaluations
    keep_checkpoints: int = Field(default=2, ge=1)
    deterministic: bool = False  # torch's deterministic algorithms on a GPU

    @field_validator("batch_size")
    @classmethod
    def _one_image_at_least(cls, size: int | str) -> int | str:
        if isinstance(size, int) and size < 1:
            raise HfVitSegError(f"1 or more, or auto; found {size}")
        return size

    @model_validator(mode="after")
    def _one_length(self) -> "LoopRecipe":
        if (self.steps is None) == (self.epochs is None):
            raise HfVitSegError("give either steps or epochs")
        return self


class EvaluationRecipe(Record):
    """How a model is measured. Segmentation: at the labels' own size unless `resolution` says otherwise."""

    renamed: ClassVar = {"measure": "metric"}

    protocol: dict[str, Any] = {}  # of the Segmenter: whole image, sliding windows, flips, scales
    resolution: Literal["original", "resized"] = "original"
    boundary_iou: bool = False
    batch_size: int = Field(default=1, ge=1)  # images of equal size that go through the model together
    metric: str | None = None  # the best model has the highest; None: mean_iou, accuracy, oks_ap by task
    samples: int = Field(default=8, ge=0)  # pictures of predictions


class Recipe(Record):
    """One run of training."""

    task: Task = "segmentation"
    name: str = "run"
    output: str | None = None  # directory of the run; None: runs/<name>
    seed: int = Field(default=0, ge=0)
    model: ModelRecipe
    processor: dict[str, Any] = {}  # image processor fields; image_mean and image_std may be "computed"
    data: DataRecipe
    transforms: tuple[Any, ...] = ()  # see hf_vit_seg.data.transforms.pipeline
    batch_transforms: tuple[Any, ...] = ()  # mixup, cutmix
    loss: dict[str, dict[str, Any] | None] = {}  # name: settings with `weight`; {}: cross_entropy, of pose the model's
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    loop: LoopRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()
    trackers: tuple[str, ...] = ()  # accelerate's: tensorboard, trackio, wandb ...
