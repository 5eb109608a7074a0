"""Plugins are entry points; a broken one is reported by name and does not affect the others."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from paths import REPOSITORY
from plugin_environment import run_commands, write_distribution
from rich.table import Table as View
from tiny_runs import settings, write_data, write_recipe
from torch import nn
from transformers import PreTrainedConfig

from hf_vit_seg import architectures, entry_points, plugin_listing, plugins
from hf_vit_seg.data.sources.source import SourceRecord
from hf_vit_seg.data.sources.source_registry import SOURCES, SourceError, open_source
from hf_vit_seg.data.transforms.batch_mixing import BatchOptions
from hf_vit_seg.data.transforms.context import TransformContext, TransformOptions
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS, read_pipeline
from hf_vit_seg.entry_points import PREFIX, HeadClass, Plugin, check_contract, load_all, load_entry, subclass_check
from hf_vit_seg.export.exporters import Exporter
from hf_vit_seg.inference import runtimes
from hf_vit_seg.models.segmentation_heads import HEADS, find_head
from hf_vit_seg.plugin_listing import GROUPS, TABLES, check_plugin, list_variants, models_view, unknown_groups
from hf_vit_seg.plugins import accept_head, check_architecture
from hf_vit_seg.records import Record, RecordError, Table
from hf_vit_seg.training.losses.loss_registry import LOSSES, LossSum
from hf_vit_seg.training.losses.terms import Loss, LossTerm

BROKEN = {
    "no_such_module": ("hf_vit_seg_absent.module:ARCHITECTURE", "ModuleNotFoundError"),
    "no_such_name": ("hf_vit_seg.plugins:ABSENT", "AttributeError"),
    "of_another_kind": ("hf_vit_seg.plugins:GROUP", "expected a subclass of hf_vit_seg.records.Record, found str"),
    "of_another_class": ("hf_vit_seg.plugins:Architecture", "found class Architecture"),
}
STRANGE = {
    "raises": "raise RuntimeError('half a package')\n",
    "leaves": "import sys\nsys.exit('goodbye')\n",
    "works": "from hf_vit_seg.records import Record\nclass Kind(Record):\n    size: int = 3\n",
}


class Own(Record):
    pass


def install_plugins(folder, group="hf_vit_seg.strange", **entries):
    targets = {name: f"{module}:Kind" for name, module in entries.items()}
    return write_distribution(folder, "strangers", {group: targets}, STRANGE)


def test_built_in_architectures_are_entry_points():
    found = {plugin.name: plugin for plugin in plugins()}
    assert found["segformer"].target == "hf_vit_seg.models.plugin_segformer:ARCHITECTURE"
    assert found["segformer"].origin.startswith("hf_vit_seg ")
    assert found["segformer"].error is None
    assert "segformer" in architectures()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_reports_its_error(name):
    target, reason = BROKEN[name]
    plugin = load_entry(EntryPoint(name=name, value=target, group="hf_vit_seg.losses"), subclass_check(Record))
    assert plugin.value is None
    assert reason in (plugin.error or "")


def test_table_has_working_plugins_and_reports_the_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_plugins(tmp_path, fine="works", broken="raises", gone="leaves", own="works"))
    table = Table("strange thing", {"own": Own}, Record, "hf_vit_seg.strange")
    assert table.read("fine", {"size": 5}, "here").size == 5
    assert type(table.read("own", {}, "here")) is Own
    sentence = "here: strange thing 'broken' of strangers 1.0 cannot be loaded: RuntimeError: half a package"
    with pytest.raises(RecordError, match=sentence):
        table.read("broken", {}, "here")
    with pytest.raises(RecordError, match="SystemExit: goodbye"):
        table.read("gone", {}, "here")
    errors = {plugin.name: plugin.error for plugin in table.plugins()}
    assert errors["fine"] is None
    assert errors["own"] == "the name is already used by hf_vit_seg; choose another"
    assert errors["broken"] and errors["gone"]


def test_duplicate_plugin_names_raise(tmp_path, monkeypatch):
    entries = {"hf_vit_seg.strange": {"same": "works:Kind"}}
    for name in ("first", "second"):
        monkeypatch.syspath_prepend(write_distribution(tmp_path / name, name, entries, STRANGE))
    one, other = load_all("hf_vit_seg.strange", subclass_check(Record))
    assert (one.error is None) != (other.error is None)
    assert "the name is already used by" in f"{one.error}{other.error}"


def test_unknown_group_is_reported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install_plugins(tmp_path, group="hf_vit_seg.loss", fine="works"))
    assert [(p.name, p.error) for p in unknown_groups()] == [
        ("fine", "unknown group; did you mean 'hf_vit_seg.losses'?")
    ]


class Stranger(PreTrainedConfig):
    model_type = "stranger"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "cvt"}, "an architecture named 'cvt' already exists"),
        ({"config": architectures()["cvt"].config}, "model_type 'cvt_seg' already exists"),
        ({"models": {"AutoModelForNothing": None}}, "has unknown Auto classes: AutoModelForNothing"),
        ({"image_processor": {"pil": object}}, "has pil, expected classes for pil and torchvision"),
        ({"image_processor": {}}, "has nothing, expected"),
    ],
)
def test_architecture_cannot_replace_another(changes, reason):
    known = list(architectures().values())
    good = replace(architectures()["cvt"], name="stranger", config=Stranger)
    check_architecture(good, known)
    with pytest.raises(ValueError, match=reason):
        check_architecture(replace(good, **changes), known)


def test_built_in_heads_are_found_by_name():
    assert HEADS.keys() == {"linear", "mask_transformer", "feature_pyramid", "all_mlp"}
    assert all(find_head(name) is head for name, head in HEADS.items())


def test_broken_files_of_an_architecture_are_reported(tmp_path, monkeypatch):
    (tmp_path / "broken.yaml").write_text("tiny: {hidden_sizes: a lot}")
    variants = tmp_path / "broken.yaml"
    broken = replace(architectures()["cvt"], variants=variants, conversions=("absent:SOURCE",), forms=("absent:FORMS",))
    plugin = check_plugin(Plugin("hf_vit_seg.architectures", "broken", "broken:ARCHITECTURE", "strangers 1.0", broken))
    assert "variants: " in (plugin.error or "") and "hidden_sizes" in (plugin.error or "")
    assert "conversion absent:SOURCE: ModuleNotFoundError: No module named 'absent'" in (plugin.error or "")
    assert "export forms absent:FORMS: ModuleNotFoundError: No module named 'absent'" in (plugin.error or "")
    (tmp_path / "broken.yaml").write_text("tiny: [")
    monkeypatch.setattr(plugin_listing, "architectures", lambda: {"broken": broken, **architectures()})
    rows, sentences = list_variants()
    assert len(sentences) == 1 and sentences[0].startswith("the variants of 'broken' cannot be read: ")
    variants, _, tasks = models_view(rows).renderables
    assert isinstance(variants, View) and isinstance(tasks, View)
    assert tasks.row_count == len(architectures())
    assert len(rows) == variants.row_count == sum(len(a.variant_rows()) for a in architectures().values())


def test_every_extensible_table_is_listed():
    from hf_vit_seg.data.sources import source_registry as sources
    from hf_vit_seg.data.transforms import batch_mixing
    from hf_vit_seg.data.transforms import pipeline as transforms
    from hf_vit_seg.export import exporters
    from hf_vit_seg.training.losses import loss_registry as losses

    modules = (batch_mixing, sources, transforms, exporters, losses)
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Table)]
    assert {id(table) for table in found} == {id(table) for table in TABLES}


# Recipe settings that need the broken plugin of a group, by expected text of the message.
ASKING = {
    "bad_architectures": {"model": {"architecture": "bad_architectures", "variant": "tiny"}},
    "bad_heads": {"model": {"architecture": "backbone", "variant": "tiny", "fields": {"decode_head": "bad_heads"}}},
    "bad_losses": {"loss": {"bad_losses": None}},
    "bad_data_sources": {"data": {"train": {"kind": "bad_data_sources"}, "classes": ["ground"]}},
    "bad_transforms": {"transforms": ["bad_transforms"]},
    "bad_batch_transforms": {"batch_transforms": ["bad_batch_transforms"]},
}


def test_broken_plugin_of_each_group_does_not_affect_others(tmp_path):
    targets = {group: {f"bad_{group.removeprefix(PREFIX)}": "raises:Kind"} for group in GROUPS}
    path = write_distribution(tmp_path / "site", "strangers", targets, STRANGE)
    data = write_data(tmp_path / "data")
    short = settings(data, loop={"steps": 1, "batch_size": 2}, evaluation={"samples": 0})
    commands = [["plugins"], ["models"]]
    for name, changes in {"good": {}, **ASKING}.items():
        (tmp_path / name).mkdir()
        commands.append(["train", write_recipe(tmp_path / name, short | changes), "--out", tmp_path / name / "run"])
    (tmp_path / "model.bad_runtimes").touch()
    commands += [
        ["export", tmp_path / "good" / "run" / "best", tmp_path / "program", "--to", "bad_exporters"],
        ["predict", tmp_path / "model.bad_runtimes", data / "train" / "images", "--out", tmp_path / "maps"],
    ]
    listed, models, good, *refused = run_commands(commands, tmp_path / "home", path=path)
    assert listed.code == 1
    for (name,) in targets.values():
        assert f"{name} of strangers 1.0 cannot be loaded: RuntimeError: half a package" in listed.errors
    assert listed.output.count("failed") == len(GROUPS) and " ok" in listed.output
    assert models.code == 0 and "segformer" in models.output
    assert good.code == 0, good.errors
    for name, outcome in zip([*ASKING, "bad_exporters", "bad_runtimes"], refused, strict=True):
        assert outcome.code == 2, (name, outcome)
        assert name in outcome.errors and len(outcome.errors.strip().splitlines()) == 1, outcome.errors


def test_hub_access_does_not_import_gradio():
    code = "import sys; sys.modules['gradio'] = None; import hf_vit_seg.hub"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_does_not_load_optional_packages():
    heavy = ("accelerate", "datasets", "evaluate", "gradio", "matplotlib", "onnx", "onnxruntime", "openvino", "timm")
    code = f"import sys, hf_vit_seg; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    baseline = (
        "import sys, transformers, torchvision; from transformers import AutoModel, AutoImageProcessor, pipeline; "
    )
    allowed = subprocess.run(
        [sys.executable, "-c", baseline + f"print([m for m in {heavy} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(eval(shown.stdout)) <= set(eval(allowed.stdout))


def contract_of(group: str):
    """The check of a group's plugins."""
    if group == "heads":
        return accept_head
    if group == "runtimes":
        return runtimes.check_runtime
    return next(table.accept for table in TABLES if table.group == PREFIX + group)


class Head(nn.Module):
    def __init__(self, in_channels, num_labels, hidden_size=8):
        super().__init__()

    def forward(self, feature_maps):
        return feature_maps[0]


class WideHead(Head):
    def __init__(self, in_channels, num_labels, width):
        super().__init__(in_channels, num_labels)


class HeadWithoutForward(nn.Module):
    def __init__(self, in_channels, num_labels):
        super().__init__()


class EmptyLoss(Loss):
    pass


class OldLoss(Loss):
    def build(self, num_classes):
        return LossTerm(255)


class PartlyImplementedLoss(Loss):
    def build(self, num_classes, ignore_index, class_frequencies=None):
        if num_classes == 1:
            raise NotImplementedError
        return LossTerm(ignore_index)


class InheritingLoss(PartlyImplementedLoss):
    pass


class EmptySource(SourceRecord):
    pass


class EmptyTransform(TransformOptions):
    pass


class EmptyBatchTransform(BatchOptions):
    def build(self):
        return None


class NamelessExporter(Exporter):
    def write(self, graph, geometry, dtype, path):
        pass


class WrongExporter(NamelessExporter):
    file: ClassVar[str] = "model.x"

    def write(self, graph, *, place):
        pass


@pytest.mark.parametrize(
    ("group", "value", "rule"),
    [
        ("heads", WideHead, r"WideHead\(in_channels, num_labels\).*'width'"),
        ("heads", HeadWithoutForward, r"does not define `forward\(feature_maps\)`"),
        ("losses", EmptyLoss, r"EmptyLoss does not define `build\(num_classes, ignore_index, class_frequencies\)`"),
        ("losses", OldLoss, r"OldLoss.build\(num_classes, ignore_index, class_frequencies\)"),
        ("data_sources", EmptySource, r"does not define `open\(task, channels\)` of DataSourceRecord"),
        ("transforms", EmptyTransform, r"does not define `build\(context\)` of TransformRecord"),
        ("batch_transforms", EmptyBatchTransform, r"EmptyBatchTransform.build\(num_classes\)"),
        ("exporters", NamelessExporter, r"has no attribute `file`, which ExporterRecord requires"),
        ("exporters", WrongExporter, r"WrongExporter.write\(graph, geometry, dtype, path\)"),
        ("runtimes", lambda: None, r"\(path\)"),
    ],
)
def test_wrong_plugin_names_the_rule_it_breaks(group, value, rule):
    with pytest.raises(TypeError, match=rule):
        contract_of(group)(value)


class LossWithoutTerm(Loss):
    def build(self, num_classes, ignore_index, class_frequencies=None):
        return None


class SumTerm(LossTerm):
    def forward(self, logits, labels):
        return logits.sum()


class SumLoss(Loss):
    def build(self, num_classes, ignore_index, class_frequencies=None):
        return SumTerm(ignore_index)


class ImageOnly(TransformOptions):
    def build(self, context):
        return lambda image, target: image


class TransformWithoutStep(TransformOptions):
    def build(self, context):
        return None


class ListSource(SourceRecord):
    tasks = ("segmentation",)

    def open(self, task, channels=3):
        return [1]


CONTEXT = TransformContext("segmentation", lambda height, width: (height, width), None, (0.0,) * 3, (1.0,) * 3)


def add_plugin(monkeypatch, table, name, value):
    """Add a row of a plugin to a table."""
    monkeypatch.setitem(table.rows, name, value)


@pytest.mark.parametrize("name", ["half", "type", "loss_term"])
def test_losses_of_plugins_may_have_any_name(monkeypatch, name):
    add_plugin(monkeypatch, LOSSES, name, SumLoss)
    losses = LossSum.from_recipe({name: {"weight": 2.0}, "dice": None}, "segmentation", 3, 255)
    assert losses.names == (name, "dice")
    logits, labels = torch.ones(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert losses.totals(logits, labels)[0] == 12
    with pytest.raises(RecordError, match="3 channels, expected 2"):  # a head that ignores num_labels
        LossSum.from_recipe({name: None}, "segmentation", 2, 255).totals(logits, labels)


def test_results_of_plugins_are_checked(monkeypatch):
    add_plugin(monkeypatch, LOSSES, "absent", LossWithoutTerm)
    with pytest.raises(RecordError, match=r"loss.absent: LossWithoutTerm.build returned NoneType"):
        LossSum.from_recipe({"absent": None}, "segmentation", 2, 255)
    add_plugin(monkeypatch, SOURCES, "numbers", ListSource)
    with pytest.raises(SourceError, match=r"data: ListSource.open returned list without read"):
        open_source({"kind": "numbers"}, "segmentation")
    add_plugin(monkeypatch, TRANSFORMS, "no_step", TransformWithoutStep)
    with pytest.raises(RecordError, match=r"transforms.0: TransformWithoutStep.build returned NoneType"):
        read_pipeline(["no_step"], CONTEXT)
    add_plugin(monkeypatch, TRANSFORMS, "image_only", ImageOnly)
    pipeline = read_pipeline(["image_only"], CONTEXT)
    with pytest.raises(RecordError, match=r"transforms.0: ImageOnly must return an image"):
        pipeline(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("group", "value"),
    [("losses", PartlyImplementedLoss), ("losses", InheritingLoss), ("runtimes", lambda path, device="cpu": None)],
)
def test_valid_plugins_are_accepted(group, value):
    contract_of(group)(value)


def test_built_in_rows_fulfil_the_contracts():
    for table in TABLES:
        for row in table.own.values():
            table.accept(row)
    for runtime in runtimes.PROGRAMS.values():
        runtimes.check_runtime(runtime)
    check_contract(Head, HeadClass)


def test_guide_shows_every_contract():
    guide = (REPOSITORY / "docs" / "guides" / "plugin.md").read_text()
    contracts = {name for name, kind in vars(entry_points).items() if getattr(kind, "_is_protocol", False)} - {
        "Protocol"
    }
    assert len(contracts) == 7
    for name in contracts:
        assert f"```source\nhf_vit_seg/entry_points.py {name}\n```" in guide, name
    for group in GROUPS:
        assert f"`{group.removeprefix(PREFIX)}`" in guide, group
