"""Peak memory, each in a separate process."""

import sys
from functools import partial

import pytest
import torch

from benchmarks.measuring import peak_memory
from hf_vit_seg.models.all_mlp_head import AllMLPHead

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc"),
]

CHANNELS, WIDTH, CLASSES = (64, 128, 320, 512), 768, 150


def pyramid(side: int) -> list[torch.Tensor]:
    """Features of B2's encoder for an image of side x side pixels."""
    return [torch.randn(1, channels, side // 4 // 2**i, side // 4 // 2**i) for i, channels in enumerate(CHANNELS)]


def our_head(side: int):
    maps = [feature_map.contiguous(memory_format=torch.channels_last) for feature_map in pyramid(side)]
    return partial(without_grad, AllMLPHead(CHANNELS, WIDTH, CLASSES).eval(), maps)


def transformers_head(side: int):
    from transformers import SegformerConfig
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    config = SegformerConfig(hidden_sizes=CHANNELS, decoder_hidden_size=WIDTH, num_labels=CLASSES)
    return partial(without_grad, SegformerDecodeHead(config).eval(), pyramid(side))


@torch.inference_mode()
def without_grad(head, maps):
    return head(maps)


def test_b2_decode_head_uses_a_third_of_the_memory():
    ours, theirs = (peak_memory(partial(head, 1024), "cpu") for head in (our_head, transformers_head))
    print(f"B2's decode head at 1024x1024: {ours:.0f} MiB, transformers' {theirs:.0f} MiB")
    assert ours <= theirs / 3
