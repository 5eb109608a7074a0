"""EoMT by its authors (arXiv 2503.19108, tue-mps/eomt): a ViT of timm with queries in its last blocks."""

from collections.abc import Mapping
from typing import Any

from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import Rule, drop, rename
from hf_vit_seg.conversion.settings.preprocessing import UNIVERSAL
from hf_vit_seg.conversion.source import Form, Source, unsupported_form
from torch import Tensor

from hf_vit_seg.provenance import Provenance

from .config_fields import ASSUMED_FIELDS, ERF_NUMERICS, infer, sides
from .shared_names import EMBEDDINGS, WEIGHTS, timm_layers, timm_patches, timm_tokens

NETWORK = "network."
BACKBONE = NETWORK + "encoder.backbone."
HEAD = "decode_head."
MASK_PROBABILITIES = "attn_mask_probs"
MASK_STATE = "the state of mask annealing, which is a setting here (query_masked_inference)"
COMPUTED = "the weights of classes in the loss, which the config determines"
PIXELS = "mean and standard deviation of pixels, which the image processor has"
EOMT: dict[str, Any] = {"decode_head": "query", "stem": "patch", "use_final_norm": True}
LINEARS = ((0, "fc1"), (2, "fc2"), (4, "fc3"))


def preprocessing(config: Any) -> dict[str, Any]:
    """Return settings that resize the whole image to the training size; the mean and deviation are ImageNet's."""
    return {"size": sides(config.image_size)}


def observe_blocks(probabilities: Tensor | None) -> dict[str, Any]:
    """Read the number of blocks with queries, and whether inference is masked, from the probabilities of masks."""
    if probabilities is None:
        return {}
    masked = not probabilities.is_meta and bool((probabilities > 0).any())  # values are read after shapes
    return {"num_query_blocks": len(probabilities), "query_masked_inference": masked}


def infer_from_source(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the number of blocks with queries; the authors evaluate trained models without masks."""
    return observe_blocks(tensors.get(NETWORK + MASK_PROBABILITIES)) | {"query_masked_inference": False}


def rules() -> tuple[Rule, ...]:
    """Return the rules of all parts: encoder, upscaling blocks, queries and heads."""
    upscale, target = NETWORK + "upscale.{block}.", "vit."
    return (
        *timm_tokens(BACKBONE, target),
        rename(BACKBONE + "reg_token", target + EMBEDDINGS + "register_tokens", optional=True),
        *timm_patches(BACKBONE, target),
        *timm_layers(BACKBONE, target),
        rename(BACKBONE + "norm." + WEIGHTS, target + "norm.{p}"),
        rename(NETWORK + "q.weight", HEAD + "queries.weight"),
        rename(NETWORK + "class_head." + WEIGHTS, HEAD + "class_head.{p}"),
        *(rename(f"{NETWORK}mask_head.{n}." + WEIGHTS, f"{HEAD}mask_head.{name}.{{p}}") for n, name in LINEARS),
        rename(upscale + "conv1." + WEIGHTS, HEAD + "upscale.{block}.conv1.{p}"),
        rename(upscale + "conv2.weight", HEAD + "upscale.{block}.conv2.weight"),
        rename(upscale + "norm." + WEIGHTS, HEAD + "upscale.{block}.norm.{p}"),
        drop(NETWORK + MASK_PROBABILITIES, MASK_STATE, optional=True),
        drop(NETWORK + "encoder.pixel_{which:mean|std}", PIXELS, optional=True),
        drop("criterion.empty_weight", COMPUTED, optional=True),
    )


SOURCE = Source(
    name="eomt",
    title="EoMT by its authors (tue-mps/eomt)",
    forms=(
        unsupported_form(
            (NETWORK + "q.weight", BACKBONE + "rope.periods"),
            "it has rotary positions (DINOv3), expected learned ones; train a query head on DINOv3 with architecture "
            "'backbone'",
        ),
        unsupported_form(
            (NETWORK + "q.weight", BACKBONE + "blocks.0.mlp.w12.weight"),
            "it has gated MLPs (SwiGLU, as in DINOv2 giant), which are not supported",
        ),
        Form(
            model=UNIVERSAL,
            signature=(NETWORK + "q.weight", BACKBONE + "blocks.0.attn.qkv.weight"),
            rules=rules(),
            settings=EOMT,
            write=write_state_dict,
        ),
    ),
    infer=infer,
    infer_from_source=infer_from_source,
    numerics={
        **ERF_NUMERICS,
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": False,
        "position_resize_antialias": True,
    },
    settings=("num_query_blocks", *ASSUMED_FIELDS),
    config_names={"num_query_blocks": "num_blocks"},
    defaults={"num_query_blocks": 4},
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
    notes=("pixel_mean and pixel_std of the encoder, and the state of mask annealing, are not exported",),
    weights=Provenance(license="mit"),
)
