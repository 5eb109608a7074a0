"""The tables of names that several sources of Vision Transformers share.

timm's names are also those of DeiT, MAE, DINO, Segmenter and ViTPose; only the prefix differs. Class token, biases,
LayerScale and the like are optional everywhere: whether they are there is read into the config.
"""

from hf_vit_seg.conversion.rules import Rule, alias, rename, split

WEIGHTS = "{p:weight|bias}"
LAYER = "layers.{layer}."
EMBEDDINGS = "embeddings."
STEM = EMBEDDINGS + "patch_embeddings.stem."
UNIT = STEM + "stages.{stage}.layers.{unit}."


def qkv_of(layer: str) -> list[str]:
    """The three projections into which a fused one is cut."""
    return [layer + f"attention.{which}_proj.{{p}}" for which in "qkv"]


def timm_layers(source: str, target: str) -> tuple[Rule, ...]:
    """The transformer's layers behind a prefix on either side; DeiT III's files call the scales gamma_1, gamma_2."""
    block, layer = source + "blocks.{layer}.", target + LAYER
    return (
        rename(block + "{norm:norm1|norm2}." + WEIGHTS, layer + "{norm}.{p}"),
        split(block + "attn.qkv." + WEIGHTS, qkv_of(layer)),
        rename(block + "attn.proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "ls{n:1|2}.gamma", layer + "layer_scale{n}.gamma", optional=True),
        alias(rename(block + "gamma_{n:1|2}", layer + "layer_scale{n}.gamma")),
        rename(block + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
    )


def timm_tokens(source: str, target: str) -> tuple[Rule, ...]:
    """Class and distillation token."""
    embeddings = target + EMBEDDINGS
    return (
        rename(source + "cls_token", embeddings + "cls_token", optional=True),
        rename(source + "dist_token", embeddings + "distillation_token", optional=True),
    )


def timm_patches(source: str, target: str) -> tuple[Rule, ...]:
    """The patch convolution and the positions."""
    embeddings = target + EMBEDDINGS
    return (
        rename(source + "pos_embed", embeddings + "position_embeddings"),
        rename(source + "patch_embed.proj." + WEIGHTS, embeddings + "patch_embeddings.projection.{p}"),
    )
