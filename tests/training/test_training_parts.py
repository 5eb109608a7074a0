"""Small parts of training: accumulation, memory advice, early stopping, atomic directories, signals."""

import os
import re
import signal
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DeepSpeedPlugin, DistributedType
from accelerate.utils import GradientAccumulationPlugin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_models import recipe

from hf_vit_seg.atomic_io import clean_up, commit, new_directory, remove_directory
from hf_vit_seg.errors import OutOfMemory, is_out_of_memory
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.best_score import BestTracker
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, local_batches, read_ahead
from hf_vit_seg.training.loop.batch_size_search import find_batch_size, largest_batch_size, parameters_without_gradient
from hf_vit_seg.training.loop.gradient_accumulation import accumulate, windows
from hf_vit_seg.training.loop.setup import check_zero_stage, configure_deepspeed
from hf_vit_seg.training.loop.signals import GracefulStop
from hf_vit_seg.training.optimization.gathered_weights import check_average_is_not_sharded, gathered_model
from hf_vit_seg.training.recipe.metric_names import METRICS
from hf_vit_seg.training.recipe.schema import EarlyStopRecipe
from hf_vit_seg.training.reports.memory_advice import training_advice

IGNORED = 255


class PixelLoss:
    """Cross-entropy and mean squared logit, whose units differ: valid pixels, and images with valid pixels."""

    def units(self, batch):
        valid = (batch["labels"] != IGNORED).flatten(1)
        return torch.stack([valid.sum(), valid.any(1).sum()])

    def totals(self, model, batch):
        logits, labels = model(batch["pixel_values"]), batch["labels"]
        entropy = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        images = (labels != IGNORED).flatten(1).any(1)
        return torch.stack([entropy, (logits.square().mean((1, 2, 3)) * images).sum()])

    def combine(self, totals, units):
        return (totals / units.clamp(1) * torch.tensor([1.0, 0.3], dtype=totals.dtype)).sum()


def random_batch(size: int, ignored: float) -> dict[str, torch.Tensor]:
    labels = torch.randint(0, 3, (size, 6, 6))
    return {
        "pixel_values": torch.randn(size, 2, 6, 6, dtype=torch.float64),
        "labels": labels.masked_fill(torch.rand(labels.shape) < ignored, IGNORED),
    }


def gradient(model: nn.Module, window) -> tuple[torch.Tensor, torch.Tensor]:
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=len(window), sync_with_dataloader=False),
    )
    model.zero_grad()
    loss = accumulate(accelerator, model, PixelLoss(), window)
    assert accelerator.sync_gradients  # the last batch of the window makes the step
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


@given(shares=st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=20)
def test_accumulated_gradients_match_one_large_batch(shares):
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.ConvTranspose2d(8, 3, 3)).double()
    batches = [random_batch(2, share) for share in shares]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    loss, gradients = gradient(model, [whole])
    loss_of_parts, gradients_of_parts = gradient(model, batches)
    assert torch.allclose(loss_of_parts, loss, rtol=1e-12)
    assert torch.allclose(gradients_of_parts, gradients, rtol=1e-9, atol=1e-12)
    if (whole["labels"] != IGNORED).any():
        assert gradients.abs().sum() > 0


def test_accumulation_windows_have_the_configured_length():
    batches = [{"number": number} for number in range(7)]
    assert list(windows(batches, 3)) == [batches[:3], batches[3:6]]


# Processes


@given(length=st.integers(0, 30), processes=st.integers(1, 5), size=st.integers(1, 4))
def test_every_sample_is_evaluated_once(length, processes, size):
    found = []
    for index in range(processes):
        accelerator = SimpleNamespace(process_index=index, num_processes=processes)
        recipe = SimpleNamespace(task="classification", evaluation=SimpleNamespace(batch_size=size))
        context = EvaluationContext(None, None, recipe, accelerator)
        for batch in local_batches(context, length, lambda i: i, lambda i: i // 10):
            assert len(batch) <= size and len({i // 10 for i in batch}) == 1
            found += batch
    assert sorted(found) == list(range(length))


def test_prefetch_error_stops_the_loader():
    def read(index):
        if index == 3:
            raise ValueError("cut short")
        return index

    items = read_ahead(read, range(10_000))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="cut short"):
        next(items)


def test_sharded_weights_are_gathered_in_a_copy():
    """As under FSDP, whose model has another class and shards of the weights; here each shard is complete."""
    model, copy = nn.Linear(3, 2), nn.Linear(3, 2)
    scattering = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        is_main_process=True,
        device=torch.device("cpu"),
        get_state_dict=lambda model: model.state_dict(),
    )
    Accelerator(cpu=True)
    with gathered_model(scattering, model, None, copy) as whole:
        assert whole is copy and torch.equal(whole.weight, model.weight) and torch.equal(whole.bias, model.bias)
    recipe = SimpleNamespace(loop=SimpleNamespace(ema=object()))
    with pytest.raises(RecordError, match=r"loop\.ema is not supported with FSDP"):
        check_average_is_not_sharded(recipe, scattering)


def test_deepspeed_uses_accumulation_and_clipping_of_the_recipe():
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 2}, "gradient_clipping": 3.0})
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    check_zero_stage(accelerator)
    for clip_norm in (0.5, None):
        loop = {"steps": 1, "batch_size": 2, "accumulation": 4, "clip_norm": clip_norm}
        configure_deepspeed(accelerator, recipe(loop=loop))
        names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        assert [plugin.get_value(name) for name in names] == [2, 4, clip_norm or 0]
    accelerator.state.deepspeed_plugin = DeepSpeedPlugin(zero_stage=3)
    with pytest.raises(RecordError, match="stage 3"):
        check_zero_stage(accelerator)


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_errors_are_recognized(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@given(size=st.integers(2, 100), accumulation=st.integers(1, 8))
def test_memory_advice_keeps_the_effective_batch_size(size, accumulation):
    output = training_advice(recipe(loop={"steps": 1, "batch_size": size, "accumulation": accumulation}))
    lower, passes = map(int, re.search(r"such as loop\.batch_size=(\d+) loop\.accumulation=(\d+)", output).groups())
    assert lower < size and lower * passes == size * accumulation


def test_torch_cpu_memory_error_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


@given(limit=st.integers(1, 3000), most=st.integers(1, 3000))
def test_largest_fitting_power_of_two_is_found(limit, most):
    found = largest_batch_size(lambda size: size <= limit, most)
    assert found <= min(limit, most) < 2 * found
    assert found & (found - 1) == 0


def test_batch_size_of_one_out_of_memory_raises_with_advice():
    with pytest.raises(OutOfMemory, match=r"smaller crops"):
        largest_batch_size(lambda size: False, 8)


class Greedy(nn.Module):
    """Fits at most three images."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout())

    def forward(self, pixel_values):
        if len(pixel_values) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return self.layer(pixel_values)


def test_batch_size_search_keeps_model_and_random_state():
    model, sample = Greedy().double(), random_batch(1, 0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    size = find_batch_size(model, PixelLoss(), sample, torch.device("cpu"), nullcontext, 16)
    assert size == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_parameters_without_gradient_are_found():
    model = nn.Sequential(nn.Conv2d(2, 3, 1)).double()
    model.spare = nn.Linear(2, 2)
    model.forward = model[0].forward
    model[0].bias.requires_grad_(False)
    assert parameters_without_gradient(model, PixelLoss(), random_batch(1, 0.2)) == ["spare.weight", "spare.bias"]
    assert all(p.grad is None for p in model.parameters())


# Early stopping


def test_early_stopping_counts_evaluations_without_improvement():
    rule, best_tracker, ends = EarlyStopRecipe(patience=2, min_delta=0.1), BestTracker(), []
    for step, value in enumerate([0.5, 0.55, float("nan"), 0.58, 0.65]):
        best_tracker = best_tracker.after("mean_iou", value, step, rule)
        ends.append(best_tracker.should_stop(rule))
    assert (best_tracker.best, best_tracker.best_step) == (0.65, 4)
    assert ends == [False, False, True, True, False]


@pytest.mark.parametrize("name", [name for names in METRICS.values() for name in names if "error" in name])
def test_error_metrics_are_minimized(name):
    best_tracker = BestTracker().after(name, 0.5, 1).after(name, 0.7, 2)
    assert (best_tracker.best, best_tracker.best_step, best_tracker.evaluations_without_improvement) == (0.5, 1, 1)


# Atomic directories


def fill(target, text: str) -> None:
    temporary = new_directory(target)
    (temporary / "sub").mkdir()
    (temporary / "sub" / "file").write_text(text)


def test_directories_are_replaced_atomically(tmp_path):
    target = tmp_path / "best"
    for text in ("first", "second"):
        fill(target, text)
        commit(target)
        assert (target / "sub" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    remove_directory(target)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    for name in ("best", "last"):
        fill(tmp_path / name, name)
        commit(tmp_path / name)
    fill(tmp_path / "step-000100", "half")  # killed before it was complete
    (tmp_path / "best").rename(tmp_path / ".old-best")  # killed between the two renames
    fill(tmp_path / ".old-last", "killed before the old one was removed")
    (tmp_path / ".tmp-.old-last").rename(tmp_path / ".old-last")
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]
    assert (tmp_path / "best" / "sub" / "file").read_text() == "best"
    assert (tmp_path / "last" / "sub" / "file").read_text() == "last"


# Signals


def test_first_signal_requests_stop_and_second_exits(monkeypatch):
    monkeypatch.setattr("hf_vit_seg.training.loop.signals.ECHO_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGINT)
    with GracefulStop() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher that forwards the first one
        assert request.signal == signal.SIGINT
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert threading.current_thread() is threading.main_thread()
