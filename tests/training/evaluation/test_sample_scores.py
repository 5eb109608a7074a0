"""The validation loss and the scores of single samples."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy, interpolate

from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.training.evaluation.sample_scores import ValidationLoss, gather_scores, update_by_image
from hf_vit_seg.training.losses.objectives import build_logits_objective
from hf_vit_seg.training.recipe.schema import Recipe

RECIPE = Recipe.model_validate(
    {"model": {"architecture": "vit", "variant": "tiny"}, "data": {"train": {"kind": "folders"}}, "loop": {"steps": 1}}
)


def test_loss_of_batches_is_the_mean_over_all_pixels():
    loss = ValidationLoss(build_logits_objective(RECIPE, 3, 255, None, None))
    torch.manual_seed(0)
    sums = pixels = 0.0
    for batch, ignored in ((2, 5), (1, 30)):
        logits, labels = torch.randn(batch, 3, 4, 4), torch.randint(0, 3, (batch, 8, 8))
        labels.view(-1)[:ignored] = 255
        loss.update(logits, labels)
        large = interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
        sums += float(cross_entropy(large, labels, ignore_index=255, reduction="sum"))
        pixels += int((labels != 255).sum())
    assert loss.scores(Accelerator(cpu=True))["loss"] == pytest.approx(sums / pixels, rel=1e-5)


def test_no_loss_without_an_objective_or_a_batch():
    accelerator = Accelerator(cpu=True)
    none = ValidationLoss(None)
    none.update(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    assert none.scores(accelerator) == {}
    assert ValidationLoss(build_logits_objective(RECIPE, 3, 255, None, None)).scores(accelerator) == {}


def test_image_scores_are_mean_iou_and_add_up_to_the_batch():
    torch.manual_seed(0)
    maps, labels = torch.randint(0, 5, (4, 16, 16)), torch.randint(0, 3, (4, 16, 16))
    labels[0, :4], labels[3] = 255, 255
    total, batch = ConfusionMatrix(6, 255), ConfusionMatrix(6, 255)
    found = update_by_image(total, maps.to(torch.uint8), labels)
    batch.update(maps, labels)
    assert torch.equal(total.counts, batch.counts)
    for score, label_map, label in zip(found[:3], maps, labels, strict=False):
        matrix = ConfusionMatrix(6, 255)
        matrix.update(label_map, label)
        assert float(score) == pytest.approx(matrix.scores()["mean_iou"])
    assert math.isnan(found[3])


def test_samples_without_score_are_not_ranked():
    scores = [torch.tensor([0.5, math.nan]), torch.tensor([0.1])]
    assert gather_scores([4, 7, 2], scores, Accelerator(cpu=True)) == ((2, pytest.approx(0.1)), (4, 0.5))
