"""Vision Transformer of Google (google-research/vision_transformer, .npz), pure and hybrid.

Published files number the modules of a block as flax did before linen (MultiHeadDotProductAttention_1, LayerNorm_2,
MlpBlock_3); files saved by current code have linen's numbers (0, 1, 0). Both are read; exports have the published
numbers, which the reference converts when it loads them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hf_vit_seg.conversion.files.writers import write_npz
from hf_vit_seg.conversion.layouts import KERNEL_FIRST, TRANSPOSE, Rearrange, Vector
from hf_vit_seg.conversion.rules import Rule, alias, optional, rename
from hf_vit_seg.conversion.source import Form, Source, unsupported_form
from torch import Tensor

from hf_vit_seg.provenance import Provenance

from .config_fields import HALF, USUAL_STEM, infer, resize_settings
from .shared_names import EMBEDDINGS, LAYER, STEM, UNIT

NORM = (("scale", "weight"), ("bias", "bias"))
BLOCK = "Transformer/encoderblock_{layer}/"
POSITIONS = "Transformer/posembed_input/pos_embedding"
PROJECTION = Rearrange("D H d -> (H d) D")
PROJECTION_BIAS = Rearrange("H d -> (H d)")
OUTPUT = Rearrange("H d D -> D (H d)")
GROUPS = Vector(4)  # (1, 1, 1, C) in published files, (C,) with linen

NUMERICS = {
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "position_resize_mode": "bilinear",
    "position_resize_align_corners": True,
    "position_resize_antialias": False,
}
Stem = Callable[[str], tuple[Rule, ...]]
STEM_NUMERICS = {
    "stem_weight_standardization_eps": 1e-5,
    "stem_weight_standardization_mode": "std_plus_eps",
    "stem_group_norm_eps": 1e-6,
    "stem_shortcut_norm_eps": None,
}


def norm(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of a LayerNorm."""
    return tuple(rename(f"{source}/{there}", f"{target}.{here}") for there, here in NORM)


def dense(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of a linear layer."""
    return (
        rename(source + "/kernel", target + ".weight", TRANSPOSE),
        rename(source + "/bias", target + ".bias"),
    )


def attention(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of attention, whose kernels have an axis of heads."""
    rules = [
        rule
        for there, here in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
        for rule in (
            rename(f"{source}/{there}/kernel", f"{target}.{here}.weight", PROJECTION),
            rename(f"{source}/{there}/bias", f"{target}.{here}.bias", PROJECTION_BIAS),
        )
    ]
    return (
        *rules,
        rename(source + "/out/kernel", target + ".o_proj.weight", OUTPUT),
        rename(source + "/out/bias", target + ".o_proj.bias"),
    )


def block_rules(target: str, attention_number: int, norm_number: int, mlp_number: int) -> tuple[Rule, ...]:
    """Return the rules of a block's modules whose numbers depend on the flax version."""
    layer = target + LAYER
    return (
        *attention(f"{BLOCK}MultiHeadDotProductAttention_{attention_number}", layer + "attention"),
        *norm(f"{BLOCK}LayerNorm_{norm_number}", layer + "norm2"),
        *dense(f"{BLOCK}MlpBlock_{mlp_number}/Dense_0", layer + "mlp.fc1"),
        *dense(f"{BLOCK}MlpBlock_{mlp_number}/Dense_1", layer + "mlp.fc2"),
    )


def encoder(target: str) -> tuple[Rule, ...]:
    """Return the rules of embeddings and layers of the pure ViT."""
    embeddings = target + EMBEDDINGS
    return (
        rename("cls", embeddings + "cls_token"),
        rename("embedding/kernel", embeddings + "patch_embeddings.projection.weight", KERNEL_FIRST),
        rename("embedding/bias", embeddings + "patch_embeddings.projection.bias"),
        rename(POSITIONS, embeddings + "position_embeddings"),
        *norm(BLOCK + "LayerNorm_0", target + LAYER + "norm1"),
        *(optional(rule) for rule in block_rules(target, 1, 2, 3)),
        *(alias(rule) for rule in block_rules(target, 0, 1, 0)),
        *norm("Transformer/encoder_norm", target + "norm"),
    )


def convolution(source: str, target: str) -> Rule:
    """Return the rule of a convolution without bias."""
    return rename(source + "/kernel", target + ".weight", KERNEL_FIRST)


def group_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of a GroupNorm."""
    return tuple(rename(f"{source}/{there}", f"{target}.{here}", GROUPS) for there, here in NORM)


def stem(target: str) -> tuple[Rule, ...]:
    """Return the rules of the hybrid's ResNet; R+Ti/16 has only its root."""
    unit, here = "block{stage+1}/unit{unit+1}/", target + UNIT
    units = (
        convolution(unit + "conv{n:1|2|3}", here + "conv{n}"),
        *group_norm(unit + "gn{n:1|2|3}", here + "norm{n}"),
        convolution(unit + "conv_proj", here + "shortcut"),
        *group_norm(unit + "gn_proj", here + "shortcut_norm"),
    )
    return (
        convolution("conv_root", target + STEM + "conv"),
        *group_norm("gn_root", target + STEM + "norm"),
        *(optional(rule) for rule in units),
    )


def forms(
    signature: tuple[str, ...], stem_settings: Mapping[str, Any], numerics: Mapping[str, Any], stem_of: Stem
) -> tuple[Form, ...]:
    """Return the forms of classifiers, those of 2020 with `pre_logits` first, and of encoders without a head."""
    pre_logits = (optional(rule) for rule in dense("pre_logits", "pre_logits"))
    classifier = Form(
        model="AutoModelForImageClassification",
        signature=(*signature, "head/kernel"),
        rules=(*encoder("vit."), *stem_of("vit."), *pre_logits, *dense("head", "classifier")),
        settings={**stem_settings, "pooling": "token"},
        numerics=numerics,
        write=write_npz,
    )
    return (
        replace(classifier, signature=(*signature, "pre_logits/kernel", "head/kernel"), notes=(ZEROS,), write=None),
        classifier,
        Form(
            model="AutoModel",
            signature=signature,
            rules=(*encoder(""), *stem_of("")),
            settings=stem_settings,
            numerics=numerics,
            write=write_npz,
        ),
    )


ZEROS = "in the files of 2020 with pre_logits, the head of 21843 classes is all zeros; fine-tune it"
BIG_VISION = (
    "it has the layout of google-research/big_vision (no position of the class token, blocks stacked along an axis, or "
    "an attention pooling head), expected that of google-research/vision_transformer; convert it with big_vision's "
    "tools first"
)


def heads(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the number of heads from an axis of the kernels."""
    for number in (1, 0):
        kernel = state.get(f"Transformer/encoderblock_0/MultiHeadDotProductAttention_{number}/query/kernel")
        if kernel is not None:
            return {"num_attention_heads": kernel.shape[1]}
    return {}


def preprocessing(config: Any) -> dict[str, Any]:
    """Return settings that resize the whole image to the training size, with values from -1 to 1."""
    return resize_settings(config) | HALF


SOURCE = Source(
    name="google",
    title="Vision Transformer of Google (google-research/vision_transformer, .npz)",
    forms=(
        *(
            unsupported_form(signature, BIG_VISION)
            for signature in (
                ("pos_embedding", "embedding/kernel"),
                ("Transformer/encoderblock/LayerNorm_0/scale",),
                ("MAPHead_0/probe",),
                ("img/embedding/kernel",),
            )
        ),
        *forms(("conv_root/kernel", POSITIONS), USUAL_STEM, STEM_NUMERICS, stem),
        *forms(("embedding/kernel", POSITIONS), {"stem": "patch"}, {}, lambda target: ()),
    ),
    infer=infer,
    infer_from_source=heads,
    numerics=NUMERICS,
    preprocessing=preprocessing,
    sizes=lambda config: {"H": config.num_attention_heads},
    weights=Provenance(license="apache-2.0"),
)
