"""The image processor that is saved with a model: validation, prediction and Space read images through it alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.hub import cached_file

from hf_vit_seg.data.statistics import Statistics
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.plugins import architectures
from hf_vit_seg.records import RecordError, unknown
from hf_vit_seg.training.recipe.schema import Recipe

MEASURED = "computed"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
MEASURABLE = {"image_mean", "image_std"}
# The fields that determine a backbone's input. A classifier's crop is left out: borders have classes too.
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
    bands: int,
    palette: Sequence[Sequence[int]] | None = None,
    measured: Statistics | None = None,
) -> BaseImageProcessor:
    """The pretrained model's processor, or a new one of the architecture's class, with the recipe's fields on top.

    `do_reduce_labels` is off in what is saved, whatever the pretrained one said: the masks went through the label
    map, once, and a processor that took one from every class again would shift them all (see the label traps of
    transformers' own example). RecordError for fields that the processor does not know, and where it has not one
    mean and deviation per band.
    """
    fields = asked_fields(recipe.processor, measured)
    processor = pretrained_processor(recipe.model.from_pretrained) or new_processor(config)
    if recipe.model.architecture is not None:
        processor = of_architecture(processor, recipe.model.architecture)
    known = set(type(processor).valid_kwargs.__annotations__)
    for name in fields.keys() - known:
        raise RecordError(unknown(f"processor.{name}", name, sorted(known)))
    settled = {"do_reduce_labels": False, "palette": palette and [list(color) for color in palette]}
    fields |= {name: value for name, value in settled.items() if name in known}
    processor = type(processor)(**(saved_fields(processor) | fields))
    check_bands(processor, bands)
    return processor


def of_architecture(processor: BaseImageProcessor, name: str) -> BaseImageProcessor:
    """The processor if its class is the architecture's, otherwise one of that class with the same pixel fields."""
    classes = architectures()[name].image_processor
    if type(processor) in classes.values():
        return processor
    fields = {name: getattr(processor, name, None) for name in PIXEL_FIELDS}
    return classes["torchvision"](**{name: value for name, value in fields.items() if value is not None})


def asked_fields(fields: Mapping[str, Any], measured: Statistics | None) -> dict[str, Any]:
    """The recipe's fields, with numbers in place of "computed"."""
    if fields.get("do_reduce_labels"):
        raise RecordError(
            "processor.do_reduce_labels: labels are mapped once, when they are read; say data.preset: reduce_zero_label"
        )
    if renamed := [name for name, value in fields.items() if isinstance(value, str) and value == "measured"]:
        raise RecordError(f"processor.{renamed[0]}: 'measured' was renamed to '{MEASURED}'")
    asked = {name for name, value in fields.items() if isinstance(value, str) and value == MEASURED}
    if not asked:
        return dict(fields)
    if not asked <= MEASURABLE or measured is None:
        raise RecordError(f"processor: only image_mean and image_std can be '{MEASURED}', found it for {sorted(asked)}")
    found = {
        name: value for name, value in measured.processor_fields().items() if name in asked or name not in MEASURABLE
    }
    for name in found.keys() & fields.keys() - asked:
        if fields[name] != found[name]:
            raise RecordError(
                f"processor.{name} is {found[name]} where the mean or deviation is '{MEASURED}', found {fields[name]}: "
                "leave it out"
            )
    return {**fields, **found}


def pretrained_processor(path: str | None) -> BaseImageProcessor | None:
    """The processor beside a pretrained model, if there is one; RecordError if it cannot be read."""
    if path is None or not has_processor(path):
        return None
    try:
        return AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = error_sentence(error, short=True)
        raise RecordError(f"model.from_pretrained: the image processor of {path} cannot be loaded: {reason}") from None


def has_processor(path: str) -> bool:
    """Whether there is an image processor beside a pretrained model."""
    absent_is_none = {"_raise_exceptions_for_missing_entries": False}
    return any(cached_file(path, name, **absent_is_none) is not None for name in PROCESSOR_FILES)


def processor_notes(recipe: Recipe) -> list[str]:
    """What is to be known of a run's processor."""
    path = recipe.model.from_pretrained
    if path is None or has_processor(path):
        return []
    return ["There is no image processor beside the checkpoint: a new one is made, see whether its mean and size fit"]


def new_processor(config: PreTrainedConfig) -> BaseImageProcessor:
    """The processor of the architecture's own class; images become as large as the config says, if it does."""
    for architecture in architectures().values():
        if architecture.config is type(config):
            return architecture.image_processor["torchvision"](**config_size(config))
    raise RecordError(
        f"model.from_pretrained has no image processor beside it, and '{config.model_type}' is none of this package's "
        "architectures, so none can be made; save one into the directory"
    )


def config_size(config: PreTrainedConfig) -> dict[str, Any]:
    """`size`, where a config has an `image_size`, one number or (height, width)."""
    size = getattr(config, "image_size", None)
    if size is None:
        return {}
    height, width = (size, size) if isinstance(size, int) else size
    return {"size": {"height": height, "width": width}}


def saved_fields(processor: BaseImageProcessor) -> dict[str, Any]:
    """What a processor would write into its file, but for its class's name."""
    return {name: value for name, value in processor.to_dict().items() if not name.endswith("processor_type")}


def check_bands(processor: BaseImageProcessor, bands: int) -> None:
    """Refuse means and deviations of another number of bands."""
    for name in ("image_mean", "image_std"):
        numbers = getattr(processor, name, None)
        if isinstance(numbers, list | tuple) and len(numbers) != bands:
            raise RecordError(
                f"processor.{name} has {len(numbers)} numbers, but images have {bands} bands: give one number per "
                f"band, or '{MEASURED}'"
            )
