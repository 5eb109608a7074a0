"""The base class of `Classifier` and `PoseEstimator`."""

from typing import Any, ClassVar, Self

import torch
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.loading.devices import float_type, select_device
from hf_vit_seg.loading.models import advise_conversion, check_options, load_for_inference


class ImageModel:
    """A model of transformers' Auto classes with its image processor. Subclasses map an image to results."""

    task: ClassVar[str]

    def __init__(self, model: Any, processor: BaseImageProcessor, device: str | torch.device | None = None):
        """`device` defaults to a GPU if available."""
        advise_conversion(model)
        self.device = select_device(device)
        self.model, self.processor = model.eval().to(self.device), processor

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
        *,
        convert: bool = True,
        **hub: Any,
    ) -> Self:
        """Load a local directory, a Hub model, or a checkpoint file, with the options of `load`.

        Raises ModelError if the model is of another task.
        """
        check_options(cls.from_pretrained, hub)
        where, kind = select_device(device), float_type(dtype)
        return cls(*load_for_inference(name, cls.task, kind, convert=convert, **hub), where)

    @property
    def channels(self) -> int:
        """The number of image channels."""
        return getattr(self.model.config, "num_channels", 3)


__all__ = ["ImageModel"]
