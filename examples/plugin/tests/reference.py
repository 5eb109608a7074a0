"""The research code that wrote the checkpoints: an independent implementation of the architecture in plain torch.

Layers and names follow the released code of CCT (SHI-Labs/Compact-Transformers). The head is not part of CCT.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import interpolate, softmax


class Tokenizer(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.conv_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
            for a, b in pairwise(widths)
        )

    def forward(self, x):
        maps = []
        for layer in self.conv_layers:
            maps.append(x := layer(x))
        return maps


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = softmax(q @ k.transpose(-2, -1) * (c // self.num_heads) ** -0.5, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim, num_heads, hidden):
        super().__init__()
        self.pre_norm, self.norm1 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(self.pre_norm(x)))
        return x + self.linear2(nn.functional.gelu(self.linear1(x)))


class Head(nn.Module):
    def __init__(self, channels, width, classes):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.1)
        )
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, maps):
        merged = self.lateral[-1](maps[-1])
        for i in range(len(maps) - 2, -1, -1):
            merged = self.lateral[i](maps[i]) + interpolate(merged, maps[i].shape[2:], mode="bilinear")
        return self.classifier(self.smooth(merged))


class Segmenter(nn.Module):
    """Map images (B, C, H, W) to logits (B, K, ceil(H/2), ceil(W/2))."""

    def __init__(self, widths=(8, 16, 32), depth=2, heads=2, hidden=48, head_width=16, bands=3, classes=4):
        super().__init__()
        self.tokenizer = Tokenizer((bands, *widths))
        self.blocks = nn.ModuleList(Block(widths[-1], heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(widths[-1])
        self.head = Head(widths, head_width, classes)

    def forward(self, x):
        *fine, last = self.tokenizer(x)
        tokens = last.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        encoded = self.norm(tokens).transpose(1, 2).reshape(last.shape)
        return self.head([*fine, encoded])


def trained(seed=0):
    """A model in evaluation mode with random values in every tensor, including norms and running statistics."""
    torch.manual_seed(seed)
    model = Segmenter().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("running_var", "norm.weight")) else (-0.3, 0.3)
            tensor.uniform_(low, high)
    return model
