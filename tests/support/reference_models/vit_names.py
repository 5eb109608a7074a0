"""Maps timm's tensor names of a ViT to ours, written independently of the conversion tables."""

import re

import torch

RENAMES = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.backbone\.(stem\.)?(conv|norm)\.", r"embeddings.patch_embeddings.stem.\2."),
    (r"^patch_embed\.backbone\.stages\.(\d+)\.blocks\.", r"embeddings.patch_embeddings.stem.stages.\1.layers."),
    (r"\.downsample\.conv\.", ".shortcut."),
    (r"\.downsample\.norm\.", ".shortcut_norm."),
    (r"^blocks\.", "layers."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls(\d)\.", r".layer_scale\1."),
)
HEADS = (
    (r"^head\.", "classifier."),
    (r"^head_dist\.", "distillation_classifier."),
    (r"^fc_norm\.", "pool_norm."),
)


def from_timm(state: dict[str, torch.Tensor], prefix: str = "vit.") -> dict[str, torch.Tensor]:
    """A timm state dict under our names, those of the encoder with a prefix."""
    ours = {}
    for name, tensor in state.items():
        head = next((re.sub(old, new, name) for old, new in HEADS if re.search(old, name)), None)
        if head is not None:
            ours[head] = tensor
            continue
        for old, new in RENAMES:
            name = re.sub(old, new, name)
        if ".attn.qkv." in name:
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                ours[prefix + name.replace(".attn.qkv.", f".attention.{part}.")] = piece
        else:
            ours[prefix + name] = tensor
    return ours
