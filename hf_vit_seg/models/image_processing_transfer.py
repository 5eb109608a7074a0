"""An image processor of this package that reads images as another model's does."""

from transformers.image_processing_utils import BaseImageProcessor

from .image_processing_segmentation import SegmentationProcessing, SemanticSegmentationImageProcessor

# What the pixels are like when they reach a backbone. A classifier's crop is none of it: the border has classes too.
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


def reading_alike(
    found: BaseImageProcessor, processor_class: type[SegmentationProcessing] = SemanticSegmentationImageProcessor
) -> SegmentationProcessing:
    """A processor with the resize, the scale, the mean and the deviation of `found`, without its crop."""
    fields = {name: getattr(found, name, None) for name in PIXEL_FIELDS}
    return processor_class(**{name: value for name, value in fields.items() if value is not None})


__all__ = ["reading_alike"]
