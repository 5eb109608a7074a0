"""The learning rate in the log is the recipe's, also if parameter groups have other rates."""

import pytest
from tiny_runs import log, run, settings, write_data, write_recipe


def test_logged_rate_follows_the_recipe_and_its_schedule(tmp_path):
    recipe = settings(
        write_data(tmp_path / "data"),
        optimizer={"learning_rate": 1e-3, "head_multiplier": 10, "layer_decay": 0.5},
        schedule={"name": "poly", "warmup_steps": 2, "warmup_start": 0.1},
    )
    run(write_recipe(tmp_path, recipe), tmp_path / "run", "loop.steps=4")
    rates = [rate for _, rate in log(tmp_path / "run", "learning_rate")]
    assert rates == pytest.approx([1e-4, 5.5e-4, 1e-3, 5e-4])
