"""Recipes: strict parsing, lossless round trip, and command-line overrides."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_runs import settings, write_recipe

from hf_vit_seg.text_files import dump, parse
from hf_vit_seg.training.recipe.differences import differences
from hf_vit_seg.training.recipe.files import recipe_text
from hf_vit_seg.training.recipe.location import RecipeFileError, shipped_recipes
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.recipe_loading import load_recipe


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, settings(tmp_path))


# YAML

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(st.text("abcnoy1-. "), inner), max_leaves=9
)


@given(values)
@example("\x85")
@example(["a\u2028 b", {"n ": "\r\n"}])
def test_recipe_round_trip(value):
    assert parse(dump(value)) == value


@given(st.sampled_from(["no", "yes", "on", "1:30", "010", "2018-01-01", "1_000", "=", "<<", "1e3x"]))
def test_plain_words_stay_strings(text):
    assert parse(f"key: {text}") == {"key": text}


def test_numbers_are_parsed():
    assert parse("[1e-4, 1E5, -2.5, .5, 1., 0x1f, +3, .inf, true, ~]") == [
        1e-4, 1e5, -2.5, 0.5, 1.0, 31, 3, float("inf"), True, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: duplicate key 'c'"),
        ("a: [1", "line 1"),
        ("a: !!python/object/apply:os.getcwd []", "line 1"),
        ("? [1]\n: 2", r"line 1: .* is not a valid key"),
        ("a: \0", "special characters"),
    ],
)
def test_invalid_yaml_raises_with_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


# Reading


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe, tmp_path))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("path", shipped_recipes().values(), ids=lambda path: path.stem)
def test_shipped_recipes_document_command_cost_and_expected_score(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"train {path.stem}" in text or f"hf_vit_seg.training {path.stem}" in text
    assert "cost:" in text and "expected:" in text


def test_missing_fields_use_defaults(recipe):
    loaded = load_recipe(recipe)
    assert loaded.transforms[1] == {"random_flip": {"horizontal": 0.5, "vertical": 0.0}}
    assert loaded.data.train["unpaired"] == "error"
    assert loaded.evaluation.protocol["scales"] == [1.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", r"stepz is not a known setting"),
        ("loop.stepz=3", r"loop\.stepz is not a known setting; did you mean 'steps'\?"),
        ("loop.steps=many", r"loop\.steps should be"),
        ("loop.batch_size=0", r"loop\.batch_size should be .* found 0"),
        ("loop.epochs=3", r"either steps or epochs"),
        ("data.trainn.kind=folders", r"data\.trainn is not a known setting; did you mean 'train'\?"),
        ("data.train.kind=folder", r"unknown data source 'folder'; did you mean 'folders'\?"),
        ("data.train.image=x", r"data\.train\.image is not a known setting; did you mean 'images'\?"),
        ("transforms.1.random_flip.horizontl=1", r"transforms\.1\.random_flip\.horizontl .*'horizontal'\?"),
        ("transforms.0={random_corp: {}}", r"unknown transform 'random_corp'; did you mean 'random_crop'\?"),
        ("batch_transforms=[mixupp]", r"unknown batch transform 'mixupp'; did you mean 'mixup'\?"),
        ("loss.cross_entropy.weigt=2", r"loss\.cross_entropy\.weigt is not a known setting; did you mean 'weight'\?"),
        ("loss.cross_entrop.weight=2", r"unknown loss 'cross_entrop'; did you mean 'cross_entropy'\?"),
        ("evaluation.protocol.windw=512", r"evaluation\.protocol\.windw .*'window'\?"),
        ("optimizer.groups=[{match: x, weight_dekay: 0}]", r"optimizer\.groups\.0\.weight_dekay .*'weight_decay'\?"),
        ("seed=-1", r"seed should be"),
        ("data.classes=[{name: a, value: [0]},b]", r"data\.classes\.0\.value is not a known .*did you mean 'values'\?"),
        ("data.classes=[{values: [0]},b]", r"data\.classes\.0\.name is missing"),
        (
            "data.classes=[{name: a, values: [x]}]",
            r"0\.values\.0 should be a valid integer or a list, found 'x'",
        ),
        ("data.classes=[3]", r"data\.classes\.0 should be a mapping or a valid string, found 3"),
        (
            "schedule.warmup_steps=few",
            r"steps should be a valid integer or a valid number, found 'few'",
        ),
        ("data.train={1: x}", r"data\.train\.1 should be a valid string"),
        ("optimizer.learning_rate=.nan", r"optimizer\.learning_rate"),
    ],
)
def test_invalid_settings_raise_with_position(recipe, override, message):
    with pytest.raises(RecipeFileError, match=message):
        load_recipe(recipe, [override])


def test_missing_recipe_raises(tmp_path):
    with pytest.raises(RecipeFileError, match=r"neither a file nor a shipped recipe; did you mean 'nuclei'\?"):
        load_recipe("nucleii")
    with pytest.raises(RecipeFileError, match=r"is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RecipeFileError, match=r"list\.yaml: found .*, expected a mapping of settings"):
        load_recipe(tmp_path / "list.yaml")


# Command-line overrides


def test_overrides_apply_to_nested_settings(recipe):
    loaded = load_recipe(
        recipe,
        [
            "optimizer.learning_rate=1e-4",
            "loop.steps=null",
            "loop.epochs=2.5",
            "loop.ema.decay=0.99",
            "transforms.0.random_crop.size=[40,44]",
            "transforms.1.random_flip.vertical=0.25",
            "loss.dice.weight=0.5",
            "model.fields.depths=[1,1,1,1]",
            "data.classes.2=pole",
            "loop.precision=no",
            "data.validation=null",
        ],
    )
    assert loaded.optimizer.learning_rate == 1e-4
    assert (loaded.loop.steps, loaded.loop.epochs) == (None, 2.5)
    assert loaded.loop.ema is not None and loaded.loop.ema.decay == 0.99
    assert loaded.transforms[0]["random_crop"]["size"] == [40, 44]
    assert loaded.transforms[1]["random_flip"]["vertical"] == 0.25
    assert loaded.loss["dice"]["weight"] == 0.5
    assert loaded.model.fields["depths"] == [1, 1, 1, 1]
    assert loaded.data.classes == ("ground", "disc", "pole")
    assert loaded.loop.precision == "no"
    assert loaded.data.validation is None


@pytest.mark.parametrize(
    ("overrides", "terms"),
    [
        ([], ["cross_entropy"]),
        (["loss.dice.weight=0.5"], ["cross_entropy", "dice"]),
        (["loss.dice.weight=0.5", "loss.cross_entropy=null"], ["dice"]),
        (["loss={lovasz: }"], ["lovasz"]),
    ],
)
def test_overrides_add_and_remove_loss_terms(recipe, overrides, terms):
    loss = load_recipe(recipe, overrides).loss
    assert list(loss) == terms and all(row["weight"] > 0 for row in loss.values())


def test_pose_loss_is_defined_by_the_model():
    assert load_recipe("coco_pose_mini").loss == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.dice=null", r"loss\.dice cannot be removed: the terms are cross_entropy"),
        ("loss.cross_entropy=null", r"at least one must remain"),
        ("loop.steps", r"expected NAME=VALUE"),
        ("=3", r"expected NAME=VALUE"),
        ("loop.steps=[3", r"not valid YAML"),
        ("transforms.7.random_crop.size=8", r"expected an index from 0 to 1"),
        ("transforms.1.random_crop.size=8", r"transforms\.1 is 'random_flip'"),
        ("seed.more=1", r"seed\.more is not a known setting|seed\.more cannot be set|seed should be"),
        ("loop.steps.more=1", r"loop\.steps\.more cannot be set: loop\.steps is 8"),
    ],
)
def test_invalid_overrides_raise(recipe, override, message):
    with pytest.raises(RecipeFileError, match=message):
        load_recipe(recipe, [override])


# Settings that may change on resume


def test_differences_list_settings_that_affect_results(recipe):
    one = load_recipe(recipe)
    free = ["loop.steps=9", "output=x", "trackers=[tensorboard]", "name=y", "data.workers=1", "loop.log_every=7"]
    assert differences(one, load_recipe(recipe, free)) == {}
    other = load_recipe(recipe, ["transforms.0.random_crop.size=[40,32]", "loop.ema.decay=0.5"])
    found = differences(one, other)
    assert found["transforms.0.random_crop.size.0"] == (32, 40)
    assert set(found) == {"transforms.0.random_crop.size.0", "loop.ema.decay", "loop.ema.warmup"}
    assert differences(one, Recipe.model_validate(one.model_dump(mode="json"))) == {}
