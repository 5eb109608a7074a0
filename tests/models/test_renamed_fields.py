"""Config fields, recipe keys and metrics.json keys that were renamed: old files name the new key."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hf_vit_seg.conversion.convert import ConversionError
from hf_vit_seg.conversion.settings.config_building import check_fields
from tiny_runs import settings
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.configuration_backbone_seg import BackboneSegmentationConfig
from hf_vit_seg.models.configuration_cvt import CvTConfig
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.errors import RENAMED_FIELDS
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.model.building import build_model
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.metrics_report import ReportError, read_report

NUCLEI = Path(__file__).parents[2] / "examples" / "nuclei" / "model"
CONFIGS = (SegFormerConfig, CvTConfig, VisionTransformerConfig, BackboneSegmentationConfig)
BACKBONE = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}


def save_old(folder: Path, model_type: str, **fields) -> Path:
    """Write a config.json with old fields."""
    stored = {"model_type": model_type, **fields}
    if model_type == "backbone_seg":
        stored["backbone_config"] = BACKBONE
    (folder / "config.json").write_text(json.dumps(stored))
    return folder


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("old", RENAMED_FIELDS)
def test_old_directories_name_the_new_field(config, old, tmp_path):
    save_old(tmp_path, config.model_type, **{old: 1})
    for load in (AutoConfig, config, AutoModelForSemanticSegmentation):
        with pytest.raises(HfVitSegError, match=rf"{config.__name__} were renamed.* {old} to {RENAMED_FIELDS[old]}\b"):
            load.from_pretrained(tmp_path)


def test_all_renamed_fields_are_named_at_once(tmp_path):
    save_old(tmp_path, "vit_seg", segmentation_head="all_mlp", decoder_norm="group")
    with pytest.raises(HfVitSegError) as error:
        AutoConfig.from_pretrained(tmp_path)
    assert str(error.value) == (
        "Fields of VisionTransformerConfig were renamed: in config.json, change segmentation_head to decode_head (and "
        "its value all_mlp to feature_pyramid), decoder_norm to decode_head_norm and pose_head_norm"
    )


def test_backbones_inside_of_a_config_are_checked(tmp_path):
    stored = {"model_type": "backbone_seg", "backbone_config": {"model_type": "segformer_seg", "decoder_norm": "batch"}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(HfVitSegError, match=r"SegFormerConfig were renamed.* decode_head_norm"):
        AutoConfig.from_pretrained(tmp_path)


def test_new_fields_exist_and_old_ones_do_not():
    new = {name for config in CONFIGS for name in config.__dataclass_fields__}
    assert set(RENAMED_FIELDS.values()) | {"pose_head_norm"} <= new
    assert not RENAMED_FIELDS.keys() & new


def test_heads_have_one_name_in_all_architectures():
    fields = [{name for name in config.__dataclass_fields__ if name.startswith("decode_head_")} for config in CONFIGS]
    shared = {"decode_head_hidden_size", "decode_head_norm", "decode_head_norm_eps", "decode_head_dropout_prob"}
    assert all(shared <= names for names in fields)
    assert fields[0] == fields[1] == shared | {"decode_head_flavor"}
    assert fields[2] == fields[3] == shared | {"decode_head_num_layers", "decode_head_levels"}
    assert "all_mlp" not in get_args(VisionTransformerConfig.__annotations__["decode_head"])


@pytest.mark.parametrize("config", sorted(NUCLEI.parents[1].rglob("config.json")), ids=lambda file: file.parent.name)
def test_shipped_directories_load(config):
    assert not RENAMED_FIELDS.keys() & json.loads(config.read_text()).keys()
    AutoModelForSemanticSegmentation.from_pretrained(config.parent)


@pytest.mark.parametrize("architecture", architectures().values(), ids=lambda architecture: architecture.name)
def test_variants_have_no_old_fields(architecture):
    for row in architecture.variant_rows().values():
        assert not RENAMED_FIELDS.keys() & row.keys()


def test_shipped_reports_and_recipes_are_read():
    assert read_report(NUCLEI / "metrics.json").metric == "mean_iou"
    assert load_recipe(NUCLEI / "recipe.yaml").data.channels == 3


def test_old_reports_name_the_new_key(tmp_path):
    text = (NUCLEI / "metrics.json").read_text().replace('"metric"', '"measure"')
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ReportError, match=r"'measure' was renamed to 'metric'$"):
        read_report(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("part", "old", "value", "reason"),
    [
        ("data", "bands", 3, r"^data\.bands was renamed to channels$"),
        ("evaluation", "measure", "mean_iou", r"^evaluation\.measure was renamed to metric$"),
    ],
)
def test_old_recipes_name_the_new_key(part, old, value, reason, tmp_path):
    recipe = settings(tmp_path)
    recipe.setdefault(part, {})[old] = value
    with pytest.raises(RecordError, match=reason):
        read_record(Recipe, recipe)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"model": {"fields": {"decoder_norm": "group"}}},
            r"model\.fields\.decoder_norm was renamed to decode_head_norm",
        ),
        ({"processor": {"image_mean": "measured"}}, r"processor\.image_mean: 'measured' was renamed to 'computed'"),
    ],
)
def test_old_settings_of_recipes_name_the_new_ones(change, reason, tmp_path):
    recipe = settings(tmp_path)
    for part, values in change.items():
        recipe[part] = {**recipe.get(part, {}), **values}
    with pytest.raises(RecordError, match=reason):
        build_model(read_record(Recipe, recipe), ["a", "b", "c"])


def test_old_overrides_of_a_conversion_name_the_new_field():
    with pytest.raises(ConversionError, match="'decoder_flavour' to override; it was renamed to 'decode_head_flavor'"):
        check_fields(SegFormerConfig, {"decoder_flavour": "mmseg"})
