"""Token merging: which tokens are merged, that nothing is lost, and where it applies."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import randomize_weights

from hf_vit_seg import architectures
from hf_vit_seg.models.token_merging import encode_merging, merge, single_patches

SEGMENTATION = "AutoModelForSemanticSegmentation"
PREFIX = 2


def segmenter(**fields) -> torch.nn.Module:
    vit = architectures()["vit"]
    config = vit.variant_config("tiny", num_labels=5, **fields)
    return randomize_weights(vit.models[SEGMENTATION](config)).eval()


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 30), st.integers(0, 999))
def test_merged_tokens_are_means_of_their_patches(images, length, fewer, seed):
    patches = torch.randn(images, length, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    merged = merge(merge(single_patches(patches), fewer), fewer)
    left = length - min(fewer, length // 2)
    left -= min(fewer, left // 2)
    assert merged.tokens.shape == (images, left, 6)
    for image in range(images):
        for place in range(left):
            mine = patches[image, merged.slots[image] == place]
            assert len(mine) == merged.counts[image, place, 0] > 0
            torch.testing.assert_close(mine.mean(0), merged.tokens[image, place])


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(2, 12), st.integers(0, 999))
def test_equal_patches_merge_first_without_loss(images, count, seed):
    generator = torch.Generator().manual_seed(seed)
    different = torch.randn(images, count, 8, generator=generator, dtype=torch.float64)
    patches = different.repeat_interleave(2, dim=1)  # neighbors are equal: an even and an odd position
    merged = merge(single_patches(patches), count)
    torch.testing.assert_close(merged.unmerge(), patches)
    assert (merged.counts == 2).all()


def test_images_of_a_batch_are_independent():
    model, pixel_values = segmenter(token_merging=0.6), torch.randn(3, 3, 61, 45)
    with torch.no_grad():
        together = model(pixel_values).logits
        alone = torch.cat([model(image[None]).logits for image in pixel_values])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_prefix_is_preserved_and_patch_count_decreases():
    seen = []

    class Layer(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            seen.append(hidden_states)
            return hidden_states

    tokens = torch.randn(2, PREFIX + 20, 4)
    encoded = encode_merging([Layer() for _ in range(6)], tokens, PREFIX, 0.5)
    assert [states.shape[1] - PREFIX for states in seen] == [20, 18, 16, 14, 12, 10]
    assert all(torch.equal(states[:, :PREFIX], tokens[:, :PREFIX]) for states in (*seen, encoded))
    assert encoded.shape == tokens.shape


@pytest.mark.parametrize("head", ["linear", "mask_transformer"])
def test_ratio_below_one_patch_changes_nothing(head):
    model, pixel_values = segmenter(decode_head=head), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        plain = model(pixel_values).logits
        model.config.token_merging = 1e-6
        torch.testing.assert_close(model(pixel_values).logits, plain)
        model.config.token_merging = 0.6
        merged = model(pixel_values).logits
    assert merged.shape == plain.shape and not torch.allclose(merged, plain)


def test_gradients_pass_through_merging():
    model = segmenter(token_merging=0.6).train()
    model.activation_checkpointing_enable()
    labels = torch.randint(5, (2, 64, 48))
    model(torch.randn(2, 3, 64, 48), labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"token_merging": 1.0}, "below 1"),
        ({"token_merging": -0.1}, "below 1"),
        ({"token_merging": 0.5, "decode_head": "feature_pyramid"}, "feature_pyramid"),
    ],
)
def test_unsupported_models_raise(fields, words):
    with pytest.raises(StrictDataclassClassValidationError, match=words):
        segmenter(**fields)


def test_export_with_merging_raises():
    with pytest.raises(ValueError, match="cannot be exported"), torch.no_grad():
        torch.jit.trace(segmenter(token_merging=0.5), torch.randn(1, 3, 64, 48), strict=False)
