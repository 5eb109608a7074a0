"""ViTPose (arXiv 2204.12484): a plain Vision Transformer that finds the keypoints of one person or animal per image.

Shapes: B images, H W pixels, K keypoints, h w of the heatmaps, a quarter of the token's stride.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_vit import VisionTransformerConfig
from .heatmaps import check_pairs, heatmap_loss, heatmaps_from_keypoints, mirrored_back
from .modeling_vit import VisionTransformerModel, VisionTransformerPreTrainedModel, patch_map
from .pose_head import ClassicPoseHead, SimplePoseHead
from .vit_segmentation_heads import sample_extent

FRESH_STD = 0.001  # of the released head: heatmaps begin near zero, as almost all of their targets are


@dataclass
class PoseEstimationOutput(ModelOutput):
    """Heatmaps (B, K, h, w), and with labels their loss."""

    loss: torch.Tensor | None = None
    heatmaps: torch.Tensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def classic_head(config: VisionTransformerConfig) -> nn.Module:
    """Two deconvolutions."""
    return ClassicPoseHead(
        config.hidden_size, config.pose_head_width, cast(int, config.num_labels), config.decoder_norm
    )


def simple_head(config: VisionTransformerConfig) -> nn.Module:
    """Bilinear upsampling."""
    return SimplePoseHead(config.hidden_size, cast(int, config.num_labels))


POSE_HEADS = {"classic": classic_head, "simple": simple_head}


class VisionTransformerForPoseEstimation(VisionTransformerPreTrainedModel):
    """The encoder with the head that `config.pose_head` names; the labels of the config are the keypoints."""

    accepts_loss_kwargs = False  # the loss is a mean over all keypoints of the batch

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.vit = VisionTransformerModel(config)
        self.pose_head = POSE_HEADS[config.pose_head](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the encoder's, but for the head."""
        super()._init_weights(module)
        if isinstance(module, nn.ConvTranspose2d) or module is self.pose_head.final:
            init.normal_(cast(torch.Tensor, module.weight), std=FRESH_STD)

    def heatmaps_of(self, outputs: BaseModelOutput, pixel_values: torch.Tensor) -> torch.Tensor:
        """The heatmaps of the image without its padding to whole tokens."""
        height, width = pixel_values.shape[-2:]
        assert outputs.last_hidden_state is not None
        heatmaps = self.pose_head(patch_map(self.config, outputs.last_hidden_state, pixel_values))
        return sample_extent(heatmaps, (height, width), self.config.token_stride)

    def average_with_mirrored(self, heatmaps: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Flip test: the mean of an image's heatmaps and those of its mirror image, mirrored back."""
        pairs = self.config.pose_flip_pairs
        check_pairs(pairs, cast(int, self.config.num_labels))
        mirrored = pixel_values.flip(-1)
        return (heatmaps + mirrored_back(self.heatmaps_of(self.vit(mirrored), mirrored), pairs)) / 2

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        flip_test: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PoseEstimationOutput:
        """Find the keypoints of images (B, C, H, W) of one person each, cut out and resized: heatmaps (B, K, h, w).

        `heatmaps.keypoints_from_heatmaps` reads them. `flip_test` averages them with those of the mirrored image, by
        default as `config.pose_flip_test` says, and never in training.

        `labels` (B, K, 3) are the keypoints' (x, y) in pixels of these images, and a visibility, of which 0 means
        that the keypoint does not count.
        """
        outputs = self.vit(pixel_values, **kwargs)
        heatmaps = self.heatmaps_of(outputs, pixel_values)
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
            heatmaps = self.average_with_mirrored(heatmaps, pixel_values)
        return PoseEstimationOutput(
            loss=loss, heatmaps=heatmaps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["PoseEstimationOutput", "VisionTransformerForPoseEstimation"]
