"""SegFormer of mmsegmentation, reimplemented with torch functions: importing the original requires stubs."""

import torch
from conversion_references import CLASSES, SIZES, random_tensor
from torch import Tensor
from torch.nn import functional as F


def mmseg_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small SegFormer of mmsegmentation."""
    shapes: dict[str, tuple[int, ...]] = {}
    before, width = 3, SIZES["decoder_hidden_size"]
    for stage, (channels, depth, ratio) in enumerate(
        zip(SIZES["hidden_sizes"], SIZES["depths"], (8, 4, 2, 1), strict=True)
    ):
        place, kernel = f"backbone.layers.{stage}.", 7 if stage == 0 else 3
        shapes |= layer(place + "0.projection.", channels, before, kernel, kernel)
        shapes |= layer(place + "0.norm.", channels) | layer(place + "2.", channels)
        for block in (f"{place}1.{number}." for number in range(depth)):
            shapes |= layer(block + "norm1.", channels) | layer(block + "norm2.", channels)
            shapes |= layer(block + "attn.attn.in_proj_", 3 * channels, channels)
            shapes |= layer(block + "attn.attn.out_proj.", channels, channels)
            if ratio > 1:
                shapes |= layer(block + "attn.sr.", channels, channels, ratio, ratio)
                shapes |= layer(block + "attn.norm.", channels)
            shapes |= layer(block + "ffn.layers.0.", 4 * channels, channels, 1, 1)
            shapes |= layer(block + "ffn.layers.1.", 4 * channels, 1, 3, 3)
            shapes |= layer(block + "ffn.layers.4.", channels, 4 * channels, 1, 1)
        shapes[f"decode_head.convs.{stage}.conv.weight"] = (width, channels, 1, 1)
        shapes |= batch_norm(f"decode_head.convs.{stage}.bn.", width)
        before = channels
    shapes["decode_head.fusion_conv.conv.weight"] = (width, 4 * width, 1, 1)
    shapes |= batch_norm("decode_head.fusion_conv.bn.", width)
    return shapes | layer("decode_head.conv_seg.", CLASSES, width, 1, 1)


def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias."""
    return {name + "weight": shape, name + "bias": shape[:1]}


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Weight, bias and statistics."""
    statistics = {name + "running_mean": (width,), name + "running_var": (width,)}
    return {**layer(name, width), **statistics, name + "num_batches_tracked": ()}


def mmseg_state() -> dict[str, Tensor]:
    """A random state dict of mmsegmentation's SegFormer."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: random_tensor(name, torch.empty(shape, dtype=torch.int64 if "tracked" in name else None), generator)
        for name, shape in mmseg_shapes().items()
    }


class MMSeg:
    """mmsegmentation's SegFormer in float64, computed with torch functions from its state dict."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = {name: t.double() for name, t in state.items()}

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[name + "weight"], self.state[name + "bias"], eps=1e-6)

    def conv(self, x: Tensor, name: str, **options: int) -> Tensor:
        return F.conv2d(x, self.state[name + "weight"], self.state.get(name + "bias"), **options)

    def conv_module(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(self.conv(x, name + "conv."), mean, var, weight, bias).relu()

    def attention(self, x: Tensor, name: str, size: tuple[int, int], heads: int, ratio: int) -> Tensor:
        keys = x
        if ratio > 1:
            image = x.transpose(1, 2).unflatten(2, size)
            keys = self.conv(image, name + "sr.", stride=ratio).flatten(2).transpose(1, 2)
            keys = self.norm(keys, name + "norm.")
        keys, name = keys.transpose(0, 1), name + "attn."
        inner, outer = name + "in_proj_", name + "out_proj."
        attended, _ = F.multi_head_attention_forward(
            x.transpose(0, 1),
            keys,
            keys,
            embed_dim_to_check=x.shape[-1],
            num_heads=heads,
            in_proj_weight=self.state[inner + "weight"],
            in_proj_bias=self.state[inner + "bias"],
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.state[outer + "weight"],
            out_proj_bias=self.state[outer + "bias"],
            training=False,
            need_weights=False,
        )
        return attended.transpose(0, 1)

    def feed_forward(self, x: Tensor, name: str, size: tuple[int, int]) -> Tensor:
        image = self.conv(x.transpose(1, 2).unflatten(2, size), name + "0.")
        image = F.gelu(self.conv(image, name + "1.", padding=1, groups=image.shape[1]))
        return self.conv(image, name + "4.").flatten(2).transpose(1, 2)

    def features(self, image: Tensor) -> list[Tensor]:
        maps = []
        for stage, (heads, ratio, depth) in enumerate(zip((1, 2, 5, 8), (8, 4, 2, 1), SIZES["depths"], strict=True)):
            place, kernel, stride = (
                f"backbone.layers.{stage}.",
                7 if stage == 0 else 3,
                4 if stage == 0 else 2,
            )
            image = self.conv(image, place + "0.projection.", stride=stride, padding=kernel // 2)
            height, width = image.shape[2:]
            x = self.norm(image.flatten(2).transpose(1, 2), place + "0.norm.")
            for block in (f"{place}1.{number}." for number in range(depth)):
                attended = self.norm(x, block + "norm1.")
                x = x + self.attention(attended, block + "attn.", (height, width), heads, ratio)
                x = x + self.feed_forward(self.norm(x, block + "norm2."), block + "ffn.layers.", (height, width))
            image = self.norm(x, place + "2.").transpose(1, 2).unflatten(2, (height, width))
            maps.append(image)
        return maps

    def logits(self, image: Tensor) -> Tensor:
        maps = self.features(image)
        levels = [
            F.interpolate(self.conv_module(m, f"decode_head.convs.{i}."), maps[0].shape[2:], mode="bilinear")
            for i, m in enumerate(maps)
        ]
        return self.conv(self.conv_module(torch.cat(levels, 1), "decode_head.fusion_conv."), "decode_head.conv_seg.")
