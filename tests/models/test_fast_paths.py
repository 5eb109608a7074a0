"""Fast paths behave like torch's plain operators with hooks, counters, transforms and threads."""

import copy
from threading import Thread

import pytest
import torch
from random_weights import randomize_weights
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSemanticSegmentation, PreTrainedModel

from hf_vit_seg import architectures
from hf_vit_seg.models.all_mlp_head import AllMLPHead

# Large enough for all of their fast paths.
VARIANTS = [("segformer", "b0"), ("vit", "ti-16"), ("vit", "r-ti-16"), ("cvt", "cvt-13")]


@pytest.fixture(params=VARIANTS, ids=[variant for _, variant in VARIANTS])
def model(request) -> PreTrainedModel:
    name, variant = request.param
    config = architectures()[name].variant_config(variant, num_labels=3)
    return AutoModelForSemanticSegmentation.from_config(config, attn_implementation="eager").eval()


def random_images(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 128, 128)


def test_flop_counts_match_with_and_without_autograd(model):
    pixel_values = random_images()
    with FlopCounterMode(display=False) as training:
        model(pixel_values)
    with torch.no_grad(), FlopCounterMode(display=False) as inference:
        model(pixel_values)
    assert inference.get_total_flops() == training.get_total_flops() > 0


def test_forward_mode_derivatives(model):
    pixel_values, direction = random_images(), torch.randn(1, 3, 128, 128)

    def logits(pixel_values):
        return model(pixel_values).logits

    slopes = [jvp(logits, (pixel_values,), (direction,))[1].detach()]
    with torch.no_grad():
        slopes.append(jvp(logits, (pixel_values,), (direction,))[1])
        model.double()
        ahead, behind = (logits(pixel_values.double() + step * direction.double()) for step in (1e-5, -1e-5))
    expected = ((ahead - behind) / 2e-5).float()
    assert expected.norm() > 1e-3
    for slope in slopes:
        assert (slope - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-2), (torch.float64, 1e-9)])
def test_per_sample_gradients(model, dtype, tolerance):
    """In float32, which alone has fast paths, rounding can move a value across the threshold of a ReLU."""
    model.to(dtype)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    pixel_values = random_images(2).to(dtype)

    def loss(parameters, image):
        return functional_call(model, (parameters, buffers), (image[None],)).logits.square().mean()

    gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, pixel_values)
    for sample, image in enumerate(pixel_values):
        model.zero_grad()
        model(image[None]).logits.square().mean().backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                difference = (gradients[name][sample] - parameter.grad).norm()
                assert difference <= tolerance * (parameter.grad.norm() + 1e-5), name


def test_hook_on_any_layer_is_called_once(model):
    pixel_values = random_images()
    layers = {name: layer for name, layer in model.named_modules() if not list(layer.children())}
    called = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, output, name=name: called.setdefault(name, []).append(output.shape))
    expected = model(pixel_values).logits
    with_autograd = dict(called)
    called.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, expected, rtol=1e-3, atol=1e-4)
    assert called == with_autograd
    assert "decode_head.classifier" in called


def test_global_hook_sees_every_layer(model):
    seen = []
    hook = register_module_forward_hook(lambda layer, *_: seen.append(layer))
    try:
        model(random_images())
        with_autograd = list(seen)
        seen.clear()
        with torch.no_grad():
            model(random_images())
    finally:
        hook.remove()
    assert seen == with_autograd


def test_hook_on_the_head_keeps_its_fast_path(model, monkeypatch):
    head = model.decode_head
    if not isinstance(head, AllMLPHead):
        pytest.skip("has another head")
    head.register_forward_hook(lambda *_: None)
    monkeypatch.setattr(head.fuse, "forward", None)  # only the equation calls it
    model(random_images())


@torch.no_grad()
def test_threads_can_share_a_model(model):
    sizes = [(64, 128), (128, 64), (96, 96)]
    images = [torch.randn(1, 3, *size) for size in sizes]
    expected = [model(image).logits for image in images]
    wrong = []

    def ask(image, answer):
        with torch.no_grad():
            for _ in range(40):
                try:
                    torch.testing.assert_close(model(image).logits, answer, rtol=1e-3, atol=1e-4)
                except Exception as error:
                    wrong.append(error)

    threads = [Thread(target=ask, args=pair) for pair in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pruned_head_trains():
    config = architectures()["segformer"].variant_config("tiny", num_labels=3)
    model = randomize_weights(AutoModelForSemanticSegmentation.from_config(config)).train()
    for layer in (model.decode_head.fuse, model.decode_head.projections[0]):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
        optimizer.step()
    assert (model.decode_head.fuse.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("name", "variant"), [("segformer", "b0"), ("vit", "ti-16"), ("cvt", "cvt-13")])
def test_dropout_matches_with_either_checkpointing_mode(name, variant):
    """If the first pass runs without autograd, it must draw the same dropout as the second."""
    fields = {"hidden_dropout_prob": (0.0, 0.0, 0.3) if name == "cvt" else 0.3, "drop_path_rate": 0.0}
    config = architectures()[name].variant_config(variant, num_labels=3, **fields)
    plain = AutoModelForSemanticSegmentation.from_config(config).train()
    pixel_values = torch.randn(1, 3, 256, 320)
    gradients = []
    for kwargs in (None, {"use_reentrant": True}, {"use_reentrant": False}):
        model = copy.deepcopy(plain)
        if kwargs is not None:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        torch.manual_seed(3)
        model(pixel_values).logits.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-3 * gradients[0].norm()
