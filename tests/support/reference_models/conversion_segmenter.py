"""Segmenter according to its paper (arXiv 2105.05633) and released state dict, computed from a plain state dict."""

import torch
from conversion_references import random_tensor
from torch import Tensor
from torch.nn.functional import (
    conv2d,
    gelu,
    interpolate,
    layer_norm,
    linear,
    normalize,
    pad,
    scaled_dot_product_attention,
)

EPS = 1e-5
WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 128, 2, 2, 16, 64, 7


def pairs(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def block(name: str) -> dict[str, tuple[int, ...]]:
    return (
        pairs(f"{name}.norm1", WIDTH)
        | pairs(f"{name}.attn.qkv", 3 * WIDTH, WIDTH)
        | pairs(f"{name}.attn.proj", WIDTH, WIDTH)
        | pairs(f"{name}.norm2", WIDTH)
        | pairs(f"{name}.mlp.fc1", 4 * WIDTH, WIDTH)
        | pairs(f"{name}.mlp.fc2", WIDTH, 4 * WIDTH)
    )


def shapes(mask: bool, distilled: bool) -> dict[str, tuple[int, ...]]:
    prefix = 1 + distilled
    found = {"encoder.cls_token": (1, 1, WIDTH), "encoder.pos_embed": (1, prefix + (SIDE // PATCH) ** 2, WIDTH)}
    found |= pairs("encoder.patch_embed.proj", WIDTH, 3, PATCH, PATCH) | pairs("encoder.norm", WIDTH)
    found |= pairs("encoder.head", 10, WIDTH)
    if distilled:
        found |= {"encoder.dist_token": (1, 1, WIDTH)} | pairs("encoder.head_dist", 10, WIDTH)
    for layer in range(DEPTH):
        found |= block(f"encoder.blocks.{layer}")
    if not mask:
        return found | pairs("decoder.head", CLASSES, WIDTH)
    for layer in range(2):
        found |= block(f"decoder.blocks.{layer}")
    found |= {"decoder.cls_emb": (1, CLASSES, WIDTH), "decoder.proj_patch": (WIDTH, WIDTH)}
    found |= {"decoder.proj_classes": (WIDTH, WIDTH)} | pairs("decoder.proj_dec", WIDTH, WIDTH)
    return found | pairs("decoder.decoder_norm", WIDTH) | pairs("decoder.mask_norm", CLASSES)


def segmenter_state(*, mask: bool, distilled: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: random_tensor(name, torch.zeros(shape), generator) for name, shape in shapes(mask, distilled).items()}


class Segmenter:
    """The forward pass in double precision."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return layer_norm(x, weight.shape, weight, bias, EPS)

    def dense(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def layer(self, name: str, x: Tensor) -> Tensor:
        fused = self.dense(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in fused.chunk(3, dim=-1))
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dense(f"{name}.attn.proj", attended)
        hidden = gelu(self.dense(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
        return x + self.dense(f"{name}.mlp.fc2", hidden)

    def encode(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens (B, N, D) and their grid."""
        image = pad(image, (0, -image.shape[-1] % PATCH, 0, -image.shape[-2] % PATCH))
        grid = image.shape[-2] // PATCH, image.shape[-1] // PATCH
        kernel = (self.state["encoder.patch_embed.proj.weight"], self.state["encoder.patch_embed.proj.bias"])
        patches = conv2d(image, *kernel, stride=PATCH).flatten(2).transpose(1, 2)
        names = [name for name in ("encoder.cls_token", "encoder.dist_token") if name in self.state]
        tokens = torch.cat([*(self.state[n].expand(len(image), -1, -1) for n in names), patches], dim=1)
        places = self.state["encoder.pos_embed"]
        side = SIDE // PATCH
        if grid != (side, side):
            inner = places[:, len(names) :].transpose(1, 2).unflatten(2, (side, side))
            inner = interpolate(inner, grid, mode="bilinear").flatten(2).transpose(1, 2)
            places = torch.cat([places[:, : len(names)], inner], dim=1)
        tokens = tokens + places
        for number in range(DEPTH):
            tokens = self.layer(f"encoder.blocks.{number}", tokens)
        return self.norm("encoder.norm", tokens)[:, len(names) :], grid

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """(B, K, h, w), before upsampling."""
        patches, grid = self.encode(image)
        if "decoder.head.weight" in self.state:
            return self.dense("decoder.head", patches).transpose(1, 2).unflatten(2, grid)
        classes = self.state["decoder.cls_emb"].expand(len(patches), -1, -1)
        tokens = torch.cat([self.dense("decoder.proj_dec", patches), classes], dim=1)
        for number in range(2):
            tokens = self.layer(f"decoder.blocks.{number}", tokens)
        tokens = self.norm("decoder.decoder_norm", tokens)
        patches = normalize(tokens[:, :-CLASSES] @ self.state["decoder.proj_patch"], dim=-1)
        classes = normalize(tokens[:, -CLASSES:] @ self.state["decoder.proj_classes"], dim=-1)
        return self.norm("decoder.mask_norm", patches @ classes.mT).transpose(1, 2).unflatten(2, grid)
