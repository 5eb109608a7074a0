"""EoMT as in its paper (arXiv 2503.19108), on a ViT of timm, with the parameter names of the authors' files."""

import math

import timm
import torch
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Doubling(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = ChannelNorm(width, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.conv2(nn.functional.gelu(self.conv1(maps))))


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
        self.register_buffer("pixel_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.ones(1, 3, 1, 1))


class Network(nn.Module):
    def __init__(self, queries: int, classes: int, blocks: int, **options):
        super().__init__()
        self.encoder = Encoder(**options)
        backbone = self.encoder.backbone
        width, patch = backbone.embed_dim, backbone.patch_embed.patch_size[0]
        self.blocks, self.prefix = blocks, int(backbone.num_prefix_tokens)  # pyright: ignore[reportArgumentType]
        self.register_buffer("attn_mask_probs", torch.zeros(blocks))
        self.q = nn.Embedding(queries, width)
        self.class_head = nn.Linear(width, classes + 1)
        linear = [nn.Linear(width, width) for _ in range(3)]
        self.mask_head = nn.Sequential(linear[0], nn.GELU(), linear[1], nn.GELU(), linear[2])
        self.upscale = nn.Sequential(*(Doubling(width) for _ in range(max(1, int(math.log2(patch)) - 2))))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, h, w), without masks in attention."""
        backbone, count = self.encoder.backbone, self.q.weight.shape[0]
        tokens = backbone._pos_embed(backbone.patch_embed(image))
        for index, block in enumerate(backbone.blocks):
            if index == len(backbone.blocks) - self.blocks:
                tokens = torch.cat([self.q.weight.expand(len(image), -1, -1), tokens], dim=1)
            tokens = block(tokens)
        tokens = backbone.norm(tokens)
        patches = tokens[:, count + self.prefix :].transpose(1, 2)
        patches = self.upscale(patches.unflatten(2, backbone.patch_embed.grid_size))
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_head(tokens[:, :count]), patches)
        return self.class_head(tokens[:, :count]), masks


class EoMT(nn.Module):
    """The module that the authors' training saves."""

    def __init__(self, queries: int = 6, classes: int = 5, blocks: int = 2, **options):
        super().__init__()
        self.network = Network(queries, classes, blocks, **options)
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(classes + 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(image)
