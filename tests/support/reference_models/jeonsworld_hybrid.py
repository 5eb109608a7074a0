"""The hybrid of jeonsworld/ViT-pytorch: its tensors with random values, and its arithmetic in float64.

Transcribed from models/modeling.py and models/modeling_resnet.py (460a162).
"""

from collections.abc import Iterator

import torch
from conversion_references import random_tensor
from torch import Tensor
from torch.nn.functional import conv2d, gelu, group_norm, layer_norm, linear, max_pool2d

EMBEDDINGS, ENCODER = "transformer.embeddings.", "transformer.encoder."
ROOT, BODY = EMBEDDINGS + "hybrid_model.root.", EMBEDDINGS + "hybrid_model.body."
State = dict[str, Tensor]
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def affine(name: str, size: int) -> Shapes:
    yield from ((name + ".weight", (size,)), (name + ".bias", (size,)))


def dense(name: str, inputs: int, outputs: int) -> Shapes:
    yield from ((name + ".weight", (outputs, inputs)), (name + ".bias", (outputs,)))


def stem_shapes(width: int, units: tuple[int, ...]) -> Shapes:
    yield ROOT + "conv.weight", (width, 3, 7, 7)
    yield from affine(ROOT + "gn", width)
    inputs = width
    for block, depth in enumerate(units, 1):
        middle, outputs = width * 2 ** (block - 1), 4 * width * 2 ** (block - 1)
        for unit in range(1, depth + 1):
            name = f"{BODY}block{block}.unit{unit}."
            yield name + "conv1.weight", (middle, inputs, 1, 1)
            yield name + "conv2.weight", (middle, middle, 3, 3)
            yield name + "conv3.weight", (outputs, middle, 1, 1)
            for norm, size in (("gn1", middle), ("gn2", middle), ("gn3", outputs)):
                yield from affine(name + norm, size)
            if unit == 1:
                yield name + "downsample.weight", (outputs, inputs, 1, 1)
                yield from affine(name + "gn_proj", outputs)
            inputs = outputs


def transformer_shapes(channels: int, tokens: int, hidden: int, layers: int, classes: int) -> Shapes:
    yield EMBEDDINGS + "cls_token", (1, 1, hidden)
    yield EMBEDDINGS + "position_embeddings", (1, 1 + tokens, hidden)
    yield EMBEDDINGS + "patch_embeddings.weight", (hidden, channels, 1, 1)
    yield EMBEDDINGS + "patch_embeddings.bias", (hidden,)
    for layer in range(layers):
        name = f"{ENCODER}layer.{layer}."
        for projection in ("query", "key", "value", "out"):
            yield from dense(f"{name}attn.{projection}", hidden, hidden)
        yield from dense(name + "ffn.fc1", hidden, 4 * hidden)
        yield from dense(name + "ffn.fc2", 4 * hidden, hidden)
        yield from (*affine(name + "attention_norm", hidden), *affine(name + "ffn_norm", hidden))
    yield from affine(ENCODER + "encoder_norm", hidden)
    yield from dense("head", hidden, classes)


def random_state(
    width: int = 32,
    units: tuple[int, ...] = (2, 1, 2),
    size: int = 64,
    hidden: int = 48,
    layers: int = 2,
    classes: int = 10,
) -> State:
    """A state dict for square images of `size` pixels."""
    generator = torch.Generator().manual_seed(0)
    shapes = (*stem_shapes(width, units), *transformer_shapes(width * 16, (size // 16) ** 2, hidden, layers, classes))
    return {name: random_tensor(name, torch.empty(shape), generator) for name, shape in shapes}


def convolve(state: State, name: str, maps: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    kernel = state[name + ".weight"].double()
    variance, mean = torch.var_mean(kernel, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return conv2d(maps, (kernel - mean) / torch.sqrt(variance + 1e-5), stride=stride, padding=padding)


def normalize(state: State, name: str, maps: Tensor) -> Tensor:
    return group_norm(maps, 32, state[name + ".weight"].double(), state[name + ".bias"].double(), eps=1e-6)


def normalize_channels(state: State, name: str, maps: Tensor) -> Tensor:
    """GroupNorm(cout, cout) with PyTorch's default epsilon, written out: PyTorch's refuses a single cell."""
    variance, mean = torch.var_mean(maps, dim=(2, 3), keepdim=True, unbiased=False)
    weight, bias = (state[f"{name}.{part}"].double()[:, None, None] for part in ("weight", "bias"))
    return (maps - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def bottleneck(state: State, name: str, maps: Tensor, stride: int) -> Tensor:
    shortcut = maps
    if name + "downsample.weight" in state:
        shortcut = normalize_channels(state, name + "gn_proj", convolve(state, name + "downsample", maps, stride))
    hidden = normalize(state, name + "gn1", convolve(state, name + "conv1", maps)).relu()
    hidden = normalize(state, name + "gn2", convolve(state, name + "conv2", hidden, stride, padding=1)).relu()
    return (shortcut + normalize(state, name + "gn3", convolve(state, name + "conv3", hidden))).relu()


def stem(state: State, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to feature maps (B, C, H / 16, W / 16)."""
    maps = normalize(state, ROOT + "gn", convolve(state, ROOT + "conv", images, stride=2, padding=3)).relu()
    maps = max_pool2d(maps, kernel_size=3, stride=2, padding=0)
    for block in (1, 2, 3):
        unit = 1
        while (name := f"{BODY}block{block}.unit{unit}.") + "conv1.weight" in state:
            maps = bottleneck(state, name, maps, stride=2 if unit == 1 and block > 1 else 1)
            unit += 1
    return maps


def apply_linear(state: State, name: str, tokens: Tensor) -> Tensor:
    return linear(tokens, state[name + ".weight"].double(), state[name + ".bias"].double())


def apply_layer_norm(state: State, name: str, tokens: Tensor) -> Tensor:
    weight, bias = state[name + ".weight"].double(), state[name + ".bias"].double()
    return layer_norm(tokens, weight.shape, weight, bias, eps=1e-6)


def attend(state: State, name: str, tokens: Tensor, num_heads: int) -> Tensor:
    query, key, value = (
        apply_linear(state, name + part, tokens).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for part in ("query", "key", "value")
    )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return apply_linear(state, name + "out", (weights @ value).transpose(1, 2).flatten(2))


def logits(state: State, images: Tensor, num_heads: int) -> Tensor:
    """Images (B, 3, H, W), of the size of the positions, to logits (B, K)."""
    kernel, bias = (state[f"{EMBEDDINGS}patch_embeddings.{part}"].double() for part in ("weight", "bias"))
    patches = conv2d(stem(state, images), kernel, bias).flatten(2).transpose(1, 2)
    first = state[EMBEDDINGS + "cls_token"].double().expand(len(images), -1, -1)
    tokens = torch.cat([first, patches], dim=1) + state[EMBEDDINGS + "position_embeddings"].double()
    layer = 0
    while (name := f"{ENCODER}layer.{layer}.") + "ffn.fc1.weight" in state:
        tokens = tokens + attend(
            state, name + "attn.", apply_layer_norm(state, name + "attention_norm", tokens), num_heads
        )
        hidden = gelu(apply_linear(state, name + "ffn.fc1", apply_layer_norm(state, name + "ffn_norm", tokens)))
        tokens = tokens + apply_linear(state, name + "ffn.fc2", hidden)
        layer += 1
    return apply_linear(state, "head", apply_layer_norm(state, ENCODER + "encoder_norm", tokens)[:, 0])
