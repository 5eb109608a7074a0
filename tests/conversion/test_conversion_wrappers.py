"""State dicts in entries and behind prefixes of training frameworks, averages, and objects stored with the weights."""

import argparse
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversion_references import assert_equal_states, assert_refused, nvlabs_state
from hf_vit_seg.conversion.convert import convert
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def scaled(state: State, factor: float) -> State:
    return {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def converted(tmp_path: Path, content: Any, **options: Any) -> tuple[State, Any]:
    """The converted state of a saved object, and the report."""
    torch.save(content, tmp_path / "model.pth")
    report = convert(tmp_path / "model.pth", tmp_path / "out", overwrite=True, **options)
    return load_file(tmp_path / "out" / "model.safetensors"), report


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], State]:
    """The converted state of the oracle, with weights multiplied by a factor."""
    folder = tmp_path_factory.mktemp("plain")
    return lambda factor: converted(folder, scaled(nvlabs_state(), factor))[0]


WRAPPED: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s},
    "model of Lightning": lambda s: {"state_dict": prefixed("model.", s), "epoch": 3, "loops": {"a": {}}},
    "nested entries": lambda s: {"model": {"state_dict": s}},
    "data parallel": lambda s: prefixed("module.", s),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "compiled in data parallel": lambda s: {"state_dict": prefixed("module._orig_mod.", s)},
    "compiled part": lambda s: {name.replace("backbone.", "backbone._orig_mod."): t for name, t in s.items()},
    "net": lambda s: {"net": prefixed("net.", s)},
    "only averages": lambda s: {"state_dict_ema": s, "epoch": 3},
    "averaged model": lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)},
    "average of mmengine": lambda s: {"ema_state_dict": {"steps": torch.tensor(3), **prefixed("module.", s)}},
    "teacher and student": lambda s: {"teacher": prefixed("module.", s), "student": scaled(s, 2), "epoch": 3},
    "prefixes of teacher and student": lambda s: prefixed("teacher.", s) | prefixed("student.", scaled(s, 2)),
    "weights and average": lambda s: {"state_dict": s, "state_dict_ema": scaled(s, 2)},
    "weights and averaged prefix": lambda s: prefixed("model.", s) | prefixed("model_ema.", scaled(s, 2)),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapped_state_dicts_are_found(tmp_path: Path, expected: Callable[[float], State], case: str) -> None:
    found, _ = converted(tmp_path, WRAPPED[case](nvlabs_state()))
    assert_equal_states(found, expected(1))


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        ("weights and average", "state_dict_ema"),
        ("weights and averaged prefix", "model_ema"),
        ("teacher and student", "student"),
        ("prefixes of teacher and student", "student"),
    ],
)
def test_weights_are_chosen_and_reported(
    tmp_path: Path, expected: Callable[[float], State], case: str, weights: str
) -> None:
    content = WRAPPED[case](nvlabs_state())
    found, report = converted(tmp_path, content, weights=weights)
    assert_equal_states(found, expected(2))
    assert report.weights.startswith(f"'{weights}")
    _, report = converted(tmp_path, content)
    assert weights in report.weights.partition("also has")[2]
    assert ("weights", report.weights) in report.rows()


def test_weights_that_are_missing_raise(tmp_path: Path) -> None:
    torch.save({"state_dict": nvlabs_state(), "model_ema": nvlabs_state()}, tmp_path / "model.pth")
    sentence = "no weights named 'ema'; choose from 'state_dict', 'model_ema'"
    assert_refused(tmp_path, sentence, tmp_path / "model.pth", weights="ema")


def test_names_with_and_without_prefix_raise(tmp_path: Path) -> None:
    state = nvlabs_state()
    name = next(iter(state))
    torch.save({**state, f"_orig_mod.{name}": state[name]}, tmp_path / "model.pth")
    assert_refused(tmp_path, "twice", tmp_path / "model.pth")


def test_counter_of_averages_is_reported_as_dropped(tmp_path: Path) -> None:
    _, report = converted(tmp_path, WRAPPED["averaged model"](nvlabs_state()))
    assert "n_averaged" in dict(report.dropped)


def test_counters_of_a_profiler_are_dropped(tmp_path: Path, expected: Callable[[float], State]) -> None:
    state = nvlabs_state()
    modules = dict.fromkeys(["", *(name.rpartition(".")[0] + "." for name in state)])
    counters = {f"{module}{name}": torch.zeros(1) for module in modules for name in ("total_ops", "total_params")}
    found, report = converted(tmp_path, prefixed("module.", state | counters))
    assert_equal_states(found, expected(1))
    assert dict(report.dropped).keys() >= {f"module.{name}" for name in counters}


class HistoryBuffer:
    """As in mmengine: unpickling restores arrays by NumPy's own functions."""

    def __init__(self) -> None:
        self.history, self.mean = np.arange(3.0), np.float64(2)

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("code of the checkpoint was run")


@pytest.mark.parametrize("old_format", [False, True])
def test_pickled_objects_next_to_weights_are_ignored(
    tmp_path: Path, expected: Callable[[float], State], monkeypatch: pytest.MonkeyPatch, old_format: bool
) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    module.HistoryBuffer = HistoryBuffer
    content = {
        "state_dict": OrderedDict(nvlabs_state()),
        "best": np.float32(0.5),
        "epoch": np.int64(3),
        "curve": np.zeros(3),
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
    }
    torch.save(content, tmp_path / "model.pth", _use_new_zipfile_serialization=not old_format)
    convert(tmp_path / "model.pth", tmp_path / "out")
    assert_equal_states(load_file(tmp_path / "out" / "model.safetensors"), expected(1))


def test_objects_among_the_weights_raise(tmp_path: Path) -> None:
    torch.save({**nvlabs_state(), "epoch": np.int64(3)}, tmp_path / "model.pth")
    assert_refused(tmp_path, "'epoch (Ignored)'", tmp_path / "model.pth")
    torch.save({"state_dict": nvlabs_state(), "net": nn.Linear(2, 2)}, tmp_path / "model.pth")
    assert_refused(tmp_path, "'torch.nn.modules.linear.Linear'", tmp_path / "model.pth")
