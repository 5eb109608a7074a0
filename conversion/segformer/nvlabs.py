"""SegFormer by its authors (NVlabs): segmentation models, and Mix Transformers with and without an ImageNet head."""

from hf_vit_seg.conversion.files.writers import write_state_dict, write_with_meta
from hf_vit_seg.conversion.rules import drop, rename
from hf_vit_seg.conversion.source import Form, Source

from .config_fields import ASSUMED_FIELDS, NVIDIA, RELEASED_NUMERICS, infer
from .shared_names import BATCH_NORM, HEAD, WEIGHTS, nvlabs_encoder

DECODER = (
    rename("decode_head.linear_c{level+1}.proj." + WEIGHTS, HEAD + "projections.{level}.{p}"),
    rename("decode_head.linear_fuse.conv.weight", HEAD + "fuse.weight"),
    rename("decode_head.linear_fuse.bn." + BATCH_NORM, HEAD + "fuse_norm.{p}"),
    rename("decode_head.linear_pred." + WEIGHTS, HEAD + "classifier.{p}"),
    drop("decode_head.conv_seg." + WEIGHTS, "a layer that the reference does not use", optional=True),
)

SOURCE = Source(
    name="nvlabs",
    title="SegFormer by its authors (NVlabs/SegFormer, .pth)",
    forms=(
        Form(
            model="AutoModelForSemanticSegmentation",
            signature=("backbone.patch_embed1.proj.weight", "decode_head.linear_fuse.conv.weight"),
            rules=(*nvlabs_encoder("backbone.", "segformer."), *DECODER),
            settings={"decode_head_flavor": "nvlabs"},
            write=write_with_meta,
        ),
        Form(
            model="AutoModelForImageClassification",
            signature=("patch_embed1.proj.weight", "head.weight"),
            rules=(*nvlabs_encoder("", "segformer."), rename("head." + WEIGHTS, "classifier.{p}")),
            write=write_state_dict,
        ),
        Form(
            model="AutoModel",
            signature=("patch_embed1.proj.weight",),
            rules=nvlabs_encoder("", ""),
            write=write_state_dict,
        ),
        Form(
            model="AutoModel",
            signature=("backbone.patch_embed1.proj.weight",),
            rules=nvlabs_encoder("backbone.", ""),
        ),
    ),
    infer=infer,
    numerics=RELEASED_NUMERICS,
    assumed_fields=ASSUMED_FIELDS,
    weights=NVIDIA,
)
