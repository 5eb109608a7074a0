"""Mask annealing: the published phases, and which models have it."""

import pytest

from hf_vit_seg import architectures
from hf_vit_seg.training.optimization.mask_annealing import MaskAnnealing, mask_probability
from hf_vit_seg.training.recipe.schema import ScheduleRecipe

# Of the authors' recipe for COCO panoptic with ViT-L, 640 x 640: four blocks, 12 epochs.
STEPS, PUBLISHED = 88692, ((14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910))


@pytest.mark.parametrize("block", range(4))
def test_published_phases(block):
    start, end = PUBLISHED[block]
    assert mask_probability(block, 4, (start - 1) / STEPS, 0.9) == 1
    assert mask_probability(block, 4, (start + 1) / STEPS, 0.9) < 1
    assert mask_probability(block, 4, (start + end) / 2 / STEPS, 0.9) == pytest.approx(0.5**0.9)
    assert mask_probability(block, 4, (end - 1) / STEPS, 0.9) > 0
    assert mask_probability(block, 4, (end + 1) / STEPS, 0.9) == 0


def model(name: str, auto: str, **fields):
    architecture = architectures()[name]
    return architecture.models[auto](architecture.variant_config("tiny", num_labels=3, **fields))


def test_probabilities_of_a_model():
    eomt = model("vit", "AutoModelForUniversalSegmentation", num_query_blocks=3)
    annealing = MaskAnnealing.of(eomt, ScheduleRecipe())
    assert annealing is not None and eomt.mask_probability == [1, 1, 1]
    annealing.set(1, 100)
    assert eomt.mask_probability == [1, 1, 1]
    annealing.set(51, 100)
    assert eomt.mask_probability == pytest.approx([0, 0.5**0.9, 1])
    annealing.set(100, 100)
    assert eomt.mask_probability == [0, 0, 0]


def test_models_without_annealing():
    recipe = ScheduleRecipe()
    assert MaskAnnealing.of(model("vit", "AutoModelForSemanticSegmentation"), recipe) is None
    masked = model("vit", "AutoModelForUniversalSegmentation", query_masked_inference=True)
    assert MaskAnnealing.of(masked, recipe) is None
    decoder = model("segformer", "AutoModelForUniversalSegmentation", query_num_heads=4)
    assert MaskAnnealing.of(decoder, recipe) is None  # masked in inference, as in Mask2Former
