"""Segmenter (arXiv 2105.05633, rstrudel/segmenter, .pth): a ViT with a linear head or a mask transformer."""

from typing import Any

from hf_vit_seg.conversion.files.writers import write_as_model
from hf_vit_seg.conversion.layouts import Rearrange
from hf_vit_seg.conversion.rules import Rule, drop, rename
from hf_vit_seg.conversion.settings.preprocessing import SEGMENTATION
from hf_vit_seg.conversion.source import Form, Source

from hf_vit_seg.provenance import Provenance

from .config_fields import ASSUMED_FIELDS, HALF, infer, resize_settings
from .shared_names import WEIGHTS, timm_layers, timm_patches, timm_tokens

ENCODER, DECODER, HEAD = "encoder.", "decoder.", "decode_head."
MATRIX = Rearrange("i o -> o i")  # stored for x @ W
UNUSED = "the pretraining classifier, which the reference does not use"


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of the ViT with its unused head."""
    return (
        *timm_tokens(ENCODER, target),
        *timm_patches(ENCODER, target),
        *timm_layers(ENCODER, target),
        rename("encoder.norm." + WEIGHTS, target + "norm.{p}"),
        drop("encoder.{head:head|head_dist|pre_logits.fc}." + WEIGHTS, UNUSED, optional=True),
    )


MASK_TRANSFORMER = (
    rename(DECODER + "cls_emb", HEAD + "class_embeddings"),
    rename(DECODER + "proj_dec." + WEIGHTS, HEAD + "projection.{p}"),
    rename(DECODER + "proj_patch", HEAD + "patch_projection.weight", MATRIX),
    rename(DECODER + "proj_classes", HEAD + "class_projection.weight", MATRIX),
    *timm_layers(DECODER, HEAD),
    rename(DECODER + "decoder_norm." + WEIGHTS, HEAD + "norm.{p}"),
    rename(DECODER + "mask_norm." + WEIGHTS, HEAD + "mask_norm.{p}"),
)


def preprocessing(config: Any) -> dict[str, Any]:
    """Return values from -1 to 1, as for Google's weights; models based on DeiT need ImageNet's mean instead."""
    return resize_settings(config) | HALF


SOURCE = Source(
    name="segmenter",
    title="Segmenter by its authors (rstrudel/segmenter, .pth)",
    forms=(
        Form(
            model=SEGMENTATION,
            signature=("encoder.blocks.0.attn.qkv.weight", "decoder.cls_emb"),
            rules=(*encoder("vit."), *MASK_TRANSFORMER),
            settings={"decode_head": "mask_transformer"},
            write=write_as_model,
        ),
        Form(
            model=SEGMENTATION,
            signature=("encoder.blocks.0.attn.qkv.weight", "decoder.head.weight"),
            rules=(*encoder("vit."), rename("decoder.head." + WEIGHTS, HEAD + "classifier.{p}")),
            settings={"decode_head": "linear"},
            write=write_as_model,
        ),
    ),
    infer=infer,
    numerics={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "decode_head_norm_eps": 1e-5,
        "position_resize_mode": "bilinear",
        "position_resize_align_corners": False,
        "position_resize_antialias": False,
    },
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
    notes=("the encoder's unused head is not exported",),
    weights=Provenance(license="mit"),
)
