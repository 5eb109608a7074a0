"""Tables of names that several ViT sources share.

DeiT, MAE, DINO, Segmenter and ViTPose use timm's names with another prefix. Class token, biases and LayerScale are
optional; the config is inferred from their presence.
"""

from hf_vit_seg.conversion.rules import Rule, alias, rename, split

WEIGHTS = "{p:weight|bias}"
LAYER = "layers.{layer}."
EMBEDDINGS = "embeddings."
STEM = EMBEDDINGS + "patch_embeddings.stem."
UNIT = STEM + "stages.{stage}.layers.{unit}."


def projection_names(layer: str) -> list[str]:
    """Return the names of the three projections of a fused one."""
    return [layer + f"attention.{which}_proj.{{p}}" for which in "qkv"]


def timm_layers(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the layers, with a prefix on each side; DeiT III's files name the scales gamma_1, gamma_2."""
    block, layer = source + "blocks.{layer}.", target + LAYER
    return (
        rename(block + "{norm:norm1|norm2}." + WEIGHTS, layer + "{norm}.{p}"),
        split(block + "attn.qkv." + WEIGHTS, projection_names(layer)),
        rename(block + "attn.proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "ls{n:1|2}.gamma", layer + "layer_scale{n}.gamma", optional=True),
        alias(rename(block + "gamma_{n:1|2}", layer + "layer_scale{n}.gamma")),
        rename(block + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
    )


def timm_tokens(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of class and distillation token."""
    embeddings = target + EMBEDDINGS
    return (
        rename(source + "cls_token", embeddings + "cls_token", optional=True),
        rename(source + "dist_token", embeddings + "distillation_token", optional=True),
    )


def timm_patches(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of patch convolution and position embeddings."""
    embeddings = target + EMBEDDINGS
    return (
        rename(source + "pos_embed", embeddings + "position_embeddings"),
        rename(source + "patch_embed.proj." + WEIGHTS, embeddings + "patch_embeddings.projection.{p}"),
    )
