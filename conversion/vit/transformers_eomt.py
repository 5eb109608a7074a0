"""EoMT of transformers (EomtForUniversalSegmentation), whose encoder is that of DINOv2 with registers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.files.writers import transformers_writer
from hf_vit_seg.conversion.layouts import Rearrange
from hf_vit_seg.conversion.rules import Rule, drop, rename
from hf_vit_seg.conversion.settings.preprocessing import UNIVERSAL
from hf_vit_seg.conversion.source import Form, Outgoing, Source, unsupported_form
from torch import Tensor

from hf_vit_seg.provenance import Provenance

from .config_fields import ASSUMED_FIELDS, infer
from .eomt import COMPUTED, EOMT, MASK_PROBABILITIES, MASK_STATE, observe_blocks, preprocessing
from .shared_names import EMBEDDINGS, LAYER, WEIGHTS

LOSS = ("class_weight", "mask_weight", "dice_weight", "no_object_weight")
POINTS = ("train_num_points", "oversample_ratio", "importance_sample_ratio")
# Our config fields, and their names in the config.json of transformers.
FIELDS = {
    **{name: name for name in (*ASSUMED_FIELDS, "image_size", "hidden_act", "layer_norm_eps", "initializer_range")},
    **{name: name for name in ("hidden_dropout_prob", "drop_path_rate", *LOSS, *POINTS)},
    "attention_probs_dropout_prob": "attention_dropout",
    "num_query_blocks": "num_blocks",
    "layer_scale_init_value": "layerscale_value",
}
FROM_SHAPES = (
    *("num_channels", "patch_size", "hidden_size", "num_hidden_layers"),
    *("num_queries", "num_upscale_blocks", "num_register_tokens"),
)
DINOV3 = (
    "it is EoMT with DINOv3, which has rotary positions, expected learned ones; train a query head on DINOv3 with "
    "architecture 'backbone'"
)


def rules(target: str, head: str) -> tuple[Rule, ...]:
    """Return the rules, whose names in memory and on disk are the same."""
    here, layer = target + EMBEDDINGS, target + LAYER
    upscale = "upscale_block.block.{block}."
    return (
        rename(EMBEDDINGS + "cls_token", here + "cls_token"),
        rename(EMBEDDINGS + "register_tokens", here + "register_tokens"),
        rename(EMBEDDINGS + "position_embeddings.weight", here + "position_embeddings", Rearrange("n d -> 1 n d")),
        rename(EMBEDDINGS + "patch_embeddings.projection." + WEIGHTS, here + "patch_embeddings.projection.{p}"),
        rename(LAYER + "{norm:norm1|norm2}." + WEIGHTS, layer + "{norm}.{p}"),
        rename(LAYER + "attention.{which:q_proj|k_proj|v_proj}." + WEIGHTS, layer + "attention.{which}.{p}"),
        rename(LAYER + "attention.out_proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(LAYER + "layer_scale{n:1|2}.lambda1", layer + "layer_scale{n}.gamma"),
        rename(LAYER + "mlp.{which:fc1|fc2}." + WEIGHTS, layer + "mlp.{which}.{p}"),
        rename("layernorm." + WEIGHTS, target + "norm.{p}"),
        rename("query.weight", head + "queries.weight"),
        rename("class_predictor." + WEIGHTS, head + "class_head.{p}"),
        rename("mask_head.{which:fc1|fc2|fc3}." + WEIGHTS, head + "mask_head.{which}.{p}"),
        rename(upscale + "conv1." + WEIGHTS, head + "upscale.{block}.conv1.{p}", optional=True),
        rename(upscale + "conv2.weight", head + "upscale.{block}.conv2.weight", optional=True),
        rename(upscale + "layernorm2d." + WEIGHTS, head + "upscale.{block}.norm.{p}", optional=True),
        drop(MASK_PROBABILITIES, MASK_STATE, optional=True),
        drop("criterion.empty_weight", COMPUTED, optional=True),
    )


def infer_from_source(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the number of blocks with queries, and whether they are masked."""
    return observe_blocks(tensors.get(MASK_PROBABILITIES))


def write(outgoing: Outgoing, path: Path) -> None:
    """Write a directory. ConversionError for grids that transformers' class does not have."""
    config: Any = outgoing.config
    ratio, rest = divmod(config.intermediate_size, config.hidden_size)
    sizes = {name: getattr(config, name) for name in ("image_size", "patch_size")}
    if wrong := {name: size for name, size in sizes.items() if not isinstance(size, int)}:
        raise ConversionError(f"EoMT of transformers has square sizes, this model has {wrong}: resize the model first")
    if rest:
        raise ConversionError(
            f"EoMT of transformers needs an intermediate_size that is a multiple of hidden_size {config.hidden_size}, "
            f"this model has {config.intermediate_size}"
        )
    probabilities = torch.full((config.num_query_blocks,), float(config.query_masked_inference))
    save = transformers_writer(
        "EomtConfig",
        "EomtForUniversalSegmentation",
        "EomtImageProcessor",
        FIELDS | {name: name for name in FROM_SHAPES},
        mlp_ratio=ratio,
    )
    save(replace(outgoing, tensors={**outgoing.tensors, MASK_PROBABILITIES: probabilities}), path)


SOURCE = Source(
    name="transformers-eomt",
    title="EoMT of transformers (a directory of save_pretrained, or its weights)",
    forms=(
        unsupported_form(("query.weight", "layers.0.attention.o_proj.weight", "mask_head.fc1.weight"), DINOV3),
        unsupported_form(
            ("query.weight", "layers.0.mlp.gate_proj.weight"), "it has gated MLPs (SwiGLU), which are not supported"
        ),
        Form(
            model=UNIVERSAL,
            signature=("query.weight", "layers.0.attention.out_proj.weight", "mask_head.fc1.weight"),
            rules=rules("vit.", "decode_head."),
            settings={
                **EOMT,
                "use_cls_token": True,
                "use_distillation_token": False,
                "position_embeddings_cover_prefix": False,
                "qkv_bias": True,
            },
            write=write,
            directory=True,
        ),
    ),
    infer=infer,
    infer_from_source=infer_from_source,
    numerics={
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": False,
        "position_resize_antialias": True,
    },
    settings=tuple(FIELDS),
    config_names=FIELDS,
    defaults={"layer_norm_eps": 1e-6, "hidden_act": "gelu", "num_query_blocks": 4},
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
    weights=Provenance(license="mit"),
    model_types=("eomt",),
)
