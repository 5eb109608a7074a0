"""Schedules are pure functions of the step and match transformers where it has the same schedule."""

from itertools import pairwise

import pytest
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.optimization.schedules import SHAPES, build_schedule, peak_factor, warmup_steps
from hf_vit_seg.training.recipe.schema import ScheduleRecipe

STEPS = 50


def schedule(**settings) -> ScheduleRecipe:
    return read_record(ScheduleRecipe, settings)


def optimizer(rates=(1.0,)) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=rates[0])


def rates_of(scheduler, steps=STEPS):
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr())
        scheduler.optimizer.step()
        scheduler.step()
    return found


THEIRS = {
    "poly": lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, 7, STEPS, lr_end=0.1, power=2.0),
    "cosine": lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, 7, STEPS, min_lr=0.1),
    "wsd": lambda o: transformers.get_wsd_schedule(
        o, 7, 10, num_training_steps=STEPS, min_lr_ratio=0.1, decay_type="linear"
    ),
    "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, 7),
}


@pytest.mark.parametrize("name", THEIRS)
def test_schedules_match_transformers(name):
    start = 0.1 if name == "wsd" else 0.0  # transformers' warm-up starts at the final ratio
    recipe = schedule(name=name, warmup_steps=7, warmup_start=start, power=2.0, final=0.1, decay_share=0.2)
    ours = rates_of(build_schedule(optimizer(), recipe, STEPS))
    theirs = rates_of(THEIRS[name](optimizer()))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-9)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(1, 300),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.5, 3),
)
def test_rates_warm_up_to_the_peak_and_decay_to_the_end(name, steps, warmup, start, final, power):
    recipe = schedule(name=name, warmup_steps=warmup, warmup_start=start, final=final, power=power, decay_share=0.4)
    count = round(warmup * steps)
    assume(count < steps and not (name == "wsd" and count + 0.4 * steps > steps))
    share = peak_factor(recipe, steps)
    shares = [share(step) for step in range(steps + 1)]
    assert shares[count] == pytest.approx(1)
    assert shares[0] == pytest.approx(start if count else 1)
    assert shares[-1] == pytest.approx(1 if name in ("constant", "multistep") else final)
    assert all(a <= b + 1e-12 for a, b in pairwise(shares[: count + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(shares[count:]))
    assert share(steps + 5) == shares[-1]


def test_step_schedule_matches_torch():
    recipe = schedule(name="multistep", milestones=(0.4, 0.8), factor=0.3)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer(), [round(0.4 * STEPS), round(0.8 * STEPS)], gamma=0.3)
    ours = rates_of(build_schedule(optimizer(), recipe, STEPS))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(rates_of(theirs)))


@pytest.mark.parametrize("name", SHAPES)
def test_resumed_schedule_continues_exactly(name):
    recipe = schedule(name=name, warmup_steps=0.1, final=0.01)
    whole = rates_of(build_schedule(optimizer((1.0, 0.3)), recipe, STEPS))
    first = build_schedule(optimizer((1.0, 0.3)), recipe, STEPS)
    rates_of(first, 20)
    second = build_schedule(optimizer((1.0, 0.3)), recipe, STEPS)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates_of(second, 30) == whole[20:]


def test_parameter_groups_keep_their_ratios():
    rates = rates_of(build_schedule(optimizer((1.0, 0.25)), schedule(warmup_steps=5), STEPS))
    assert all(small == pytest.approx(0.25 * large) for large, small in rates)


def test_warmup_below_one_is_a_fraction():
    assert warmup_steps(schedule(warmup_steps=0.05), 200) == 10
    assert warmup_steps(schedule(warmup_steps=10), 200) == 10
    assert warmup_steps(schedule(), 1) == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"warmup_steps": 50}, "expected less than the run.s 50 steps"),
        ({"warmup_steps": 1.5}, "found 1.5, expected an integer, or a share below 1"),
        ({"name": "wsd", "warmup_steps": 20, "decay_share": 0.8}, r"over 0\.8 of all steps exceed the run's 50"),
    ],
)
def test_schedule_longer_than_the_run_raises(settings, reason):
    with pytest.raises(RecordError, match=reason):
        peak_factor(schedule(**settings), STEPS)
