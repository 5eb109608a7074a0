"""Build the image processor that is saved with a model; validation, prediction and the Space use it too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.statistics import Statistics
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.loading.errors import INVALID_FILES
from hf_vit_seg.loading.image_processors import has_processor, open_processor
from hf_vit_seg.models.image_processing_inputs import EIGHT_BIT_WHITE, highest_value
from hf_vit_seg.plugins import architectures
from hf_vit_seg.records import RecordError, unknown_setting
from hf_vit_seg.training.recipe.schema import Recipe

MEASURED = "computed"
MEASURABLE = {"image_mean", "image_std"}
# The fields that determine a backbone's input. A classifier's crop is left out, as it would remove labeled pixels.
PIXEL_FIELDS = (
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def build_processor(
    recipe: Recipe,
    config: PreTrainedConfig,
    channels: int,
    palette: Sequence[Sequence[int]] | None = None,
    statistics: Statistics | None = None,
    converted: BaseImageProcessor | None = None,
) -> BaseImageProcessor:
    """Return the pretrained model's processor, or a new one for the architecture, updated with the recipe's fields.

    `converted` is the processor of a checkpoint in another format.

    `do_reduce_labels` is always off in the saved processor: masks are mapped once, when they are read, and reducing
    labels again would shift all classes. RecordError for fields that the processor does not have, and unless it has
    one mean and standard deviation per channel.
    """
    fields = resolve_fields(recipe.processor, statistics)
    processor = (
        converted or load_pretrained_processor(recipe.model.from_pretrained) or new_processor(config, recipe.task)
    )
    if recipe.model.architecture is not None:
        processor = convert_processor(processor, recipe.model.architecture, recipe.task)
    options = set(type(processor).valid_kwargs.__annotations__)
    for name in fields.keys() - options:
        raise RecordError(unknown_setting(f"processor.{name}", name, sorted(options)))
    settled = {"do_reduce_labels": False, "palette": palette and [list(color) for color in palette]}
    fields |= {name: value for name, value in settled.items() if name in options}
    processor = type(processor)(**(processor_fields(processor) | fields))
    check_channels(processor, channels)
    check_divisors(processor)
    return processor


def convert_processor(processor: BaseImageProcessor, name: str, task: str) -> BaseImageProcessor:
    """Convert a processor to the architecture's class for a task, with the same pixel fields."""
    architecture = architectures()[name]
    classes = architecture.processor_classes(task)
    if type(processor) in classes.values():
        return processor
    if type(processor) in architecture.all_processors():
        backend = "pil" if type(processor).__name__.endswith("Pil") else "torchvision"
        return classes[backend](**processor_fields(processor))
    fields = {name: getattr(processor, name, None) for name in PIXEL_FIELDS}
    return classes["torchvision"](**{name: value for name, value in fields.items() if value is not None})


def resolve_fields(fields: Mapping[str, Any], statistics: Statistics | None) -> dict[str, Any]:
    """Return the recipe's fields, with "computed" replaced by numbers."""
    if fields.get("do_reduce_labels"):
        raise RecordError(
            "processor.do_reduce_labels: labels are mapped when they are read; set data.preset: reduce_zero_label"
        )
    if renamed := [name for name, value in fields.items() if isinstance(value, str) and value == "measured"]:
        raise RecordError(f"processor.{renamed[0]}: 'measured' was renamed to '{MEASURED}'")
    asked = {name for name, value in fields.items() if isinstance(value, str) and value == MEASURED}
    if not asked:
        return dict(fields)
    if not asked <= MEASURABLE or statistics is None:
        raise RecordError(f"processor: only image_mean and image_std can be '{MEASURED}', found it for {sorted(asked)}")
    measured = {
        name: value for name, value in statistics.processor_fields().items() if name in asked or name not in MEASURABLE
    }
    for name in measured.keys() & fields.keys() - asked:
        if not math.isclose(fields[name], measured[name]):
            raise RecordError(
                f"processor.{name}: found {fields[name]}, expected {measured[name]} with a mean or standard deviation "
                f"of '{MEASURED}'; remove the setting"
            )
    return {**fields, **measured}


def recipe_white(recipe: Recipe) -> float:
    """Return the value of white that a recipe's `rescale_factor` expects, 255 by default."""
    fields = recipe.processor
    return highest_value(fields.get("do_rescale", True), fields.get("rescale_factor", 1 / EIGHT_BIT_WHITE))


def load_pretrained_processor(path: str | None) -> BaseImageProcessor | None:
    """Load the processor of a pretrained model; None if it has none, RecordError if it cannot be read."""
    if path is None or not has_processor(path):
        return None
    try:
        return open_processor(path)
    except INVALID_FILES as error:
        reason = error_sentence(error, short=True)
        raise RecordError(f"model.from_pretrained: the image processor of {path} cannot be loaded: {reason}") from None


def processor_notes(recipe: Recipe) -> list[str]:
    """Warn about a pretrained model without an image processor."""
    path = recipe.model.from_pretrained
    if path is None or has_processor(path):
        return []
    return ["The checkpoint has no image processor: a default one is created; check its mean and size"]


def new_processor(config: PreTrainedConfig, task: str) -> BaseImageProcessor:
    """Create the processor of the architecture's class for a task, with the image size of the config, if any."""
    for architecture in architectures().values():
        if architecture.config is type(config):
            return architecture.processor_classes(task)["torchvision"](**config_size(config))
    raise RecordError(
        f"model.from_pretrained: found no image processor, and '{config.model_type}' is not an architecture of this "
        "package, so none can be created; save one in the model directory"
    )


def config_size(config: PreTrainedConfig) -> dict[str, Any]:
    """Return `size` for a config with `image_size`, an integer or (height, width)."""
    size = getattr(config, "image_size", None)
    if size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"size": {"height": height, "width": width}}


def processor_fields(processor: BaseImageProcessor) -> dict[str, Any]:
    """Return the fields that a processor saves, without the name of its class."""
    return {name: value for name, value in processor.to_dict().items() if not name.endswith("processor_type")}


def check_channels(processor: BaseImageProcessor, channels: int) -> None:
    """Raise RecordError unless mean and standard deviation have one number per channel."""
    for name in ("image_mean", "image_std"):
        numbers = getattr(processor, name, None)
        if isinstance(numbers, list | tuple) and len(numbers) != channels:
            raise RecordError(
                f"processor.{name} has {len(numbers)} numbers, but images have {channels} channels; set one number per "
                f"channel, or '{MEASURED}'"
            )


def check_divisors(processor: BaseImageProcessor) -> None:
    """Raise RecordError unless means are finite, and standard deviations and the rescale factor are positive."""
    for name, minimum in (("image_mean", -math.inf), ("image_std", 0.0), ("rescale_factor", 0.0)):
        value = getattr(processor, name, None)
        numbers = value if isinstance(value, list | tuple) else [value]
        for number in numbers:
            if isinstance(number, float | int) and not (math.isfinite(number) and number > minimum):
                expected = "a finite number" if minimum < 0 else "a positive number"
                raise RecordError(f"processor.{name}: found {number}, expected {expected}")
