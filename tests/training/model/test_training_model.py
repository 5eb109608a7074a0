"""A model is built for the classes and channels of a run, and newly initialized weights are reported."""

import json

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from random_weights import randomize_weights
from training_models import NEW, OLD, SEGMENTERS, classifier, recipe, save
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
)

from hf_vit_seg import architectures
from hf_vit_seg.data.statistics import Statistics
from hf_vit_seg.loading.models import AUTO_CLASSES
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.model.building import build_model
from hf_vit_seg.training.model.classifier_rows import matching_rows
from hf_vit_seg.training.model.parameter_names import encoder_layers
from hf_vit_seg.training.model.pretrained import adapt_input_conv, format_tensor_names
from hf_vit_seg.training.model.shape_probing import channel_axes, class_axes, set_classes

HEADLESS = [
    (name, auto)
    for name in SEGMENTERS
    for auto in ("AutoModel", "AutoModelForImageClassification")
    if auto in architectures()[name].models
]
POSERS = [n for n, a in architectures().items() if "AutoModelForPoseEstimation" in a.models]


def build_for_classes(folder, names=NEW, bands=3, **settings):
    model = {"from_pretrained": str(folder)} | settings.pop("model", {})
    plain = {"processor": {"image_mean": [0.5] * bands, "image_std": [0.5] * bands}}
    found = build_model(recipe(model, **(plain | settings)), names, channels=bands)
    return found.model.eval(), "\n".join(found.notes)


@pytest.mark.parametrize("task", AUTO_CLASSES)
@pytest.mark.parametrize("name", architectures())
def test_new_model_has_the_classes_and_channels_of_the_data(name, task):
    if AUTO_CLASSES[task] not in architectures()[name].models:
        pytest.skip("no such head")
    wanted = recipe(
        {"architecture": name, "variant": "tiny", "fields": {"hidden_act": "relu"}},
        task=task,
        processor={"image_mean": [0.5] * 5, "image_std": [0.1] * 5, "size": {"height": 64, "width": 64}},
    )
    found = build_model(wanted, NEW, ignore_index=65535, channels=5, palette=[(1, 2, 3)] * 3)
    config = found.model.config
    assert config.id2label == dict(enumerate(NEW)) and config.num_labels == 3 and config.label2id["boat"] == 1
    assert (config.num_channels, config.hidden_act, config.semantic_loss_ignore_index) == (5, "relu", 65535)
    assert found.processor.palette == [[1, 2, 3]] * 3
    prepared = found.processor(torch.zeros(5, 64, 64, dtype=torch.uint8), return_tensors="pt")
    torch.testing.assert_close(prepared["pixel_values"], torch.full((1, 5, 64, 64), -5.0))
    outputs = found.model(**prepared)
    if task in ("instance", "panoptic"):
        assert outputs.class_queries_logits.shape[-1] == 4  # and no object
    else:
        assert outputs[0].shape[1] == 3


def test_new_weights_depend_only_on_the_seed():
    torch.manual_seed(5)
    one = build_model(recipe(seed=3), NEW).model
    before = torch.random.get_rng_state()
    other = build_model(recipe(seed=3), NEW).model
    assert torch.equal(torch.random.get_rng_state(), before)
    third = build_model(recipe(seed=4), NEW).model
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_classifier_rows_are_matched_by_class_name(name, tmp_path):
    old = save(tmp_path, name)
    model, notes = build_for_classes(tmp_path)
    assert "the rows of road, SKY are copied from the checkpoint; those of boat are newly initialized" in notes
    weight, trained = classifier(model).weight, classifier(old).weight
    assert torch.equal(weight[0], trained[1]) and torch.equal(weight[2], trained[0])
    assert not any(torch.equal(weight[1], row) for row in trained)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, expected = model(pixel_values).logits, old(pixel_values).logits
    torch.testing.assert_close(logits[:, [0, 2]], expected[:, [1, 0]])


def test_reordered_classes_permute_the_rows(tmp_path):
    old = save(tmp_path)
    names = ("tree", "dog", "sky", "road")
    model, notes = build_for_classes(tmp_path, names)
    weight, trained = model.decode_head.classifier.weight, old.decode_head.classifier.weight
    assert torch.equal(weight[[0, 2, 3]], trained[[3, 0, 1]])
    assert not torch.equal(weight[1], trained[1])
    assert "those of dog are newly initialized" in notes


def test_equal_classes_are_loaded_unchanged(tmp_path):
    old = save(tmp_path)
    model, notes = build_for_classes(tmp_path, [name.upper() for name in OLD])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), old.state_dict().values(), strict=True))
    assert notes.startswith("The checkpoint has no image processor") and "\n" not in notes
    assert model.config.id2label[1] == "ROAD"


def test_recipe_can_reinitialize_all_rows(tmp_path):
    old = save(tmp_path)
    model, notes = build_for_classes(tmp_path, OLD, model={"copy_classes": False})
    rows = [*model.decode_head.classifier.weight]
    assert not any(torch.equal(row, trained) for row in rows for trained in old.decode_head.classifier.weight)
    assert torch.equal(model.decode_head.fuse.weight, old.decode_head.fuse.weight)
    assert "all 4 rows are newly initialized" in notes


@pytest.mark.parametrize("name", POSERS)
def test_keypoint_rows_are_matched_by_name(name, tmp_path):
    old = save(tmp_path, name, ("nose", "tail", "paw"), "AutoModelForPoseEstimation")
    model, _ = build_for_classes(tmp_path, ("tail", "ear"), task="pose")
    assert torch.equal(model.pose_head.final.weight[0], old.pose_head.final.weight[1])


def test_mask_transformer_class_tokens_are_matched_on_the_second_axis(tmp_path):
    old = save(tmp_path, "vit", decode_head="mask_transformer")
    model, notes = build_for_classes(tmp_path)
    assert torch.equal(model.decode_head.class_embeddings[:, [0, 2]], old.decode_head.class_embeddings[:, [1, 0]])
    assert torch.equal(model.decode_head.mask_norm.weight[[0, 2]], old.decode_head.mask_norm.weight[[1, 0]])
    assert model.decode_head.mask_norm.weight[1] == 1
    assert "decode_head.class_embeddings" in notes


@pytest.mark.parametrize(("name", "auto_class"), HEADLESS)
def test_encoder_or_classifier_initializes_a_segmentation_model(name, auto_class, tmp_path):
    old = save(tmp_path, name, OLD, auto_class)
    model, notes = build_for_classes(tmp_path, OLD)
    encoder = model.base_model.state_dict()
    expected = (old if auto_class == "AutoModel" else old.base_model).state_dict()
    assert all(torch.equal(encoder[key], tensor) for key, tensor in expected.items())
    assert "Missing in the checkpoint, newly initialized: decode_head" in notes
    assert ("not used by this model: classifier.bias" in notes) == (auto_class != "AutoModel")


@pytest.mark.parametrize("bands", [1, 5])
def test_transformers_models_are_adapted(bands, tmp_path):
    config = transformers.SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, decoder_hidden_size=16)
    set_classes(config, OLD)
    old = randomize_weights(transformers.SegformerForSemanticSegmentation(config)).eval()
    old.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(do_reduce_labels=True).save_pretrained(tmp_path)
    means = {"image_mean": [0.5] * bands, "image_std": [0.5] * bands}
    found = build_model(recipe({"from_pretrained": str(tmp_path)}, processor=means), NEW, channels=bands)
    head, trained = found.model.decode_head.classifier.weight, old.decode_head.classifier.weight
    assert torch.equal(head[[0, 2]], trained[[1, 0]])
    stem, trained = (m.segformer.stages[0].patch_embeddings.proj.weight for m in (found.model, old))
    assert torch.equal(stem, adapt_input_conv(trained, bands))
    assert found.processor.do_reduce_labels is False
    assert f"adapted to {bands} input channels" in "\n".join(found.notes)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_gray_stem_matches_repeated_gray_input(name, tmp_path):
    old = save(tmp_path, name)
    model, notes = build_for_classes(tmp_path, OLD, bands=1)
    gray = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(gray).logits, old(gray.expand(-1, 3, -1, -1)).logits, rtol=1e-4, atol=1e-4)
    assert "its 3 channels are summed into one" in notes
    assert model.config.num_channels == 1


@given(st.integers(1, 4), st.integers(1, 9))
def test_adapted_stem_keeps_output_for_equal_channels(trained, times):
    weight = torch.randn(4, trained, 3, 3, dtype=torch.float64)
    picture = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(picture.expand(-1, trained, -1, -1), weight)
    bands = trained * times
    actual = torch.nn.functional.conv2d(picture.expand(-1, bands, -1, -1), adapt_input_conv(weight, bands))
    torch.testing.assert_close(actual, expected)
    assert adapt_input_conv(weight, bands + 1).shape == (4, bands + 1, 3, 3)


def test_adapted_stem_cycles_through_channels():
    weight = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(adapt_input_conv(weight, 4), weight[:, [0, 1, 2, 0]] * 0.75)
    assert torch.equal(adapt_input_conv(weight, 3), weight)


@given(st.lists(st.text("aAbB ", max_size=3), max_size=6), st.lists(st.text("aAbB ", max_size=3), max_size=6))
def test_matching_rows_are_copied(old, new):
    rows = matching_rows(old, new)
    assert all(old[j].strip().casefold() == new[i].strip().casefold() for i, j in rows.items())
    known = {name.strip().casefold() for name in old}
    assert set(rows) == {i for i, name in enumerate(new) if name.strip().casefold() in known}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_class_and_channel_axes_are_found_by_shape(name):
    config = architectures()[name].variant_config("tiny", num_labels=7)
    shapes = {n: p.shape for n, p in AutoModelForSemanticSegmentation.from_config(config).state_dict().items()}
    for axes, number in ((class_axes, 7), (channel_axes, 3)):
        found = axes(config, "AutoModelForSemanticSegmentation")
        assert found and all(shapes[tensor][axis] == number for tensor, axis in found.items())


def test_mismatched_shapes_are_newly_initialized_and_reported(tmp_path):
    save(tmp_path)
    model, notes = build_for_classes(tmp_path, model={"fields": {"decode_head_hidden_size": 24}})
    assert model.decode_head.classifier.weight.shape == (3, 24, 1, 1)
    assert "other shapes: decode_head.fuse.weight" in notes
    assert "other shapes: decode_head.classifier.weight" in notes.replace("classifier.bias, decode_head.", "")


def test_mismatched_shapes_are_reported_with_any_classes_and_channels(tmp_path):
    save(tmp_path)
    _, notes = build_for_classes(tmp_path, OLD, model={"fields": {"decode_head_hidden_size": 24}})
    assert "other shapes: decode_head.classifier.weight, decode_head.fuse.weight" in notes
    widths = {"hidden_sizes": [8, 32, 40, 64]}
    model, notes = build_for_classes(tmp_path, OLD, bands=5, model={"fields": widths})
    assert "patch_embeddings.projection.weight" in notes and "adapted" not in notes
    assert model(torch.randn(1, 5, 64, 64)).logits.isfinite().all()


def test_position_embeddings_are_resized_for_another_image_size(tmp_path):
    save(tmp_path, "vit")
    model, _ = build_for_classes(tmp_path, OLD, model={"fields": {"image_size": 32}})
    assert model.vit.embeddings.position_embeddings.shape[1] == 1 + 16


@pytest.mark.parametrize(
    ("name", "fields"),
    [("segformer", {"depths": [1, 1, 1, 1]}), ("vit", {"num_hidden_layers": 2}), ("cvt", {"depths": [1] * 3})],
)
def test_variant_depth_can_be_reduced(name, fields):
    model = build_model(recipe({"architecture": name, "variant": "tiny", "fields": fields}), NEW).model
    assert len(encoder_layers(model)) == {"segformer": 4, "vit": 2, "cvt": 3}[name]
    assert model(torch.randn(1, 3, 64, 64)).logits.shape[1] == 3


@pytest.mark.parametrize("name", SEGMENTERS)
def test_single_class_has_a_single_row(name, tmp_path):
    old = save(tmp_path, name)
    model, _ = build_for_classes(tmp_path, ("car",))
    assert model.config.num_labels == 1
    assert torch.equal(classifier(model).weight, classifier(old).weight[2:3])


def test_config_fields_are_parsed_by_the_config(tmp_path):
    save(tmp_path, "cvt")
    model, _ = build_for_classes(tmp_path, OLD, model={"fields": {"drop_path_rate": 0.3}})
    assert model.config.drop_path_rate == [0.3] * 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"drop_path_rat": 0.1}, "did you mean 'drop_path_rate'"),
        ({"num_labels": 4}, r"follows from data\.classes"),
        ({"num_channels": 4}, "follows from the images' channels"),
        ({"hidden_sizes": (9, 9, 9, 9)}, "divisible"),
        ({"decode_head_hidden_size": "wide"}, "decode_head_hidden_size"),
    ],
)
def test_invalid_config_fields_raise(fields, reason):
    with pytest.raises(RecordError, match=reason):
        build_model(recipe({"fields": fields}), NEW)


@pytest.mark.parametrize(
    ("model", "task", "reason"),
    [
        ({"architecture": "segfomer"}, "segmentation", "did you mean 'segformer'"),
        ({"variant": "b9"}, "segmentation", r"unknown variant 'b9'.*b5"),
        ({"architecture": "cvt"}, "pose", "cvt has no model for pose; choose from vit"),
        ({"from_pretrained": "/nowhere/at all"}, "segmentation", "/nowhere/at all' does not exist"),
    ],
)
def test_missing_models_raise(model, task, reason):
    with pytest.raises(RecordError, match=reason):
        build_model(recipe(model, task=task), NEW)


def test_checkpoint_without_the_task_raises(tmp_path):
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(RecordError, match=r"no AutoModelForSemanticSegmentation for 'vit'.*convert"):
        build_model(recipe({"from_pretrained": str(tmp_path), "convert": False}), NEW)


def test_computed_statistics_are_set_in_the_processor():
    wanted = recipe(processor={"image_mean": "computed", "image_std": "computed"})
    found = build_model(wanted, NEW, channels=2, statistics=Statistics((3.0, 4.0), (1.0, 2.0), 1.0)).processor
    assert (list(found.image_mean), list(found.image_std), found.rescale_factor) == ([3.0, 4.0], [1.0, 2.0], 1.0)


def test_computed_statistics_include_the_rescale_factor(tmp_path):
    """Whatever the processor of a model does with pixel values."""
    save(tmp_path)
    other = architectures()["segformer"].image_processor["torchvision"](do_rescale=False, do_normalize=False)
    other.save_pretrained(tmp_path)
    wanted = recipe({"from_pretrained": str(tmp_path)}, processor={"image_mean": "computed", "image_std": [1.0] * 3})
    found = build_model(wanted, NEW, statistics=Statistics((0.3,) * 3, (0.2,) * 3, 1 / 255)).processor
    assert found.do_rescale and found.do_normalize and found.rescale_factor == 1 / 255
    assert (list(found.image_mean), list(found.image_std)) == ([0.3] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("fields", "bands", "reason"),
    [
        ({"image_men": [0.5]}, 3, "did you mean 'image_mean'"),
        ({}, 5, r"image_mean has 3 numbers, but images have 5 channels.*'computed'"),
        ({"size": "computed"}, 3, r"only image_mean and image_std.*\['size'\]"),
        (
            {"image_mean": "computed", "do_rescale": False},
            3,
            r"do_rescale: found False, expected True .*'computed'",
        ),
        ({"do_reduce_labels": True}, 3, "reduce_zero_label"),
    ],
)
def test_invalid_processor_fields_raise(fields, bands, reason):
    with pytest.raises(RecordError, match=reason):
        build_model(recipe(processor=fields), NEW, channels=bands, statistics=Statistics((0.0,), (1.0,), 1.0))


def test_processor_of_the_model_is_preserved(tmp_path):
    save(tmp_path)
    processor = architectures()["segformer"].image_processor["torchvision"]
    processor(size={"height": 96, "width": 64}, size_divisor=32, do_reduce_labels=True).save_pretrained(tmp_path)
    found = build_model(recipe({"from_pretrained": str(tmp_path)}, processor={"resample": 3}), NEW).processor
    found.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert (saved["size"], saved["size_divisor"], saved["resample"]) == ({"height": 96, "width": 64}, 32, 3)
    assert saved["do_reduce_labels"] is False
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(RecordError, match=r"image processor of .* cannot be loaded"):
        build_model(recipe({"from_pretrained": str(tmp_path)}), NEW)
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "new")
    assert loaded.to_dict() == found.to_dict()


def test_tensor_names_are_abbreviated():
    names = [f"a.{i}.b.{j}.weight" for i in (0, 1) for j in (9, 10)] + ["c.1.bias", "n.num_batches_tracked", "d"]
    assert format_tensor_names(names) == "a.{0, 1}.b.{9, 10}.weight, c.1.bias, d"


def test_built_model_round_trip(tmp_path):
    found = build_model(recipe(), NEW).model.eval()
    found.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.id2label == dict(enumerate(NEW))
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, found(pixel_values).logits)


@pytest.mark.shared
def test_camvid_classes_use_ade20k_rows(shared):
    names = json.loads((shared / "data" / "camvid" / "classes.json").read_text())["classes"]
    found = build_model(recipe({"from_pretrained": str(shared / "data" / "segformer_b0_ade" / "hf")}), names)
    converted, note = found.notes
    assert "to SegFormerForSemanticSegmentation" in converted
    assert "the rows of Sky, Building, Pole, Road, Tree, Fence, Car are copied from the checkpoint" in note
    assert note.endswith("those of Pavement, SignSymbol, Pedestrian, Bicyclist are newly initialized")
