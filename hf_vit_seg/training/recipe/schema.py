"""The schema of recipes: all settings of a training run. See `configs/recipes/*.yaml` for examples.

Sizes are (height, width). Settings of data sources, transforms and losses are defined with these.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hf_vit_seg.data.images.nodata import NodataSetting
from hf_vit_seg.data.labels.class_mappings import expand_classes
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import MAX_COUNT, Count, CountFromZero, Exponent, Factor, FactorFromZero, Record

MAX_WORKERS = 1024  # processes that load data
MAX_SEED = 2**32 - 1  # limit of numpy's generators

Task = Literal["segmentation", "classification", "pose", "instance", "panoptic"]
Level = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Level, Level, Level]
RawValue = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Color  # pixel value of a mask: a number, or a color
Keypoint = str | CountFromZero  # a name or an index
Momentum = Annotated[float, Field(ge=0, lt=1)]
Milestone = Annotated[float, Field(gt=0, lt=1)]


class LoraRecipe(Record):
    """Low-rank adapters (peft) instead of full fine-tuning; the head is always fully trained."""

    rank: Count = 16
    alpha: Factor = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None  # None: all linear layers of the encoder's attention and MLP
    merge: bool = True  # merge the adapters into the saved model


class ModelRecipe(Record):
    """The model: a variant from scratch, or a pretrained one whose head is adapted to the classes.

    An architecture that adds heads to backbones (`backbone`) is used with `from_pretrained`, without a variant.
    """

    architecture: str | None = None  # a plugin's name, see `hf-vit-seg models`
    variant: str | None = None
    from_pretrained: str | None = None  # a directory, a Hub id, or the file or address of a checkpoint
    convert: bool = True  # convert checkpoints in other formats; false loads them with transformers' classes
    fields: dict[str, Any] = {}  # config fields that override the model's; nested ones are merged
    copy_classes: bool = True  # keep classifier rows of classes with the same name (ignoring case)
    single_output: bool = False  # one output for the second of two classes
    norm: Literal["batch", "sync", "group"] = "batch"  # BatchNorm, SyncBatchNorm, or GroupNorm in the decoder
    freeze: tuple[str, ...] = ()  # regular expressions (re.search) of parameters to freeze
    gradient_checkpointing: bool = False
    compile: bool = False
    lora: LoraRecipe | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelRecipe":
        if (self.from_pretrained is None) == (self.variant is None):
            raise HfVitSegError("set either architecture and variant (from scratch) or from_pretrained")
        if self.architecture is None and self.variant is not None:
            raise HfVitSegError("variant needs architecture; set both")
        return self


class ClassRecipe(Record):
    """A class and its raw values in masks; by default its index in the list."""

    name: str
    values: tuple[RawValue, ...] | None = None
    color: Color | None = None  # for figures; by default the raw value, if that is a color
    # panoptic: false for stuff, which has no single objects. None: as the data say, else true
    thing: bool | None = None


class SamplingRecipe(Record):
    """Draw training samples with replacement, some more often than others.

    `rare_classes`: a class is drawn with probability softmax((1 - f) / temperature) of its frequency f, and then one
        of its samples (rare class sampling of DAFormer, arXiv 2111.14887).
    `weights`: in proportion to the weights of a CSV file with the columns `name` and `weight`, for every sample.
    """

    name: Literal["rare_classes", "weights"] = "rare_classes"
    temperature: Factor = 0.01  # rare_classes: the lower, the rarer the classes
    file: str | None = None  # weights

    @model_validator(mode="after")
    def _file_of_weights(self) -> "SamplingRecipe":
        if (self.name == "weights") != (self.file is not None):
            raise HfVitSegError("file is required for weights, and for weights only")
        return self


class DataRecipe(Record):
    """Sources of images and targets, each `{kind: ..., ...}`, see `hf_vit_seg.data.sources.source_registry`."""

    renamed: ClassVar = {"bands": "channels"}

    description: str | None = None  # what the images show and where they are from, for the model card
    license: str | None = None  # license of the images and labels, for the model card
    train: dict[str, Any]
    validation: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    # number of image channels. 3: gray is repeated, transparency becomes white; 1: images become gray
    channels: Count = 3
    # random share of `train`, seeded, if there is no validation split
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    # None: from the source (class folders, Hub features); a name: a label set in configs/labels, such as ade20k.
    # Also a mapping {value: name} or {name: values}, or a .json file with one or a list, such as a model's id2label
    classes: tuple[ClassRecipe | str, ...] | str | None = None
    ignore: tuple[RawValue, ...] = (255,)  # ignored raw values
    multi_label: bool = False  # classification: an image may have several classes, or none
    preset: Literal["reduce_zero_label"] | None = None  # ignore 0, decrement other raw values
    unknown: Literal["error", "ignore"] = "error"  # for raw values without a class
    check: Count | None = None  # number of samples per split to check before training; None: all
    # samples that cannot be read or whose mask has another size; "skip" checks all samples and lists those left out
    on_error: Literal["error", "skip"] = "error"
    max_skipped: float = Field(default=0.1, gt=0, lt=1)  # largest share of a split that may be skipped
    sampling: SamplingRecipe | None = None  # None: each training sample once per epoch
    # value of pixels without data, which are filled and whose labels are ignored. "file": as TIFFs declare it
    nodata: NodataSetting = "file"
    # pose: the spread of the annotations of each keypoint, in the order or by the names of the keypoints, or one for
    # all. None: COCO's for COCO's keypoints, otherwise 0.05
    oks_sigmas: Factor | tuple[Factor, ...] | dict[str, Factor] | None = None
    # pose: left and right keypoints, by name or index; []: a flip swaps none. None: found by names with left and right
    flip_pairs: tuple[tuple[Keypoint, Keypoint], ...] | None = None
    workers: int = Field(default=2, ge=0, le=MAX_WORKERS)
    cache: bool = False  # keep decoded images in memory

    @field_validator("classes", mode="before")
    @classmethod
    def _list_classes(cls, classes: Any) -> Any:
        return expand_classes(classes)


class OptimizerRecipe(Record):
    """The optimizer and its parameter groups."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Factor = 6e-5
    weight_decay: FactorFromZero = 0.01
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    momentum: Momentum = 0.9  # sgd
    layer_decay: float | None = Field(default=None, gt=0, le=1)  # ratio of each layer's rate to the next layer's
    head_multiplier: Factor = 1.0  # learning rate factor of the head
    groups: tuple[dict[str, Any], ...] = ()  # {match, learning_rate_scale, weight_decay}; first match wins


class ScheduleRecipe(Record):
    """The learning rate schedule, relative to the peak."""

    name: Literal["poly", "cosine", "wsd", "multistep", "constant"] = "poly"
    warmup_steps: CountFromZero | Annotated[float, Field(ge=0, le=MAX_COUNT)] = 0  # below 1: a share of all steps
    warmup_start: float = Field(default=0.0, ge=0, le=1)
    power: Exponent = 1.0  # poly
    final: float = Field(default=0.0, ge=0, le=1)  # share of the peak at the end
    decay_share: float = Field(default=0.2, gt=0, le=1)  # wsd: share of all steps
    milestones: tuple[Milestone, ...] = ()  # multistep: shares of all steps
    factor: float = Field(default=0.1, gt=0, lt=1)  # multistep: factor of the rate at each milestone
    mask_power: Exponent = 0.9  # query heads: of the decay of masked attention, block by block


class EmaRecipe(Record):
    """An exponential moving average of the weights, used for evaluation and saving."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    warmup: bool = True  # decay is min(decay, (1 + step) / (10 + step))


class EarlyStopRecipe(Record):
    """Stop when the metric no longer improves."""

    patience: Count = 5  # evaluations
    min_delta: FactorFromZero = 0.0  # improvements of at most this are not counted


class LoopRecipe(Record):
    """The training loop. Set either `steps` (of the optimizer) or `epochs`."""

    steps: Count | None = None
    epochs: float | None = Field(default=None, gt=0, le=MAX_COUNT)
    batch_size: Count | Literal["auto"] = 8  # per process and forward pass
    accumulation: Count = 1  # forward passes per step
    precision: Literal["default", "no", "bf16", "fp16"] = "default"  # default: from accelerate's configuration
    clip_norm: Factor | None = None
    ema: EmaRecipe | None = None
    early_stop: EarlyStopRecipe | None = None
    log_every: Count = 10  # steps; the first and last step are logged too
    evaluate_every: Count | None = None  # steps; None: at the end only
    checkpoint_every: Count | None = None  # steps; None: at evaluations
    keep_checkpoints: Count = 2
    deterministic: bool = False  # torch's deterministic algorithms on a GPU

    @model_validator(mode="after")
    def _one_length(self) -> "LoopRecipe":
        if (self.steps is None) == (self.epochs is None):
            raise HfVitSegError("set either steps or epochs")
        return self


class EvaluationRecipe(Record):
    """Evaluation settings. By default, segmentation is evaluated at the resolution of the labels."""

    renamed: ClassVar = {"measure": "metric"}
    protocol: dict[str, Any] = {}  # inference protocol: whole image, sliding windows, flips, scales
    resolution: Literal["original", "resized"] = "original"
    boundary_iou: bool = False
    batch_size: Count = 1  # for images of equal size
    metric: str | None = None  # metric of the best model; None: mean_iou, accuracy, oks_ap, mask_ap, pq by task
    samples: CountFromZero = 8  # number of figures of predictions


class Recipe(Record):
    """All settings of a training run."""

    task: Task = "segmentation"
    name: str = "run"
    output: str | None = None  # directory of the run; None: runs/<name>
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    model: ModelRecipe
    processor: dict[str, Any] = {}  # image processor fields; image_mean and image_std may be "computed"
    data: DataRecipe
    transforms: tuple[Any, ...] = ()  # see hf_vit_seg.data.transforms.pipeline
    batch_transforms: tuple[Any, ...] = ()  # mixup, cutmix
    loss: dict[
        str, dict[str, Any] | None
    ] = {}  # name: settings with `weight`; {}: cross_entropy, or the pose model's own
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    loop: LoopRecipe
    evaluation: EvaluationRecipe = EvaluationRecipe()
    trackers: tuple[str, ...] = ()  # accelerate's: tensorboard, trackio, wandb ...
