"""Segformer of segmentation_models_pytorch: the encoder of NVlabs; the head numbers levels in reverse order."""

from hf_vit_seg.conversion.files.writers import write_state_dict
from hf_vit_seg.conversion.rules import rename
from hf_vit_seg.conversion.source import Form, Source

from .config_fields import ASSUMED_FIELDS, NVIDIA, RELEASED_NUMERICS, infer
from .shared_names import BATCH_NORM, HEAD, WEIGHTS, nvlabs_encoder

DECODER = (
    rename("decoder.mlp_stage.{3-level}.linear." + WEIGHTS, HEAD + "projections.{level}.{p}"),
    rename("decoder.fuse_stage.0.weight", HEAD + "fuse.weight"),
    rename("decoder.fuse_stage.1." + BATCH_NORM, HEAD + "fuse_norm.{p}"),
    rename("segmentation_head.0." + WEIGHTS, HEAD + "classifier.{p}"),
)

SOURCE = Source(
    name="smp",
    title="Segformer of segmentation_models_pytorch",
    forms=(
        Form(
            model="AutoModelForSemanticSegmentation",
            signature=("encoder.patch_embed1.proj.weight", "decoder.mlp_stage.0.linear.weight"),
            rules=(*nvlabs_encoder("encoder.", "segformer."), *DECODER),
            settings={"decode_head_flavor": "nvlabs"},
            write=write_state_dict,
        ),
    ),
    infer=infer,
    numerics=RELEASED_NUMERICS,
    assumed_fields=ASSUMED_FIELDS,
    notes=(
        "segmentation_models_pytorch upsamples logits with align_corners=True, this package with False: logits at 1/4 "
        "resolution are equal, those at full resolution are not",
    ),
    weights=NVIDIA,
)
