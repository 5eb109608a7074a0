"""A transform for recipes: `transforms: [{random_gray: {probability: 0.2}}]`."""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torchvision.transforms import v2

from hf_vit_seg.data.transforms.context import TransformContext, TransformOptions


class RandomGray(TransformOptions):
    """Convert images to grayscale with this probability, so that the model does not rely on color."""

    probability: float = Field(default=0.1, ge=0, le=1)

    def build(self, context: TransformContext) -> Callable[..., Any]:
        """Build the transform. Raises ValueError unless images have 3 channels."""
        if context.channels != 3:
            raise ValueError(f"random_gray requires images with 3 channels, got {context.channels}")
        return v2.RandomGrayscale(self.probability)


__all__ = ["RandomGray"]
