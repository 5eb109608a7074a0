"""ViTPose (arXiv 2204.12484): a plain Vision Transformer that predicts the keypoints of one person or animal per image.

Equation numbers are the paper's. Shapes: B images, H W pixels, D width of the encoder, C of the head, K keypoints,
h w the heatmaps' grid, 4 times that of the tokens, h' w'.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .bilinear import crop_to_image_extent
from .configuration_vit import VisionTransformerConfig
from .heatmaps import check_pairs, flip_back, heatmap_loss, heatmaps_from_keypoints
from .layers import head_norm, with_dicts
from .modeling_vit import VisionTransformerModel, VisionTransformerPreTrainedModel, patch_map

HEAD_STD = 0.001  # as released: heatmaps are near zero at first, like almost all of their targets
UPSAMPLING = 4


class ClassicPoseHead(nn.Module):
    """Equation 3: two deconvolutions with norm and ReLU, each doubling the grid, and a 1x1 convolution."""

    def __init__(self, in_channels: int, hidden_size: int, num_keypoints: int, norm: str = "batch"):
        super().__init__()
        channels = (in_channels, hidden_size)
        self.deconvolutions = nn.ModuleList(
            [nn.ConvTranspose2d(c, hidden_size, kernel_size=4, stride=2, padding=1, bias=False) for c in channels]
        )
        self.norms = nn.ModuleList([head_norm(norm, hidden_size) for _ in channels])
        self.final = nn.Conv2d(hidden_size, num_keypoints, kernel_size=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map (B, D, h', w') to (B, K, h, w)."""
        for deconvolution, norm in zip(self.deconvolutions, self.norms, strict=True):
            feature_map = norm(deconvolution(feature_map)).relu()
        return self.final(feature_map)


class SimplePoseHead(nn.Module):
    """Equation 4: ReLU, bilinear upsampling, and a 3x3 convolution."""

    def __init__(self, in_channels: int, num_keypoints: int):
        super().__init__()
        self.final = nn.Conv2d(in_channels, num_keypoints, kernel_size=3, padding=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map (B, D, h', w') to (B, K, h, w)."""
        rows, columns = feature_map.shape[-2:]
        size = (rows * UPSAMPLING, columns * UPSAMPLING)
        return self.final(interpolate(feature_map.relu(), size=size, mode="bilinear", align_corners=False))


@dataclass
class PoseEstimationOutput(ModelOutput):
    """Heatmaps (B, K, h, w), and their loss if there are labels."""

    loss: torch.Tensor | None = None
    heatmaps: torch.Tensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def classic_head(config: VisionTransformerConfig) -> nn.Module:
    return ClassicPoseHead(
        config.hidden_size, config.pose_head_hidden_size, cast(int, config.num_labels), config.pose_head_norm
    )


def simple_head(config: VisionTransformerConfig) -> nn.Module:
    return SimplePoseHead(config.hidden_size, cast(int, config.num_labels))


POSE_HEADS = {"classic": classic_head, "simple": simple_head}


class VisionTransformerForPoseEstimation(VisionTransformerPreTrainedModel):
    """The encoder with the head selected by `config.pose_head`; the config's labels are the keypoints."""

    accepts_loss_kwargs = False  # the loss is a mean over all keypoints of the batch

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.vit = VisionTransformerModel(config)
        self.pose_head = POSE_HEADS[config.pose_head](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the encoder, except for the head."""
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d) or module is self.pose_head.final:
            init.normal_(cast(torch.Tensor, module.weight), std=HEAD_STD)

    def unpadded_heatmaps(self, outputs: BaseModelOutput, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the heatmaps of the image without its padding."""
        height, width = pixel_values.shape[-2:]
        assert outputs.last_hidden_state is not None
        heatmaps = self.pose_head(patch_map(self.config, outputs.last_hidden_state, pixel_values))
        return crop_to_image_extent(heatmaps, (height, width), self.config.token_stride)

    def average_with_flipped(self, heatmaps: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Average an image's heatmaps with those of the flipped image, flipped back (flip test)."""
        pairs = self.config.pose_flip_pairs
        check_pairs(pairs, cast(int, self.config.num_labels))
        flipped = pixel_values.flip(-1)
        return (heatmaps + flip_back(self.unpadded_heatmaps(self.vit(flipped, return_dict=True), flipped), pairs)) / 2

    @can_return_tuple
    @with_dicts
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        flip_test: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoseEstimationOutput:
        """Predict heatmaps (B, K, h, w) for images (B, C, H, W) that are cropped to one person each and resized.

        `heatmaps.keypoints_from_heatmaps` decodes them. `flip_test`, by default `config.pose_flip_test`, averages them
        with those of the flipped image, except in training.

        `labels` (B, K, 3) are the keypoints' (x, y) in pixels of these images, and a visibility; keypoints with
        visibility 0 are ignored.
        """
        outputs = self.vit(pixel_values, **kwargs)
        heatmaps = self.unpadded_heatmaps(outputs, pixel_values)
        loss = None
        if labels is not None:
            image_size = (pixel_values.shape[-2], pixel_values.shape[-1])
            heatmap_size = (heatmaps.shape[-2], heatmaps.shape[-1])
            labels = labels.to(torch.promote_types(heatmaps.dtype, torch.float32))
            sigma = self.config.pose_target_sigma
            points, visible = labels[..., :2], labels[..., 2]
            targets, weights = heatmaps_from_keypoints(points, visible, image_size, heatmap_size, sigma)
            loss = heatmap_loss(heatmaps, targets, weights)
        if not self.training and (self.config.pose_flip_test if flip_test is None else flip_test):
            heatmaps = self.average_with_flipped(heatmaps, pixel_values)
        return PoseEstimationOutput(
            loss=loss, heatmaps=heatmaps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["PoseEstimationOutput", "VisionTransformerForPoseEstimation"]
