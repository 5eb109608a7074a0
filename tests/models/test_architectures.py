"""Tests of every architecture, parametrized over the registry: see `cases.py`."""

import copy
import logging
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers
from cases import CASES
from PIL import Image
from random_weights import randomize_weights
from size_formulas import assert_unbounded
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_vit_seg import architectures

LABELS = 5
BUILT = [(name, auto) for name, architecture in architectures().items() for auto in architecture.models]
SEGMENTERS = [name for name, auto in BUILT if auto == "AutoModelForSemanticSegmentation"]
CLASSIFIERS = [name for name, auto in BUILT if auto == "AutoModelForImageClassification"]
ENCODERS = [name for name, auto in BUILT if auto == "AutoModel"]
BACKBONES = [name for name, auto in BUILT if auto == "AutoBackbone"]


def build(name: str, auto: str = "AutoModelForSemanticSegmentation", **settings) -> PreTrainedModel:
    """The tiny variant with an Auto class and random weights, in evaluation mode."""
    attention = settings.pop("attn_implementation", "sdpa")
    config = architectures()[name].variant_config("tiny", **({"num_labels": LABELS} | settings))
    return randomize_weights(getattr(transformers, auto).from_config(config, attn_implementation=attention)).eval()


def images(name: str, batch: int = 2, size: tuple[int, int] | None = None, channels: int = 3) -> torch.Tensor:
    height, width = size or CASES[name].sizes[0]
    return torch.randn(batch, channels, height, width)


def main_output(output) -> torch.Tensor:
    """The main output tensor of a model with any head."""
    for name in ("logits", "heatmaps", "masks_queries_logits"):
        if getattr(output, name, None) is not None:
            return output[name]
    return output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state


def labels_for(model: PreTrainedModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    kind = type(model).__name__
    batch, _, height, width = pixel_values.shape
    if "ForSemanticSegmentation" in kind:
        return {"labels": torch.randint(0, LABELS, (batch, height, width))}
    if "ForUniversalSegmentation" in kind:
        rows = torch.arange(height)[:, None].expand(height, width)
        objects = [torch.stack([rows < height // 2, rows > height // 3]), torch.zeros(0, height, width, dtype=bool)]
        classes = [torch.tensor([1, LABELS - 1]), torch.zeros(0, dtype=torch.long)]
        return {"mask_labels": objects[:batch], "class_labels": classes[:batch]}
    if "ForPoseEstimation" in kind:
        return {"labels": torch.rand(batch, LABELS, 3) * torch.tensor([width, height, 1])}
    return {"labels": torch.randint(0, LABELS, (batch,))} if "ForImageClassification" in kind else {}


def head_loss(model: PreTrainedModel, pixel_values: torch.Tensor, **labels) -> torch.Tensor:
    output = model(pixel_values, **labels)
    if labels:
        return output.loss
    maps = output.feature_maps if "feature_maps" in output else [output.last_hidden_state]
    return sum(feature_map.square().mean() for feature_map in maps)


def test_every_architecture_has_a_case():
    assert set(architectures()) <= set(CASES)


@pytest.mark.parametrize("name", architectures())
def test_golden_parameter_counts(name):
    architecture = architectures()[name]
    for variant, row in architecture.variant_rows().items():
        counted = row.get("counted", {"model": "AutoModelForSemanticSegmentation", "num_labels": 150})
        with torch.device("meta"):
            config = architecture.variant_config(variant, num_labels=counted["num_labels"])
            model = getattr(transformers, counted["model"]).from_config(config)
        assert sum(p.numel() for p in model.parameters()) == row["parameters"], variant


@pytest.mark.parametrize("name", architectures())
def test_variant_names_as_in_papers(name):
    architecture = architectures()[name]
    assert architecture.variant_config("Tiny").to_dict() == architecture.variant_config("tiny").to_dict()


@pytest.mark.parametrize("name", architectures())
def test_unknown_variant_lists_known_ones(name):
    with pytest.raises(ValueError, match="tiny"):
        architectures()[name].variant_config("b99")


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_auto_class_registration(name, auto, tmp_path):
    model = build(name, auto)
    assert type(model) is architectures()[name].models[auto]
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is architectures()[name].config


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_input_embeddings_are_the_first_layer(name, auto):
    model, seen = build(name, auto), []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda module, *_: seen.append(module))
    with torch.no_grad():
        model(images(name))
    assert seen[0] in model.get_input_embeddings().modules()


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_any_image_size_and_batch_size(name, auto):
    model = build(name, auto)
    for size in CASES[name].sizes:
        pixel_values = images(name, size=size)
        with torch.no_grad():
            both = main_output(model(pixel_values))
            first = main_output(model(pixel_values[:1]))
        assert both.isfinite().all()
        torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-5)
        if auto == "AutoModelForSemanticSegmentation":
            assert both.shape == (2, LABELS, *map(CASES[name].grid, size))


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_gradients_reach_every_parameter(name, auto):
    settings = {"drop_path_rate": 0.0} if "drop_path_rate" in CASES[name].alternatives else {}
    if auto == "AutoBackbone":
        stages = architectures()[name].variant_config("tiny").stage_names
        settings["out_features"] = list(stages)
    model = build(name, auto, **settings).train()
    pixel_values = images(name)
    head_loss(model, pixel_values, **labels_for(model, pixel_values)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a softmax over keys shifts all scores of a query equally: its gradient is zero except for rounding.
    excused = ("k_proj.bias", *CASES[name].unreached.get(auto, ()))
    assert [n for n in without if not n.endswith(excused)] == []


@pytest.mark.parametrize(("name", "auto"), BUILT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(name, auto, dtype, tmp_path):
    model = build(name, auto).to(dtype)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert loaded.dtype == dtype
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    pixel_values = images(name).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(main_output(model(pixel_values)), main_output(loaded(pixel_values)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_encoder_weights_load_into_any_head(name, tmp_path):
    classifier = build(name, "AutoModelForImageClassification")
    classifier.save_pretrained(tmp_path)
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, num_labels=3)
    encoder = AutoModel.from_pretrained(tmp_path)
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, segmenter.base_model.state_dict()[key])
        assert torch.equal(tensor, classifier.base_model.state_dict()[key])


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_attention_implementations_agree(name, auto):
    model = build(name, auto).double()
    pixel_values = images(name).double()
    with torch.no_grad():
        expected = main_output(model(pixel_values))
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            torch.testing.assert_close(main_output(model(pixel_values)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ENCODERS)
def test_flex_attention_agrees_and_missing_flash_raises(name):
    model = build(name, "AutoModel")
    pixel_values = images(name)
    with torch.no_grad():
        expected = main_output(model(pixel_values))
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(main_output(model(pixel_values)), expected, rtol=1e-3, atol=1e-4)
    assert model._supports_flash_attn
    if not torch.cuda.is_available():
        with pytest.raises((ImportError, ValueError), match=r"[Ff]lash"):
            build(name, "AutoModel", attn_implementation="flash_attention_2")


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_hidden_states_and_attentions_are_returned(name, auto):
    model = build(name, auto, attn_implementation="eager")
    pixel_values = images(name)
    with torch.no_grad():
        plain = model(pixel_values)
        full = model(pixel_values, output_hidden_states=True, output_attentions=True)
        as_tuple = model(pixel_values, return_dict=False)
    assert "hidden_states" not in plain and "attentions" not in plain
    assert len(full.hidden_states) == (CASES[name].hidden_states or model.config.num_hidden_layers)
    config = getattr(model.config, "backbone", model.config)
    assert len(full.attentions) == (sum(getattr(config, "depths", ())) or config.num_hidden_layers)
    assert all(torch.isclose(a.sum(-1), torch.ones(())).all() for a in full.attentions)
    torch.testing.assert_close(main_output(full), main_output(plain))
    assert isinstance(as_tuple, tuple)


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_low_precision_is_close(name, auto):
    model = build(name, auto)
    pixel_values = images(name)
    with torch.no_grad():
        expected = main_output(model(pixel_values))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = main_output(model(pixel_values))
        low = main_output(copy.deepcopy(model).to(torch.bfloat16)(pixel_values.to(torch.bfloat16)))
    scale = expected.std()
    assert (cast.float() - expected).abs().mean() < 0.05 * scale
    assert (low.float() - expected).abs().mean() < 0.05 * scale


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_compiles_without_graph_breaks(name, auto):
    torch._dynamo.reset()
    model = build(name, auto)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    pixel_values = images(name)
    with torch.no_grad():
        torch.testing.assert_close(
            main_output(compiled(pixel_values)), main_output(model(pixel_values)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTERS)
def test_inductor_agrees_and_uses_updated_weights(name):
    torch._dynamo.reset()
    model = build(name)
    compiled = torch.compile(model, fullgraph=True)
    pixel_values = images(name)
    with torch.no_grad():
        for seed in (0, 1):
            randomize_weights(model, seed)
            torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_exports_with_dynamic_batch_and_size(name):
    model = build(name)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(model, (images(name, size=(64, 96)),), dynamic_shapes={"pixel_values": dynamic})
        assert_unbounded(program)
        for batch, size in ((1, (64, 64)), (3, (96, 160))):
            pixel_values = images(name, batch, size)
            exported = program.module()(pixel_values)
            torch.testing.assert_close(exported.logits, model(pixel_values).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_activation_checkpointing_keeps_gradients(name, auto):
    plain = build(name, auto).double().train()
    pixel_values = images(name).double()
    labels = labels_for(plain, pixel_values)
    for kwargs in ({"use_reentrant": False}, {"use_reentrant": True}):
        model = copy.deepcopy(plain)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        assert model.is_activation_checkpointing
        model = copy.deepcopy(model)  # as averages do
        for copied in (reference := copy.deepcopy(plain), model):
            torch.manual_seed(1)
            head_loss(copied, pixel_values, **labels).backward()
        for (key, before), after in zip(reference.named_parameters(), model.parameters(), strict=True):
            assert (before.grad is None) == (after.grad is None), key
            if before.grad is not None:
                torch.testing.assert_close(before.grad, after.grad, rtol=1e-4, atol=1e-9)
        for (key, before), after in zip(reference.named_buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(before, after, msg=key)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_loads_with_device_map(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    pixel_values = images(name)
    for device_map in ("auto", "cpu", {"": "cpu"}):
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, device_map=device_map)
        with torch.no_grad():
            torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_offloading_hooks_reach_every_weight(name):
    accelerate = pytest.importorskip("accelerate")
    model = build(name)
    pixel_values = images(name)
    with torch.no_grad():
        expected = model(pixel_values).logits
        offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
        torch.testing.assert_close(offloaded(pixel_values).logits, expected)


@pytest.mark.parametrize(("name", "auto"), BUILT)
def test_no_split_modules_are_found(name, auto):
    """transformers places layers on devices by class name, and ignores names that do not exist."""
    accelerate = pytest.importorskip("accelerate")
    model = build(name, auto)
    kept_whole = model._no_split_modules or ()
    whole = [module for module in model.modules() if type(module).__name__ in kept_whole]
    assert whole
    split = accelerate.infer_auto_device_map(
        model,
        max_memory={"cpu": "30KB", "disk": "1GB"},
        no_split_module_classes=list(kept_whole),
        clean_result=False,
    )
    inside = {id(part) for module in whole for part in list(module.modules())[1:]}
    parts = {place: dict(model.named_modules()).get(place) for place in split}
    assert not [place for place, part in parts.items() if id(part) in inside]


def own_fields(config: type[PreTrainedConfig]) -> set[str]:
    """The fields that a config class adds to transformers' base class."""
    inherited = {field.name for field in fields(PreTrainedConfig)}
    return {field.name for field in fields(config)} - inherited - {"_out_features", "_out_indices", "stage_names"}


@pytest.mark.parametrize("name", architectures())
def test_case_lists_every_config_field(name):
    assert own_fields(architectures()[name].config) == set(CASES[name].alternatives)


def response(name: str, auto: str, **settings) -> tuple:
    """All effects of a config field: parameters, initialization, outputs in evaluation and training, loss."""
    config = architectures()[name].variant_config("tiny", num_labels=LABELS, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    fresh = torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])
    randomize_weights(model)
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, config.num_channels, *CASES[name].sizes[0], generator=generator)
    torch.manual_seed(0)
    labels = labels_for(model, pixel_values)
    with torch.no_grad():
        evaluated = model.eval()(pixel_values, **labels)
        torch.manual_seed(0)
        trained = model.train()(pixel_values)
    return shapes, fresh, main_output(evaluated), main_output(trained), evaluated.loss


@pytest.mark.parametrize(("name", "field"), [(n, f) for n in architectures() for f in CASES[n].alternatives])
def test_every_config_field_is_read(name, field):
    case = CASES[name]
    required, auto = case.required_fields.get(field, {}), case.under.get(field, "AutoModelForSemanticSegmentation")
    shapes, fresh, evaluated, trained, loss = response(name, auto, **required)
    changed = dict(required) | {field: case.alternatives[field]}
    shapes_, fresh_, evaluated_, trained_, loss_ = response(name, auto, **changed)
    if field in case.training_only:
        assert torch.equal(evaluated, evaluated_) and not torch.equal(trained, trained_)
    elif field in case.loss_only:
        assert torch.equal(evaluated, evaluated_) and not torch.equal(loss, loss_)
    elif field in case.initial_only:
        assert torch.equal(evaluated, evaluated_) and not torch.equal(fresh, fresh_)
    else:
        assert shapes != shapes_ or not torch.equal(evaluated, evaluated_)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_other_channel_counts(name):
    model = build(name, num_channels=5)
    with torch.no_grad():
        assert model(images(name, channels=5)).logits.isfinite().all()
    with pytest.raises(ValueError, match="5 channels"):
        model(images(name, channels=3))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_loss_ignores_invalid_pixels(name):
    model = build(name)
    pixel_values = images(name)
    labels = labels_for(model, pixel_values)["labels"]
    labels[:, : labels.shape[1] // 2] = 255
    output = model(pixel_values, labels=labels)
    resized = torch.nn.functional.interpolate(output.logits, labels.shape[-2:], mode="bilinear")
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(resized, labels, ignore_index=255))
    nothing = model(pixel_values, labels=torch.full_like(labels, 255)).loss
    nothing.backward()
    assert nothing == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_one_label_is_binary(name):
    model = build(name, num_labels=1)
    pixel_values = images(name)
    labels = torch.randint(0, 2, (2, *pixel_values.shape[-2:]))
    labels[:, 0] = 255
    output = model(pixel_values, labels=labels)
    resized = torch.nn.functional.interpolate(output.logits, labels.shape[-2:], mode="bilinear")[:, 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        resized[labels != 255], labels[labels != 255].float()
    )
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_trainer_gradient_accumulation_matches_a_large_batch(name, tmp_path):
    """The loss of transformers' SegFormer grows with the accumulation steps (`accepts_loss_kwargs`)."""
    known = own_fields(architectures()[name].config)
    steady = {field: 0.0 for field in known if field.endswith(("dropout_prob", "drop_path_rate"))}
    first = build(name, decode_head_norm="group", **steady)
    samples = [
        {"pixel_values": image, "labels": torch.randint(0, LABELS, image.shape[1:])} for image in images(name, 4)
    ]
    trained = []
    for batch in (4, 1):
        model = copy.deepcopy(first)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):  # whose batches differ
                norm.train = lambda mode=True: None
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=4 // batch,
            max_steps=2,
            optim="sgd",
            learning_rate=0.1,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=samples).train()
        trained.append(model.state_dict())
    whole, accumulated = trained
    assert any(not torch.equal(whole[key], tensor) for key, tensor in first.state_dict().items())
    for key, tensor in whole.items():
        torch.testing.assert_close(accumulated[key], tensor, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_subclass_with_any_name_keeps_its_loss(name):
    models = architectures()[name].models
    for auto in models.keys() & {"AutoModelForSemanticSegmentation", "AutoModelForImageClassification"}:
        parent = models[auto]
        model = type("Mine", (parent,), {})(architectures()[name].variant_config("tiny", num_labels=LABELS))
        pixel_values = images(name)
        kind = {"labels": torch.zeros(2, *pixel_values.shape[-2:], dtype=torch.long)}
        kind = kind if "Segmentation" in auto else {"labels": torch.zeros(2, dtype=torch.long)}
        assert model(pixel_values, **kind).loss.isfinite()


PIPELINES = {
    "image-segmentation": "AutoModelForSemanticSegmentation",
    "image-classification": "AutoModelForImageClassification",
    "image-feature-extraction": "AutoModel",
}


@pytest.mark.parametrize(("name", "task"), [(n, task) for n, a in BUILT for task in PIPELINES if PIPELINES[task] == a])
def test_pipelines_run_without_logged_errors(name, task, tmp_path, caplog):
    build(name, PIPELINES[task]).save_pretrained(tmp_path)
    processor = architectures()[name].image_processor["torchvision"]
    processor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        results = pipeline(task, model=str(tmp_path))(photo)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert results
    if task == "image-segmentation":
        assert all(result["mask"].size == photo.size for result in results)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbone_with_fewer_stages_gives_the_same_maps(name, tmp_path):
    segmenter = build(name)
    segmenter.save_pretrained(tmp_path)
    names, kind = segmenter.config.stage_names, architectures()[name].models["AutoBackbone"]
    pixel_values = images(name)
    whole = kind.from_pretrained(tmp_path, out_features=names)
    maps = dict(zip(names, whole(pixel_values).feature_maps, strict=True))
    for chosen in ([names[-1]], names[-2:], [names[0], names[-1]]):
        backbone, account = kind.from_pretrained(tmp_path, out_features=chosen, output_loading_info=True)
        assert not account["missing_keys"] and not account["mismatched_keys"]
        for stage, feature_map in zip(chosen, backbone(pixel_values).feature_maps, strict=True):
            torch.testing.assert_close(feature_map, maps[stage])


@pytest.mark.parametrize("name", BACKBONES)
def test_auto_backbone(name):
    config = architectures()[name].variant_config("tiny")
    config.out_features = list(config.stage_names[-2:])
    backbone = AutoBackbone.from_config(config)
    with torch.no_grad():
        output = backbone(images(name))
    assert [m.shape[1] for m in output.feature_maps] == backbone.channels


@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_auto_image_processor_has_both_backends(name, backend, tmp_path):
    build(name).save_pretrained(tmp_path)
    architectures()[name].image_processor[backend]().save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(processor) is architectures()[name].image_processor[backend]


def test_auto_classes_agree_with_the_named_imports():
    assert AutoModelForImageClassification is transformers.AutoModelForImageClassification
