"""A transform for recipes: `transforms: [{random_grey: {probability: 0.2}}]`."""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torchvision.transforms import v2

from hf_vit_seg.data.transforms.context import TransformContext, TransformOptions


class RandomGrey(TransformOptions):
    """Take an image's colours away with this probability, so that shapes alone must tell."""

    probability: float = Field(default=0.1, ge=0, le=1)

    def build(self, context: TransformContext) -> Callable[..., Any]:
        """The transform itself. ValueError for images without three colours."""
        if context.bands != 3:
            raise ValueError(f"random_grey is for images of 3 bands, these have {context.bands}")
        return v2.RandomGrayscale(self.probability)


__all__ = ["RandomGrey"]
