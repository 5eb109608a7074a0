"""SegFormer of mmsegmentation: fused projections, 1x1 convolutions, and another decode head."""

from hf_vit_seg.conversion.files.writers import write_state_dict, write_with_meta
from hf_vit_seg.conversion.layouts import POINTWISE
from hf_vit_seg.conversion.rules import Rule, rename, split
from hf_vit_seg.conversion.source import Form, Source

from .config_fields import ASSUMED_FIELDS, NVIDIA, infer
from .shared_names import BATCH_NORM, HEAD, LAYER, STAGE, WEIGHTS


def encoder(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the Mix Transformer: a stage is a list of patch embedding (0), blocks (1) and norm (2)."""
    stage, block = source + "layers.{stage}.", source + "layers.{stage}.1.{layer}."
    layer = target + LAYER
    return (
        rename(stage + "0.projection." + WEIGHTS, target + STAGE + "patch_embeddings.projection.{p}"),
        rename(stage + "0.norm." + WEIGHTS, target + STAGE + "patch_embeddings.norm.{p}"),
        rename(block + "norm1." + WEIGHTS, layer + "norm1.{p}"),
        split(
            block + "attn.attn.in_proj_" + WEIGHTS,
            [layer + f"attention.{which}_proj.{{p}}" for which in "qkv"],
        ),
        rename(block + "attn.attn.out_proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "attn.sr." + WEIGHTS, layer + "attention.reduction.{p}", optional=True),
        rename(block + "attn.norm." + WEIGHTS, layer + "attention.reduction_norm.{p}", optional=True),
        rename(block + "norm2." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "ffn.layers.0.weight", layer + "mlp.fc1.weight", POINTWISE),
        rename(block + "ffn.layers.0.bias", layer + "mlp.fc1.bias"),
        rename(block + "ffn.layers.1." + WEIGHTS, layer + "mlp.dwconv.{p}"),
        rename(block + "ffn.layers.4.weight", layer + "mlp.fc2.weight", POINTWISE),
        rename(block + "ffn.layers.4.bias", layer + "mlp.fc2.bias"),
        rename(stage + "2." + WEIGHTS, target + STAGE + "norm.{p}"),
    )


DECODER = (
    rename("decode_head.convs.{level}.conv.weight", HEAD + "projections.{level}.weight", POINTWISE),
    rename("decode_head.convs.{level}.bn." + BATCH_NORM, HEAD + "projection_norms.{level}.{p}"),
    rename("decode_head.fusion_conv.conv.weight", HEAD + "fuse.weight"),
    rename("decode_head.fusion_conv.bn." + BATCH_NORM, HEAD + "fuse_norm.{p}"),
    rename("decode_head.conv_seg." + WEIGHTS, HEAD + "classifier.{p}"),
)

SOURCE = Source(
    name="mmseg",
    title="SegFormer of mmsegmentation (.pth)",
    forms=(
        Form(
            model="AutoModelForSemanticSegmentation",
            signature=("backbone.layers.0.0.projection.weight", "decode_head.fusion_conv.conv.weight"),
            rules=(*encoder("backbone.", "segformer."), *DECODER),
            settings={"decode_head_flavor": "mmseg"},
            write=write_with_meta,
        ),
        Form(
            model="AutoModel",
            signature=("layers.0.0.projection.weight",),
            rules=encoder("", ""),
            write=write_state_dict,
        ),
        Form(
            model="AutoModel",
            signature=("backbone.layers.0.0.projection.weight",),
            rules=encoder("backbone.", ""),
        ),
    ),
    infer=infer,
    numerics={
        "layer_norm_eps": 1e-6,
        "patch_norm_eps": 1e-6,
        "reduction_norm_eps": 1e-6,
        "decode_head_norm_eps": 1e-5,
    },
    assumed_fields=ASSUMED_FIELDS,
    weights=NVIDIA,
)
