"""Tables of names that several SegFormer sources share.

segmentation_models_pytorch uses the encoder of NVlabs with another prefix. Reductions are optional, because a stage
with R = 1 has none.
"""

from hf_vit_seg.conversion.rules import Rule, rename, split

WEIGHTS = "{p:weight|bias}"
BATCH_NORM = "{p:weight|bias|running_mean|running_var|num_batches_tracked}"
STAGE = "stages.{stage}."
LAYER = STAGE + "layers.{layer}."
HEAD = "decode_head."


def nvlabs_encoder(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of the Mix Transformer with the names of NVlabs, and a prefix on each side."""
    block, layer = source + "block{stage+1}.{layer}.", target + LAYER
    return (
        rename(
            source + "patch_embed{stage+1}.proj." + WEIGHTS,
            target + STAGE + "patch_embeddings.projection.{p}",
        ),
        rename(source + "patch_embed{stage+1}.norm." + WEIGHTS, target + STAGE + "patch_embeddings.norm.{p}"),
        rename(block + "norm1." + WEIGHTS, layer + "norm1.{p}"),
        rename(block + "attn.q." + WEIGHTS, layer + "attention.q_proj.{p}"),
        split(
            block + "attn.kv." + WEIGHTS,
            (layer + "attention.k_proj.{p}", layer + "attention.v_proj.{p}"),
        ),
        rename(block + "attn.proj." + WEIGHTS, layer + "attention.o_proj.{p}"),
        rename(block + "attn.sr." + WEIGHTS, layer + "attention.reduction.{p}", optional=True),
        rename(block + "attn.norm." + WEIGHTS, layer + "attention.reduction_norm.{p}", optional=True),
        rename(block + "norm2." + WEIGHTS, layer + "norm2.{p}"),
        rename(block + "mlp.fc1." + WEIGHTS, layer + "mlp.fc1.{p}"),
        rename(block + "mlp.dwconv.dwconv." + WEIGHTS, layer + "mlp.dwconv.{p}"),
        rename(block + "mlp.fc2." + WEIGHTS, layer + "mlp.fc2.{p}"),
        rename(source + "norm{stage+1}." + WEIGHTS, target + STAGE + "norm.{p}"),
    )
