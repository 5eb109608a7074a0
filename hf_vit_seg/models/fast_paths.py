"""When there may be another way to the same numbers than torch's plain operators on a module's layers, one by one.

Whatever looks on from outside must see the plain way: compilers, exporters and tracers, transforms of `torch.func`,
derivatives in forward mode, modes that count or record operators, hooks on layers.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def runs_eagerly() -> bool:
    """Whether operators run at once, on numbers alone, with nobody between them and torch's kernels."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not is_in_torch_dispatch_mode()
        and forward_ad._current_level < 0
        and not _has_any_global_hook()
    )


def unhooked(module: nn.Module) -> bool:
    """Whether no layer inside a module has a hook, which its being called, once, would call."""
    return not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in module.modules()
        if layer is not module
    )


def channels_last(feature_map: torch.Tensor) -> torch.Tensor:
    """The same (B, C, H, W), channels-last in memory; as it is under `torch.func`, which knows no such layout."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return feature_map
    return feature_map.contiguous(memory_format=torch.channels_last)


__all__ = ["channels_last", "runs_eagerly", "unhooked"]
