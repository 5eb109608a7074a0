"""A bug in an optimizer, a loss or a plugin is not reported as a recipe error: its traceback is shown and saved."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_runs import forget_accelerate, settings, write_data, write_recipe

from hf_vit_seg.data.transforms.context import TransformContext, TransformOptions
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.error_reporting import BUG, REFUSED
from hf_vit_seg.models.modeling_segformer import SegFormerForSemanticSegmentation
from hf_vit_seg.training.losses import pixel_losses
from hf_vit_seg.training.train_commands import evaluate_command, train_command


def broken_code(*arguments: Any, **options: Any) -> Any:
    raise ValueError("wrong shapes inside")


class BrokenTransform(TransformOptions):
    """A plugin transform that raises when it is called."""

    def build(self, context: TransformContext) -> Callable[..., Any]:
        return broken_code


class BrokenOptions(TransformOptions):
    """A plugin transform that raises when it is built."""

    def build(self, context: TransformContext) -> Callable[..., Any]:
        return broken_code()


def break_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", broken_code)


def break_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_losses.CrossEntropyTerm, "forward", broken_code)


def break_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS.rows, "random_flip", BrokenTransform)


def break_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS.rows, "random_flip", BrokenOptions)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bugs")
    short = {"steps": 1, "batch_size": 2}
    return write_recipe(folder, settings(write_data(folder / "data"), loop=short, evaluation={"samples": 0}))


@pytest.mark.parametrize("breaks", [break_optimizer, break_loss, break_transform, break_options])
def test_bug_keeps_its_traceback_and_exits_70(recipe, tmp_path, monkeypatch, capsys, breaks):
    out = tmp_path / "run"
    with monkeypatch.context() as broken:
        breaks(broken)
        forget_accelerate()
        assert train_command(str(recipe), [], out, resume=False, overwrite=False) == BUG
    printed, kept = capsys.readouterr().err, (out / "error.log").read_text()
    for text in (printed, kept):
        assert "Traceback (most recent call last)" in text and "in broken_code" in text
        assert "ValueError: wrong shapes inside" in text


def test_bug_log_is_not_a_run_and_is_removed_by_the_next(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with monkeypatch.context() as broken:
        break_options(broken)
        forget_accelerate()
        assert train_command(str(recipe), [], out, resume=False, overwrite=False) == BUG
    forget_accelerate()
    assert train_command(str(recipe), [], out, resume=False, overwrite=False) == 0
    assert not (out / "error.log").exists()
    forget_accelerate()
    assert train_command(str(recipe), [], out, resume=False, overwrite=False) == REFUSED
    assert not (out / "error.log").exists() and "Traceback" not in capsys.readouterr().err.rpartition("--resume")[2]


def test_bug_in_an_evaluation_is_preserved_in_its_folder(recipe, tmp_path, monkeypatch, capsys):
    out, scores = tmp_path / "run", tmp_path / "scores"
    forget_accelerate()
    assert train_command(str(recipe), [], out, resume=False, overwrite=False) == 0
    monkeypatch.setattr(SegFormerForSemanticSegmentation, "forward", broken_code)
    forget_accelerate()
    assert evaluate_command(str(out / "last"), [], None, "validation", scores) == BUG
    for text in (capsys.readouterr().err, (scores / "error.log").read_text()):
        assert "Traceback (most recent call last)" in text and "ValueError: wrong shapes inside" in text
