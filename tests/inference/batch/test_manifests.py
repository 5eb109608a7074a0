"""Manifests of batch inference: names of results, shards, and settings."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from many_images import write_photos

from hf_vit_seg.inference.batch.manifest import (
    HEADER,
    ManifestError,
    RunSettings,
    check_settings,
    plan_manifest,
    read_manifest,
    shard_bounds,
)
from hf_vit_seg.inference.batch.result_names import target_names
from hf_vit_seg.inference.batch.storage import Storage

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
PLACE = st.text("ab.A/é", min_size=1, max_size=6).map(lambda text: f"x{text}x.jpg")


def test_names_keep_folders():
    assert target_names(["a/b.jpg", "c.png", "noext"]) == ["a/b", "c", "noext"]


def test_names_that_collide_get_suffix_or_digest():
    names = target_names(["a.jpg", "a.png", "B.jpg", "b.jpg", "c.png"])
    assert names[:2] == ["a_jpg", "a_png"] and names[4] == "c"
    assert names[2].startswith("B_jpg_") and names[3].startswith("b_jpg_")
    assert names[2].lower() != names[3]


def test_equal_places_of_two_inputs_get_different_names():
    places, origins = ["1.jpg", "1.jpg", "2.jpg"], ["a", "b", "b"]
    names = target_names(places, origins=origins)
    assert len(set(names)) == 3 and names[2] == "2" and all(name.startswith("1_jpg_") for name in names[:2])
    assert target_names(places[::-1], origins=origins[::-1]) == names[::-1]


def test_unicode_forms_are_one_name():
    composed, decomposed = target_names(["\u00e9.jpg", "e\u0301.jpg"])
    assert composed.rpartition("_")[0] == "\u00e9_jpg" and decomposed.rpartition("_")[0] == "e\u0301_jpg"


def test_names_of_webdataset_have_no_dots():
    assert target_names(["d.e/a.b.jpg", "d.e/a_b.png"], flat_stems=True) == ["d.e/a_b_jpg", "d.e/a_b_png"]


@given(st.lists(PLACE, unique=True, max_size=12), st.randoms())
def test_names_are_unique_and_independent_of_order(places, random):
    names = target_names(places)
    assert len({name.casefold() for name in names}) == len(places)
    shuffled = random.sample(places, len(places))
    assert dict(zip(shuffled, target_names(shuffled), strict=True)) == dict(zip(places, names, strict=True))


def test_large_folders_are_divided():
    names = target_names([f"photos/{number}.jpg" for number in range(25)] + ["few/1.jpg"], limit=10)
    folders = {name.rpartition("/")[0] for name in names[:-1]}
    assert folders <= {f"photos/{part}" for part in range(5)} and len(folders) > 1
    assert len(set(names)) == 26 and names[-1] == "few/1"


def test_parts_of_large_folders_are_not_folders_of_other_images():
    places = [
        f"{folder}/{number}.jpg" for folder in ("a", "a/0", "A/_1") for number in range(11 if folder == "a" else 9)
    ]
    names = target_names(places, limit=10)
    assert len({name.casefold() for name in names}) == len(places)
    assert {name.rpartition("/")[0] for name in names[:11]} <= {f"a/__{part}" for part in range(3)}


def test_results_do_not_have_names_of_other_results():
    assert target_names(["cat.jpg", "cat.overlay.jpg", "Dog.Scores.png"]) == [
        "cat",
        "cat.overlay_jpg",
        "Dog.Scores_png",
    ]


@pytest.mark.parametrize(
    ("images", "shards", "sizes"),
    [(1, None, [1]), (40, None, [13, 13, 14]), (5, 2, [2, 3]), (3, 9, [1, 1, 1])],
)
def test_shards_have_equal_sizes(images, shards, sizes):
    bounds = shard_bounds(images, shards)
    assert [stop - first for first, stop in pairwise(bounds)] == sizes


def test_million_images_have_shards_of_1024():
    assert len(shard_bounds(1_000_000)) - 1 == 977


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    return RunSettings("model", "digest", (str(write_photos(tmp_path / "photos", 5)),), {"overlay": True}, shards=2)


def test_plan_is_read_back(settings, tmp_path):
    storage = Storage(str(tmp_path / "out"))
    manifest = plan_manifest(settings, storage)
    found = read_manifest(storage)
    assert found == manifest and found.fingerprint == manifest.fingerprint
    rows = [row for shard in range(found.shards) for row in found.rows(shard)]
    assert [row.index for row in rows] == list(range(5)) and found.images == 5
    assert [row.target for row in rows] == ["0", "2", "4", "sub/1", "sub/3"]
    assert found.locate(rows[3]) == str(tmp_path / "photos/sub/1.png")
    assert found.publishable_name(rows[3]) == "photos/sub/1.png"
    assert all(row.size == (tmp_path / "photos" / row.path).stat().st_size for row in rows)


def test_plan_does_not_depend_on_the_output(settings, tmp_path):
    one, two = (plan_manifest(settings, Storage(str(tmp_path / name))) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert (tmp_path / "one/.manifest/images.parquet").read_bytes() == (
        tmp_path / "two/.manifest/images.parquet"
    ).read_bytes()


def test_image_given_twice_is_planned_once(settings, tmp_path):
    folder = settings.inputs[0]
    twice = replace(settings, inputs=(folder, folder, f"{folder}/0.png"))
    assert plan_manifest(twice, Storage(str(tmp_path / "out"))).images == 5


def test_other_settings_raise(settings, tmp_path):
    manifest = plan_manifest(settings, Storage(str(tmp_path / "out")))
    check_settings(manifest, settings)
    for changed in (replace(settings, model_digest="other"), replace(settings, options={"overlay": False})):
        with pytest.raises(ManifestError):
            check_settings(manifest, changed)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": 1}'])
def test_damaged_header_raises(settings, tmp_path, content):
    storage = Storage(str(tmp_path / "out"))
    plan_manifest(settings, storage)
    storage.write_text(HEADER, content)
    with pytest.raises(ManifestError):
        read_manifest(storage)


def test_header_of_another_version_raises(settings, tmp_path):
    storage = Storage(str(tmp_path / "out"))
    plan_manifest(settings, storage)
    header = json.loads(storage.read(HEADER) or b"")
    storage.write_text(HEADER, json.dumps(header | {"version": 0}))
    with pytest.raises(ManifestError):
        read_manifest(storage)


PLAN_IMAGES = """
import sys
from pathlib import Path
from hf_vit_seg.inference.batch import manifest
from hf_vit_seg.inference.batch.batch_inputs import Entry, Source
from hf_vit_seg.inference.batch.storage import Storage

def find_sources(*_):
    names = (f"{n // 10_000:03d}/photo_{n:07d}.jpg" for n in range(int(sys.argv[2])))
    yield Source("files", "photos"), (Entry(name, 1_000_000, 0, name) for name in names)

manifest.find_sources = find_sources
planned = manifest.plan_manifest(manifest.RunSettings("model", "", ("photos",)), Storage(sys.argv[1]))
assert "torch" not in sys.modules and planned.images == int(sys.argv[2])
# not ru_maxrss, which includes the process that started this one
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def plan_images(folder: Path, images: int) -> int:
    """Plan a run in a new process; return its peak memory in KiB."""
    command = [sys.executable, "-c", PLAN_IMAGES, str(folder), str(images)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@linux
def test_planning_imports_no_torch(tmp_path):
    assert plan_images(tmp_path, 10) > 0


@linux
@pytest.mark.slow
def test_memory_to_plan_a_million_images(tmp_path):
    assert plan_images(tmp_path, 1_000_000) < 600 * 1024
