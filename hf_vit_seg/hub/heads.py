"""The pipeline tag and example code of each Auto class, for the model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class Head:
    """One kind of model.

    `tag` is the Hub's pipeline tag; `pipeline` is true if transformers has a pipeline with this name for the models.
    `purpose` and `limit` are sentences of the card: what the model computes, and what it does not.
    `use` is Python code that follows `outputs = model(...)` in the card.
    """

    tag: str
    title: str
    use: str
    purpose: str
    limit: str = ""
    pipeline: bool = True


# The most specific first: a card uses the first entry whose class is in the config.
HEADS: Mapping[str, Head] = {
    "AutoModelForSemanticSegmentation": Head(
        tag="image-segmentation",
        title="semantic segmentation",
        purpose="assigns one of its classes to each pixel of an image",
        limit="Each pixel gets one of the classes, even if it shows something else.",
        use="label_map = processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])[0]  # (H, W)",
    ),
    "AutoModelForUniversalSegmentation": Head(
        tag="image-segmentation",
        title="instance and panoptic segmentation",
        purpose="finds the objects of an image, each with its class and its mask",
        limit="An image with more objects than the model has queries loses some.",
        use=(
            "objects = processor.post_process_instance_segmentation(outputs, target_sizes=[image.size[::-1]])[0]  "
            "# segmentation (H, W), segments_info"
        ),
    ),
    "AutoModelForImageClassification": Head(
        tag="image-classification",
        title="image classification",
        purpose="assigns classes to an image",
        limit="The model has no class for images that show something else.",
        use="label = model.config.id2label[int(outputs.logits[0].argmax())]",
    ),
    "AutoModelForPoseEstimation": Head(
        tag="keypoint-detection",
        title="pose estimation",
        purpose="finds the keypoints of a person or an animal in a box of an image",
        limit="Each keypoint gets a position, even if it is hidden; compare its score with a threshold.",
        use="heatmaps = outputs.heatmaps[0]  # of the keypoints in model.config.id2label",
        pipeline=False,
    ),
    "AutoBackbone": Head(
        tag="image-feature-extraction",
        title="feature maps",
        purpose="computes feature maps of an image, for a head that is trained on them",
        use="feature_maps = outputs.feature_maps  # one (1, C, h, w) for each of model.out_features",
        pipeline=False,
    ),
    "AutoModel": Head(
        tag="image-feature-extraction",
        title="image features",
        purpose="computes features of an image, for a head that is trained on them",
        use="features = outputs.last_hidden_state",
    ),
}


def model_classes(config: PreTrainedConfig) -> dict[str, type]:
    """Return the model class of each Auto class in HEADS for a config, including those of plugins."""
    mappings: dict[str, Any] = {auto: getattr(transformers, auto)._model_mapping for auto in HEADS}
    classes = {auto: mapping[type(config)] for auto, mapping in mappings.items() if type(config) in mapping}
    return {auto: kind for auto, kind in classes.items() if isinstance(kind, type)}


__all__ = ["HEADS", "Head", "model_classes"]
