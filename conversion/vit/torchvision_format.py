"""Vision Transformer of torchvision (.pth): fused projections, and positions of all tokens."""

from typing import Any

from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import Rule, alias, optional, rename, split
from hf_vit_seg.conversion.source import Form, Source

from .config_fields import ASSUMED_FIELDS, BILINEAR, ERF_NUMERICS, infer, sides
from .shared_names import EMBEDDINGS, LAYER, WEIGHTS, projection_names


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of the model without its head; files before 0.13 name the MLP's layers linear_1, linear_2."""
    block, layer = "encoder.layers.encoder_layer_{layer}.", target + LAYER
    embeddings = target + EMBEDDINGS
    return (
        rename("class_token", embeddings + "cls_token"),
        rename("conv_proj." + WEIGHTS, embeddings + "patch_embeddings.projection.{p}"),
        rename("encoder.pos_embedding", embeddings + "position_embeddings"),
        rename(block + "ln_{n:1|2}." + WEIGHTS, layer + "norm{n}.{p}"),
        split(block + "self_attention.in_proj_" + WEIGHTS, projection_names(layer)),
        rename(block + "self_attention.out_proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        optional(rename(block + "mlp.0." + WEIGHTS, layer + "mlp.fc1.{p}")),
        optional(rename(block + "mlp.3." + WEIGHTS, layer + "mlp.fc2.{p}")),
        alias(rename(block + "mlp.linear_{n:1|2}." + WEIGHTS, layer + "mlp.fc{n}.{p}")),
        rename("encoder.ln." + WEIGHTS, target + "norm.{p}"),
    )


def preprocessing(config: Any) -> dict[str, Any]:
    """Return the preprocessing: at 224, a crop out of 256; the larger models (SWAG) crop the whole short side."""
    size = sides(config.image_size)
    edge = 256 if size["height"] == 224 else size["height"]
    return {"size": {"shortest_edge": edge}, "do_center_crop": True, "crop_size": size, "resample": BILINEAR}


SETTINGS = {"stem": "patch", "use_distillation_token": False, "num_register_tokens": 0}
CLASSIFIER = (
    rename("heads.head." + WEIGHTS, "classifier.{p}"),
    rename("heads.pre_logits." + WEIGHTS, "pre_logits.{p}", optional=True),
)

SOURCE = Source(
    name="torchvision",
    title="Vision Transformer of torchvision (.pth)",
    forms=(
        Form(
            model="AutoModelForImageClassification",
            signature=("conv_proj.weight", "encoder.pos_embedding", "heads.head.weight"),
            rules=(*encoder("vit."), *CLASSIFIER),
            settings={**SETTINGS, "pooling": "token"},
            write=write_state_dict,
        ),
        Form(
            model="AutoModel",
            signature=("conv_proj.weight", "encoder.pos_embedding"),
            rules=encoder(""),
            settings=SETTINGS,
            write=write_state_dict,
        ),
    ),
    infer=infer,
    numerics={
        **ERF_NUMERICS,
        "position_resize_mode": "bicubic",
        "position_resize_align_corners": True,
        "position_resize_antialias": False,
    },
    assumed_fields=ASSUMED_FIELDS,
    preprocessing=preprocessing,
)
