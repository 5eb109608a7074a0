"""A transformers pipeline, `pipeline("semantic-segmentation", model=...)`, around the Segmenter.

transformers' "image-segmentation" returns a mask per class, resizes all logits to the image, has no protocols, and
fails for models with one class. Both tasks load the same models.
"""

import logging
import os
from contextlib import suppress
from typing import Any

from transformers import AutoModelForSemanticSegmentation, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

from hf_vit_seg.conversion.errors import UnsupportedCheckpoint
from hf_vit_seg.conversion.live_models import from_transformers
from hf_vit_seg.entry_points import qualified_name
from hf_vit_seg.inference.dense.image_preparation import PreparedImage
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.records import read_record

from .segmentation import Segmentation
from .segmenter import Segmenter

TASK = "semantic-segmentation"

logger = logging.getLogger(__name__)


class SemanticSegmentationPipeline(Pipeline):
    """Segments images to label maps at their original size.

    Models of transformers that this package has, too, are converted to its faster classes.

    Called with an image (a path, URL, base64 text, PIL, array or tensor) or a list of them; `protocol` (a preset's
    name, or `Protocol`'s fields), `scores`, `entropy` and `top_k` may be given to `pipeline` or to the call. The result
    of an image is a dict: `label_map` (H, W), `scores`, `entropy`, `top_classes` and `top_scores` if requested (see
    `Segmentation`), `classes` (those that occur, the most frequent first: `id`, `label`, `color`, `pixels`, `share`),
    and `protocol`, a description of the inference settings.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        with suppress(UnsupportedCheckpoint):  # other architectures, or models with hooks
            self.model = from_transformers(self.model)
        self.segmenter = Segmenter(self.model, self.image_processor, self.device)

    def _sanitize_parameters(
        self,
        protocol: Any = None,
        scores: bool | None = None,
        entropy: bool | None = None,
        top_k: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(f"{TASK} knows protocol, scores, entropy and top_k; got {', '.join(unknown)}")
        preparing = {} if protocol is None else {"protocol": to_protocol(protocol)}
        selection = {"scores": scores, "entropy": entropy, "top_k": top_k}
        return preparing, {name: value for name, value in selection.items() if value is not None}, {}

    def preprocess(self, image: Any, protocol: Protocol | None = None) -> dict[str, Any]:
        """Load and preprocess one image."""
        segmenter = self.segmenter if protocol is None else self.segmenter.with_protocol(protocol)
        source = load_image(image) if isinstance(image, str) and not os.path.isfile(image) else image
        return {"prepared": segmenter.prepare(source), "protocol": segmenter.protocol}

    def _forward(self, inputs: dict[str, Any], **selection: Any) -> dict[str, Any]:
        """Segment the image, or a batch of images; images of equal size share a forward pass."""
        prepared, protocol = inputs["prepared"], inputs["protocol"]
        if isinstance(prepared, PreparedImage):
            return {"segmentation": self.segmenter.with_protocol(protocol).segment(prepared, **selection)}
        return {"segmentation": self.segmenter.with_protocol(protocol[0]).segment_all(prepared, **selection)}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Convert a segmentation to the result dict."""
        segmentation: Segmentation = outputs["segmentation"]
        maps = {name: getattr(segmentation, name) for name in ("scores", "entropy", "top_classes", "top_scores")}
        classes = [
            {
                "id": count.index,
                "label": count.name,
                "color": count.color,
                "pixels": count.pixels,
                "share": count.share,
            }
            for count in segmentation.counts()
        ]
        given = {name: values for name, values in maps.items() if values is not None}
        return {"label_map": segmentation.label_map, **given, "classes": classes, "protocol": segmentation.protocol}


def to_protocol(given: Any) -> Protocol:
    """Build a protocol from a preset's name or its fields."""
    if isinstance(given, Protocol):
        return given
    return read_record(Protocol, {"preset": given} if isinstance(given, str) else given, "protocol")


def register_pipeline() -> None:
    """Register `pipeline("semantic-segmentation")` with transformers; repeated calls do nothing.

    A pipeline of another package with this name is kept, with a warning.
    """
    if TASK in PIPELINE_REGISTRY.get_supported_tasks():
        registered = PIPELINE_REGISTRY.check_task(TASK)[1]["impl"]
        if qualified_name(registered) != qualified_name(SemanticSegmentationPipeline):
            logger.warning(
                "hf_vit_seg's pipeline for '%s' is skipped: the task is already registered by %s; uninstall one of the "
                "two packages, or use hf_vit_seg.inference.Segmenter",
                TASK,
                qualified_name(registered),
            )
        return
    PIPELINE_REGISTRY.register_pipeline(
        TASK, SemanticSegmentationPipeline, pt_model=AutoModelForSemanticSegmentation, type="image"
    )
    # With this attribute, save_pretrained would copy this file as remote code into the model directory.
    del SemanticSegmentationPipeline._registered_impl  # pyright: ignore[reportAttributeAccessIssue]


__all__ = ["SemanticSegmentationPipeline", "register_pipeline"]
