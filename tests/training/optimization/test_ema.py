"""The exponential moving average of weights: values, swapping with the model, and exact resume."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from training_models import IMAGES, random_model, train_steps

from hf_vit_seg.training.optimization.ema import WeightAverage, decay_at
from hf_vit_seg.training.recipe.schema import EmaRecipe

STEADY = EmaRecipe(decay=0.9, warmup=False)


def train(model, average, steps, first=1):
    """Steps as in the training loop: the optimizer's, then the average's."""
    for step in range(first, first + steps):
        train_steps(model, 1)
        average.update(step)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(ones, others):
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("recipe", [STEADY, EmaRecipe(decay=0.9)])
def test_average_matches_the_recurrence(recipe):
    model = random_model("segformer")
    average = WeightAverage(model, recipe)
    expected = {}
    for step in range(1, 6):
        train(model, average, 1, step)
        decay = min(0.9, (1 + step) / (10 + step)) if recipe.warmup else 0.9
        for name, tensor in model.state_dict().items():
            blends = step > 1 and tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double() if blends else tensor.clone()
    for name, tensor in average.average.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=1e-5, atol=1e-6)


def test_statistics_of_batch_norms_are_averaged_and_counts_copied():
    model = random_model("segformer")
    average = WeightAverage(model, STEADY)
    train(model, average, 3)
    ours, theirs = average.average.module.decode_head.fuse_norm, model.decode_head.fuse_norm
    assert not torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def test_decay_warms_up_to_its_value():
    decays = [decay_at(EmaRecipe(decay=0.99), step) for step in range(1, 2000)]
    assert decays[0] == pytest.approx(2 / 11) and decays[-1] == 0.99
    assert decays == sorted(decays)
    assert decay_at(STEADY, 1) == 0.9


def test_resumed_average_is_bit_identical():
    whole = random_model("segformer")
    average = WeightAverage(whole, EmaRecipe())
    train(whole, average, 4)
    kept, kept_weights = copy.deepcopy(average.state_dict()), snapshot(whole)
    torch.manual_seed(7)
    train(whole, average, 4, 5)
    resumed = random_model("segformer")
    resumed.load_state_dict(kept_weights)
    second = WeightAverage(resumed, EmaRecipe())
    second.load_state_dict(kept)
    torch.manual_seed(7)
    train(resumed, second, 4, 5)
    assert_equal(second.state_dict(), average.state_dict())
    assert_equal(snapshot(resumed), snapshot(whole))


def test_weights_are_swapped_without_a_copy():
    model = random_model("cvt")
    average = WeightAverage(model, STEADY)
    train(model, average, 3)
    trained, averaged = snapshot(model), snapshot(average.average.module)
    places = {name: tensor.data_ptr() for name, tensor in average.average.module.state_dict().items()}
    parameters = list(model.parameters())
    with average.apply(model) as applied:
        assert applied is model
        assert_equal(snapshot(model), averaged)
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert_equal(snapshot(model), trained)
    assert_equal(snapshot(average.average.module), averaged)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_error_inside_restores_trained_weights():
    model = random_model("segformer")
    average = WeightAverage(model, STEADY)
    train(model, average, 2)
    trained = snapshot(model)
    with pytest.raises(KeyboardInterrupt), average.apply():
        raise KeyboardInterrupt
    assert_equal(snapshot(model), trained)


@torch.no_grad()
def test_folded_head_is_never_stale_after_swap():
    """The decode head caches values computed from its weights, see models/value_cache.py."""
    model = random_model("segformer")
    average = WeightAverage(model, STEADY)
    with torch.enable_grad():
        train(model, average, 3)
    model.eval()
    maps = model.segformer(IMAGES, output_hidden_states=True).hidden_states
    head = model.decode_head

    def is_plain():
        torch.testing.assert_close(head(maps), head.forward.__wrapped__(head, maps), rtol=1e-4, atol=1e-4)
        assert head.folded.entry.result is not None
        return head(maps)

    before = is_plain()
    with average.apply():
        inside = is_plain()
    assert not torch.allclose(inside, before)
    assert torch.equal(is_plain(), before)


def test_evaluation_does_not_change_training():
    runs = []
    for evaluates in (False, True):
        model = random_model("segformer")
        average = WeightAverage(model, EmaRecipe())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(3)
        for step in range(1, 5):
            model.train()
            model(IMAGES, labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(step)
            if evaluates:
                with average.apply(model), torch.no_grad():
                    model.eval()(IMAGES)
        runs.append(snapshot(model) | {f"average.{k}": v for k, v in average.state_dict().items()})
    assert_equal(*runs)


@pytest.fixture
def _alone():
    """A process group of one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_data_parallel_model_is_unwrapped():
    model = random_model("segformer")
    wrapped = nn.parallel.DistributedDataParallel(model)
    average = WeightAverage(wrapped, STEADY)
    train(wrapped, average, 2)
    averaged = snapshot(average.average.module)
    assert list(averaged) == list(model.state_dict())
    with average.apply(wrapped) as applied:
        assert applied is wrapped
        assert_equal(snapshot(model), averaged)
    train(wrapped, average, 1, 3)
    assert not torch.equal(model.decode_head.fuse.weight, averaged["decode_head.fuse.weight"])


def test_bfloat16_model_is_averaged_in_float32():
    model = Accelerator(cpu=True, mixed_precision="bf16").prepare(random_model("segformer"))
    average = WeightAverage(model, STEADY)
    train(model, average, 2)
    assert {tensor.dtype for tensor in average.average.parameters()} == {torch.float32}
    with average.apply(model), torch.no_grad():
        assert model.eval()(IMAGES).logits.isfinite().all()


def test_mismatched_model_raises():
    average = WeightAverage(random_model("segformer"), STEADY)
    with pytest.raises(ValueError, match="another model"), average.apply(random_model("segformer")):
        pass
