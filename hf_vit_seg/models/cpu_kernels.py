"""Faster implementations for CPUs, and the conditions under which they replace torch's plain operators.

Four optimizations, all of which change results only by rounding:

- Linear layers in oneDNN. torch computes float32 matrix products with MKL, which is limited to AVX2 on CPUs not made
  by Intel; oneDNN uses AVX-512 if available (100 vs. 220 GMAC/s on 2 cores of an EPYC). Without autograd we call the
  fused linear layer that torch's compiler uses, with autograd a 1x1 convolution, which has a backward pass.
- Row strips. Large temporaries cost more than the arithmetic on them: above 4 MiB, the allocator maps new pages for
  each, and the kernel clears them. SegFormer-B0's first Mix-FFN at 512x512 takes 16.0 ms at once and 2.1 ms in strips.
- Cached values: tensors computed from weights alone are reused while the weights are unchanged.
- Folded norms: in evaluation, BatchNorm is a scale and a shift per channel, which the preceding convolution can absorb.

They apply only in plain eager mode: compilers, exporters, tracers, `torch.func` transforms, forward-mode derivatives,
dispatch modes and hooks must see torch's own operators on the module's own layers.

Copies of this file are stored on the Hub and have to work with future versions of torch. Private names of torch are
therefore used here only, looked up by `private`, and each has a fallback.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.functional import conv2d, interpolate, linear

from .grid_sizes import ceil_div

T = TypeVar("T")

STRIP_BYTES = 5 * 2**19  # largest temporary of a strip
# Below these numbers of multiplications, oneDNN's setup costs more than it saves.
MIN_FUSED_LINEAR = 2**21
MIN_CONVOLUTION = 2**23
FLOAT_DTYPES = (torch.float32, torch.float64)
HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PRIVATE_NAMES: list[str] = []


def private(path: str, default: Any = None) -> Any:
    """Return a private name of torch by its dotted path, or `default` if the installed version does not have it."""
    PRIVATE_NAMES.append(path)
    value: Any = torch
    for name in path.split(".")[1:]:
        value = getattr(value, name, None)
    return default if value is None else value


def assume_true() -> bool:
    """Replace a check that the installed torch does not have; True disables the fast paths."""
    return True


transforms_are_active = private("torch._C._are_functorch_transforms_active", assume_true)
in_dispatch_mode = private("torch.utils._python_dispatch.is_in_torch_dispatch_mode", assume_true)
has_global_hooks = private("torch.nn.modules.module._has_any_global_hook", assume_true)
private("torch.autograd.forward_ad._current_level")  # changes while it is used: see `is_plain_eager`
onednn_linear = private("torch.ops.mkldnn._linear_pointwise")
onednn_convolution = private("torch.mkldnn_convolution")
onednn_packed_convolution = private("torch.ops.mkldnn._convolution_pointwise")
onednn_pack = private("torch._C._nn.mkldnn_reorder_conv2d_weight")
bilinear_backward = private("torch.ops.aten.upsample_bilinear2d_backward")


# Conditions


def is_plain_eager() -> bool:
    """Return whether operators run immediately on plain tensors, without tracers, transforms or global hooks."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not transforms_are_active()
        and not in_dispatch_mode()
        and getattr(forward_ad, "_current_level", 0) < 0
        and not has_global_hooks()
    )


def is_dynamic_export() -> bool:
    """Return whether torch.export or torch.jit.trace records a program for inputs of any size.

    A Python branch on a size would then be fixed to the example's size.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def has_hooks(layer: nn.Module) -> bool:
    """Return whether a layer has hooks itself."""
    return any(getattr(layer, table, True) for table in HOOK_TABLES)


def has_inner_hooks(module: nn.Module) -> bool:
    """Return whether a layer inside a module has hooks, which a fast path would not call."""
    return any(has_hooks(layer) for layer in module.modules() if layer is not module)


def use_row_strips(tensor: torch.Tensor) -> bool:
    """Return whether to process a tensor in strips: on a CPU, without autograd, in plain eager mode."""
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and is_plain_eager()


def can_cache(tensor: torch.Tensor) -> bool:
    """Return whether values computed from a tensor may be cached: no autograd, not on "meta", plain eager mode."""
    return not torch.is_grad_enabled() and not tensor.is_meta and is_plain_eager()


def is_plain_float32(tensor: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether both are plain float32 tensors on a CPU with oneDNN, not subclasses (quantized, distributed)."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == weight.dtype == torch.float32
        and type(weight) in (nn.Parameter, torch.Tensor)
        and type(tensor) is torch.Tensor
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def is_plain_weight(weight: torch.Tensor) -> bool:
    """Return whether a weight is a plain tensor or a tracing proxy of one, not a quantized tensor."""
    kind = type(weight)
    return kind in (nn.Parameter, torch.Tensor) or kind.__module__.startswith("torch._subclasses")


def channels_last(feature_map: torch.Tensor) -> torch.Tensor:
    """Convert (B, C, H, W) to channels-last memory, except under `torch.func`, which does not support it."""
    if not torch.compiler.is_compiling() and transforms_are_active():
        return feature_map
    return feature_map.contiguous(memory_format=torch.channels_last)


def accelerated_by(fast: Callable[..., T | None]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a method with a faster function of the same arguments, which returns None if it does not apply.

    The method itself is available as `__wrapped__`.
    """

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @wraps(method)
        def wrapper(module: Any, *inputs: Any, **options: Any) -> T:
            output = fast(module, *inputs, **options)
            return method(module, *inputs, **options) if output is None else output

        return wrapper

    return decorate


# Linear layers


def pointwise(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `torch.nn.functional.linear` of tokens (.., C), weight (C', C) and bias (C',): (.., C')."""
    product = onednn_product(tokens, weight, bias)
    return linear(tokens, weight, bias) if product is None else product


def onednn_product(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Compute `linear` in oneDNN; None if this does not apply, or would be slower."""
    if not (tokens.is_cpu and is_plain_eager()):
        return None
    multiplications = tokens.numel() * weight.shape[0]
    if multiplications < min(MIN_FUSED_LINEAR, MIN_CONVOLUTION) or not is_plain_float32(tokens, weight):
        return None
    if onednn_linear is not None and not torch.is_grad_enabled() and multiplications >= MIN_FUSED_LINEAR:
        return onednn_linear(tokens, weight, bias, "none", [], "")
    if onednn_convolution is not None and multiplications >= MIN_CONVOLUTION:
        return linear_by_convolution(tokens, weight, bias)
    return None


def linear_by_convolution(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `linear` as oneDNN's 1x1 convolution of an image with one row.

    `conv2d` chooses oneDNN only with more than one thread (54 vs. 118 GMAC/s on one core).
    """
    column = tokens.reshape(1, 1, -1, tokens.shape[-1]).permute(0, 3, 1, 2)  # (1, C, 1, N)
    kernel = weight[:, :, None, None]
    product = onednn_convolution(column, kernel, bias, padding=(0, 0), stride=(1, 1), dilation=(1, 1), groups=1)
    return product.permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], -1)


def apply_linear(layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Compute `layer(tokens)`, (.., C) to (.., C'), in oneDNN if the layer is an unchanged Linear of torch.

    Layers are plain `nn.Linear`, because quantizers find them by their exact type. Adapters and quantizers replace the
    layer or its weight, accelerate its `forward`, and others add hooks: then the layer itself is called.
    """
    product = None
    if type(layer) is nn.Linear and "forward" not in layer.__dict__ and not has_hooks(layer):
        product = onednn_product(tokens, layer.weight, layer.bias)
    return layer(tokens) if product is None else product


# Row strips


def row_strips(height: int, row_bytes: int, budget: int | None = None) -> list[tuple[int, int]]:
    """Divide rows into equal strips (first, last + 1) of at most `budget` bytes (STRIP_BYTES), but at least one row."""
    budget = STRIP_BYTES if budget is None else budget
    count = max(ceil_div(height, max(budget // max(row_bytes, 1), 1)), 1)
    edges = [height * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def in_row_strips(halo: int = 0) -> Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]]:
    """Decorate the forward of a layer (.., C) -> (.., C) to process strips of rows if that is faster.

    Without a halo, rows are tokens. With a halo, they are the rows of (B, H, W, C): each strip includes `halo` rows
    above and below, and `forward` takes `rows`, the slice of its input whose outputs it returns.

    The layer's `expanded_width` is the number of channels of its largest temporary.
    """

    def decorate(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(forward)
        def in_strips(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            # Not in training: dropout would draw other numbers in strips.
            if layer.training or not use_row_strips(hidden_states):
                return forward(layer, hidden_states)
            size = hidden_states.shape[:-1].numel() * layer.expanded_width * hidden_states.element_size()
            is_small = size <= STRIP_BYTES and (not halo or len(hidden_states) == 1)
            if is_small or has_inner_hooks(layer):
                return forward(layer, hidden_states)
            images = hidden_states if halo else hidden_states.flatten(0, -2)[None]
            row_bytes = images.shape[2:-1].numel() * layer.expanded_width * images.element_size()
            strips = row_strips(images.shape[1], row_bytes)
            outputs = torch.empty_like(images)
            for image, output in zip(images, outputs, strict=True):
                for first, last in strips:
                    top, bottom = max(first - halo, 0), min(last + halo, images.shape[1])
                    rows = (slice(first - top, last - top),) if halo else ()
                    output[first:last] = forward(layer, image[None, top:bottom], *rows)[0]
            return outputs.view(hidden_states.shape)

        return in_strips

    return decorate


# Cached values


class Cached(NamedTuple, Generic[T]):
    """A value, the key it was requested with, and copies of the tensors it was computed from."""

    key: object
    sources: list[torch.Tensor]
    result: T


class ValueCache(Generic[T]):
    """The last value computed from a module's tensors, recomputed when one of them has changed.

    Tensors are compared by value: writing through `.data`, as many moving averages do, changes neither a tensor's
    version nor its identity. Threads may share a cache, since an entry is replaced as a whole. Copies and pickles of a
    cache are empty.
    """

    def __init__(self):
        self.entry: Cached[T] | None = None

    def __reduce__(self):
        return ValueCache, ()

    def get(self, key: object, sources: Sequence[torch.Tensor], compute: Callable[[], T]) -> T:
        """Return `compute()`, or the cached result if key and sources are equal to those of the last call."""
        entry = self.entry
        if entry is None or entry.key != key or not same_values(entry.sources, sources):
            copies = [tensor.detach().clone() for tensor in sources]
            self.entry = entry = Cached(key, copies, compute())
        return entry.result


def same_values(olds: Sequence[torch.Tensor], news: Sequence[torch.Tensor]) -> bool:
    """Return whether two lists of tensors agree in length, dtypes, devices and values."""
    return len(olds) == len(news) and all(
        old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
        for old, new in zip(olds, news, strict=True)
    )


# Convolutions


def can_prepack(feature_map: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether oneDNN can take a kernel in its own memory order, which saves reordering it at every call.

    A 1x1 convolution from 1024 to 2048 channels on 7x7 takes 0.44 ms instead of 1.60 ms.
    """
    available = onednn_pack is not None and onednn_packed_convolution is not None
    return available and is_plain_float32(feature_map, weight) and bool(torch.backends.mkldnn.enabled)


def cached_conv2d(
    feature_map: torch.Tensor,
    weight: torch.Tensor,
    transform: Callable[[], torch.Tensor],
    cache: ValueCache[torch.Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """Compute `conv2d` with a kernel that `transform` computes from `weight` alone; the kernel is cached if that is
    safe.
    """
    if not can_cache(weight):
        return conv2d(feature_map, transform(), None, stride, padding)
    if not can_prepack(feature_map, weight):
        return conv2d(feature_map, cache.get("plain", [weight], transform), None, stride, padding)
    padding, stride, shape = list(padding), list(stride), feature_map.shape

    def pack() -> torch.Tensor:
        return onednn_pack(transform().to_mkldnn(), padding, stride, [1, 1], 1, shape)

    kernel = cache.get(shape, [weight], pack)
    return onednn_packed_convolution(feature_map, kernel, None, padding, stride, [1, 1], 1, "none", [], "")


def folds_batch_norm(layer: Any, dtype: torch.dtype) -> bool:
    """Return whether a layer's `convolution` and `norm` are unchanged, in `dtype`, in evaluation, without hooks."""
    convolution, norm = layer.convolution, layer.norm
    return (
        (type(convolution), type(norm)) == (nn.Conv2d, nn.BatchNorm2d)
        and dtype in FLOAT_DTYPES
        and dtype == convolution.weight.dtype == norm.weight.dtype
        and not norm.training
        and not convolution.weight.is_meta
        and not has_inner_hooks(layer)
    )


def with_folded_norm(layer: Any, feature_map: torch.Tensor) -> torch.Tensor | None:
    """Compute `layer.norm(layer.convolution(feature_map))` as one convolution; None if this does not apply.

    The kernel is scaled at every call, which takes 10 microseconds for a depthwise convolution.
    """
    if layer.training or not use_row_strips(feature_map) or not folds_batch_norm(layer, feature_map.dtype):
        return None
    convolution, norm = layer.convolution, layer.norm
    scale = (norm.running_var + norm.eps).rsqrt_().mul_(norm.weight)  # (C,)
    shift = torch.addcmul(norm.bias, norm.running_mean, scale, value=-1)
    weight = convolution.weight * scale[:, None, None, None]
    return conv2d(feature_map, weight, shift, convolution.stride, convolution.padding, 1, convolution.groups)


def upsample_bilinear_backward(gradient: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Compute the input gradient, of `shape` (B, C, h, w), of bilinear `interpolate` to (B, C, H, W)."""
    if bilinear_backward is not None:
        return bilinear_backward(gradient, list(gradient.shape[2:]), list(shape), False)
    with torch.enable_grad():
        coarse = gradient.new_zeros(*shape, requires_grad=True)
        fine = interpolate(coarse, gradient.shape[2:], mode="bilinear", align_corners=False)
    return torch.autograd.grad(fine, coarse, gradient)[0]


__all__ = [
    "ValueCache",
    "accelerated_by",
    "apply_linear",
    "cached_conv2d",
    "can_cache",
    "channels_last",
    "folds_batch_norm",
    "has_inner_hooks",
    "in_row_strips",
    "is_dynamic_export",
    "is_plain_eager",
    "is_plain_weight",
    "pointwise",
    "row_strips",
    "upsample_bilinear_backward",
    "use_row_strips",
    "with_folded_norm",
]
