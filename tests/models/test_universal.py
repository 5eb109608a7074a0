"""Models that find objects: one checkpoint for both Auto classes, semantic results, masks of attention, saved code."""

import copy
import json
import pickle

import pytest
import torch
import transformers
from random_weights import randomize_weights
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

from hf_vit_seg import architectures
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models import query_head
from hf_vit_seg.models.layers import OBJECT_HEADS
from hf_vit_seg.models.mask_classification import masks_from_labels, semantic_logits
from hf_vit_seg.models.query_head import additive_mask, attended_pixels, compute_mask_logits, sine_positions

FAMILIES = ("vit", "segformer", "cvt", "backbone")
LABELS, QUERIES = 5, 7
STAGED = {"query_num_heads": 4, "query_num_layers": 4}


def build(name: str, auto=AutoModelForUniversalSegmentation, **fields):
    settings = {"num_labels": LABELS, "num_queries": QUERIES, "train_num_points": 30}
    settings |= ({} if name == "vit" else STAGED) | fields
    torch.manual_seed(0)
    return randomize_weights(auto.from_config(architectures()[name].variant_config("tiny", **settings))).eval()


def image(size: tuple[int, int] = (61, 45), batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_one_checkpoint_loads_under_every_auto_class(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "universal")
    output = model(image())
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", classes, output.masks_queries_logits.sigmoid())
    semantic, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "universal", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(semantic, architectures()[name].models["AutoModelForSemanticSegmentation"])
    torch.testing.assert_close(semantic.eval()(image()).logits.exp(), scores)
    semantic.save_pretrained(tmp_path / "semantic")
    for auto in (AutoModelForUniversalSegmentation, AutoModelForInstanceSegmentation):
        again, info = auto.from_pretrained(tmp_path / "semantic", output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(again) is type(model)
        assert torch.equal(again.eval()(image()).masks_queries_logits, output.masks_queries_logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_config_of_the_caller_is_not_changed(name):
    config = architectures()[name].variant_config("tiny", num_labels=LABELS, **({} if name == "vit" else STAGED))
    before = config.to_dict()
    model = AutoModelForUniversalSegmentation.from_config(config)
    assert config.decode_head == before["decode_head"] != model.config.decode_head == "query"


@pytest.mark.parametrize("name", FAMILIES)
def test_semantic_model_of_a_config(name):
    """Built directly, by an Auto class, copied and pickled."""
    kind = architectures()[name].models["AutoModelForSemanticSegmentation"]
    model = build(name, AutoModelForSemanticSegmentation, decode_head="query")
    direct = kind(copy.deepcopy(model.config))
    assert type(direct) is type(model) and isinstance(model, kind) and type(model) is not kind
    assert type(model).__name__ == kind.__name__
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert torch.equal(copied(image()).logits, model(image()).logits)
    assert type(build(name, AutoModelForSemanticSegmentation)) is kind  # other heads are unchanged


@pytest.mark.parametrize("name", FAMILIES)
def test_encoder_of_another_head_loads(name, tmp_path):
    plain = build(name, AutoModelForSemanticSegmentation)
    plain.save_pretrained(tmp_path)
    model, info = AutoModelForUniversalSegmentation.from_pretrained(
        tmp_path, num_queries=QUERIES, output_loading_info=True
    )
    assert model.config.decode_head == "query"
    assert all(key.startswith("decode_head.") for key in info["missing_keys"])
    encoder = {key: value for key, value in plain.state_dict().items() if not key.startswith("decode_head.")}
    for key, tensor in encoder.items():
        assert torch.equal(model.state_dict()[key], tensor)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_code_has_both_classes(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForUniversalSegmentation"].startswith("modeling_")
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path).save_pretrained(tmp_path / "semantic")
    auto_map = json.loads((tmp_path / "semantic" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForSemanticSegmentation"].rpartition(".")[0].endswith("_universal")
    assert (tmp_path / "semantic" / "mask_loss.py").exists()


def test_classes_without_the_head_refuse_it(monkeypatch):
    """As code that is saved with models of other heads, which lacks the files of this one."""
    for name in ("vit", "segformer", "cvt"):
        config = architectures()[name].variant_config("tiny", decode_head="query")
        with monkeypatch.context() as patch:
            patch.delitem(OBJECT_HEADS, "query")
            with pytest.raises(HfVitSegError, match="AutoModelForUniversalSegmentation"):
                architectures()[name].models["AutoModelForSemanticSegmentation"](config)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_predictions_are_independent_of_the_batch_and_have_any_size(name):
    model = build(name).double()
    for size in ((64, 64), (61, 45), (32, 131)):
        pixels = image(size).double()
        both, first = model(pixels), model(pixels[:1])
        torch.testing.assert_close(both.masks_queries_logits[:1], first.masks_queries_logits)
        assert both.class_queries_logits.shape == (2, QUERIES, LABELS + 1)
        assert both.auxiliary_logits is None


@pytest.mark.parametrize("name", FAMILIES)
def test_training_predicts_before_every_layer(name):
    model = build(name).train()
    output = model(image())
    assert len(output.auxiliary_logits) == (4 if name == "vit" else STAGED["query_num_layers"])
    for classes, masks in output.auxiliary_logits:
        assert classes.shape == output.class_queries_logits.shape and masks.shape == output.masks_queries_logits.shape


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_masks_of_attention(name):
    """Training with a probability of 1 is inference with masks, and that of 0 is inference without."""
    masked, unmasked = build(name, query_masked_inference=True), build(name, query_masked_inference=False)
    pixels = image((64, 64))
    expected, free = masked(pixels).masks_queries_logits, unmasked(pixels).masks_queries_logits
    assert not torch.allclose(expected, free)
    masked.train()
    for module in masked.modules():  # training differs in nothing else
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout) or type(module).__name__ == "DropPath":
            module.training = False
    torch.testing.assert_close(masked(pixels).masks_queries_logits, expected)
    masked.mask_probability[:] = [0.0] * len(masked.mask_probability)
    torch.testing.assert_close(masked(pixels).masks_queries_logits, free)


def test_annealed_queries_attend_to_everything():
    torch.manual_seed(0)
    logits = torch.full((4, 500, 2, 2), -1.0)
    logits[..., 0, 0] = 1
    attended = attended_pixels(logits, 0.3)
    everything, own = attended.all(-1), attended.sum(-1) == 1
    assert (everything | own).all() and 0.65 < everything.float().mean() < 0.75
    assert (attended_pixels(logits, 1.0).sum(-1) == 1).all()


def test_query_with_an_empty_mask_attends_to_everything(monkeypatch):
    model = build("segformer")
    monkeypatch.setattr(query_head, "compute_mask_logits", lambda queries, pixels: torch.full((2, QUERIES, 3, 3), -1.0))
    mask = model.decode_head.attention_mask(torch.zeros(2, QUERIES, 32), torch.zeros(2, 32, 3, 3), 0)
    assert mask.shape == (2, 1, QUERIES, 9) and not mask.any()


def test_resized_pixels_give_resized_masks():
    queries, pixels = torch.randn(2, 3, 8).double(), torch.randn(2, 8, 12, 16).double()
    resize = torch.nn.functional.interpolate
    first = compute_mask_logits(queries, resize(pixels, (3, 4), mode="bilinear"))
    torch.testing.assert_close(first, resize(compute_mask_logits(queries, pixels), (3, 4), mode="bilinear"))


def test_additive_mask_is_finite():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        mask = additive_mask(torch.tensor([True, False]), dtype)
        assert mask.dtype == dtype and mask[0] == 0 and mask.isfinite().all()
        assert (torch.tensor([0.5, 0.5], dtype=dtype) + mask).softmax(-1).tolist() == [1, 0]


def test_positions_differ_for_every_pixel():
    positions = sine_positions((5, 7), 32, torch.zeros(()).double())
    assert positions.shape == (35, 32)
    distances = torch.cdist(positions, positions) + 10 * torch.eye(35)
    assert distances.min() > 0.05


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_of_any_size_and_images_without_objects(name):
    model = build(name).train()
    masks = [torch.rand(3, 50, 80) > 0.5, torch.zeros(0, 50, 80, dtype=torch.bool)]
    classes = [torch.tensor([0, 4, 1]), torch.zeros(0, dtype=torch.long)]
    for part in (slice(0, 2), slice(1, 2)):
        output = model(image()[part], mask_labels=masks[part], class_labels=classes[part])
        output.loss.backward()
        assert output.loss.isfinite() and output.loss.ndim == 0


def test_invalid_class_labels_are_named():
    model, masks = build("segformer"), [torch.ones(1, 8, 8, dtype=torch.bool)] * 2
    with pytest.raises(HfVitSegError, match="image 1 contain 5, expected 0 to 4"):
        model(image(), mask_labels=masks, class_labels=[torch.tensor([4]), torch.tensor([5])])


def test_class_maps_become_masks():
    labels = torch.tensor([[[2, 2, 0], [255, 0, 0]], [[255, 255, 255], [255, 255, 255]]])
    masks, classes, ignored = masks_from_labels(labels, 255, 3)
    assert [own.tolist() for own in classes] == [[0, 2], []]
    assert masks[0][1].tolist() == [[True, True, False], [False, False, False]] and masks[1].shape == (0, 2, 3)
    assert torch.equal(ignored, labels == 255)


def test_one_label_is_binary():
    labels = torch.tensor([[[1, 0], [255, 1]], [[0, 0], [0, 0]]])
    masks, classes, _ = masks_from_labels(labels, 255, 1)
    assert [own.tolist() for own in classes] == [[0], []] and masks[0][0].tolist() == [[True, False], [False, True]]
    certain = torch.tensor([[[9.0, -9.0]]])
    logits = semantic_logits(certain, torch.tensor([[[[9.0, -9.0]]]]))
    assert logits[0, 0, 0, 0] > 5 and logits[0, 0, 0, 1] < -5  # logits of the class, as of any model with one label


def test_scores_without_any_query_are_finite():
    logits = semantic_logits(torch.full((1, 2, 4), -200.0), torch.full((1, 2, 3, 3), -200.0))
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("vit", {"num_query_blocks": 9, "decode_head": "query"}, "num_query_blocks 9"),
        ("vit", {"token_merging": 0.5, "decode_head": "query"}, "token_merging"),
        ("segformer", {"query_num_heads": 5}, "divisible"),
        ("segformer", {"oversample_ratio": 0.5}, "oversample_ratio"),
        ("segformer", {"no_object_weight": -1.0}, "no_object_weight"),
        ("segformer", {"num_queries": 0}, "num_queries"),
        ("backbone", {"decode_head_levels": (4,)}, "several maps"),
    ],
)
def test_invalid_settings_are_named(name, fields, message):
    with pytest.raises(Exception, match=message):
        build(name, **fields)


@pytest.mark.parametrize("name", ["vit", "segformer"])
def test_unset_size_is_exported(name):
    """torch.export, for any batch and image size."""
    model = build(name, AutoModelForSemanticSegmentation, decode_head="query")
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(model, (image((64, 96)),), dynamic_shapes={"pixel_values": dynamic})
        for pixels in (image((64, 64), 1), image((96, 160), 3)):
            torch.testing.assert_close(program.module()(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4)


def test_auto_class_of_instances_is_the_universal_one():
    config = architectures()["cvt"].variant_config("tiny", num_labels=2, **STAGED)
    model = transformers.AutoModelForInstanceSegmentation.from_config(config)
    assert type(model) is architectures()["cvt"].models["AutoModelForUniversalSegmentation"]
