"""Objects of windows and tiles: independent of the grid, within memory, and with files of results."""

import json
import sys

import numpy as np
import pytest
from child_process import output_of
from hypothesis import given, settings
from hypothesis import strategies as st
from object_models import NAMES, draw_spots, spot_segmenter
from PIL import Image

from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference import Protocol
from hf_vit_seg.inference.dense.protocols import PredictionError
from hf_vit_seg.inference.files.object_files import predict_objects
from hf_vit_seg.inference.files.prediction import Job, PredictOptions
from hf_vit_seg.inference.found_segments import FoundObject
from hf_vit_seg.inference.object_stitching import ObjectStitcher, window_core
from hf_vit_seg.inference.tiles.tiled_objects import predict_tiled_objects

GRIDS = [((64, 64), (48, 48)), ((40, 70), (20, 41)), ((33, 33), (16, 15)), ((200, 64), (100, 44)), ((31, 29), (8, 13))]


def rows(found) -> list[tuple]:
    return sorted((each.box, each.label, each.area, round(each.score, 6), each.bits) for each in found.objects)


@given(seed=st.integers(0, 1000), grid=st.sampled_from(GRIDS))
@settings(max_examples=12)
def test_objects_do_not_depend_on_the_windows(seed, grid):
    """Objects of at most 16 pixels, which is less than every overlap, are those of the whole image."""
    image = draw_spots(130, 150, 90, 16, seed)
    window, stride = grid
    found = spot_segmenter(Protocol(window=window, stride=stride))(image)
    whole = spot_segmenter()(image)
    assert rows(found) == rows(whole)
    starts = [each.box[1::-1] for each in found.objects]
    assert starts == sorted(starts)  # in the order of their first row


@given(seed=st.integers(0, 1000), grid=st.sampled_from(GRIDS[:2]))
@settings(max_examples=12)
def test_objects_larger_than_the_overlap_are_joined(seed, grid):
    image = draw_spots(130, 150, 12, 90, seed)
    window, stride = grid
    found = spot_segmenter(Protocol(window=window, stride=stride))(image)
    whole = spot_segmenter()(image)
    assert np.array_equal(found.instance_map() > 0, image > 0)
    assert [row[0] for row in rows(found)] == [row[0] for row in rows(whole)]
    assert [row[-1] for row in rows(found)] == [row[-1] for row in rows(whole)]


def rectangle(label: int, score: float, top: int, left: int, bottom: int, right: int) -> FoundObject:
    return FoundObject.from_mask(label, score, top, left, np.ones((bottom - top, right - left), bool))


LEFT, RIGHT = (0, 0, 20, 30), (0, 20, 20, 50)


def stitch(*windows, stuff=()) -> list[FoundObject]:
    stitcher = ObjectStitcher((20, 50), stuff)
    for window, objects in windows:
        stitcher.add(window, objects, window_core(window, ([0], [0, 20]), (20, 50)))
    return stitcher.objects()


def test_disagreement_on_the_class_of_an_object():
    """The class of the larger sum of score times area, not two objects."""
    for order in (1, -1):
        windows = [(LEFT, [rectangle(0, 0.6, 5, 22, 9, 28)]), (RIGHT, [rectangle(1, 0.9, 5, 22, 9, 28)])]
        (found,) = stitch(*windows[::order])
        assert found.label == 1 and found.score == 0.9
    parts = [(LEFT, [rectangle(0, 0.6, 5, 2, 9, 30)]), (RIGHT, [rectangle(1, 0.9, 5, 20, 9, 30)])]
    (found,) = stitch(*parts)
    assert found.label == 0 and found.box == (2, 5, 28, 4)  # both windows cut it


def test_parts_of_different_objects_are_not_joined():
    found = stitch((LEFT, [rectangle(0, 0.9, 0, 5, 4, 30)]), (RIGHT, [rectangle(0, 0.8, 10, 20, 14, 45)]))
    assert [each.box for each in found] == [(5, 0, 25, 4), (20, 10, 25, 4)]


def test_duplicates_that_overlap_are_left_out():
    """An object that a better one covers by more than half is left out; otherwise it loses the common pixels."""
    found = stitch((LEFT, [rectangle(0, 0.9, 0, 5, 10, 15)]), ((0, 0, 20, 50), [rectangle(0, 0.7, 0, 8, 3, 20)]))
    assert [each.area for each in found] == [100]
    found = stitch((LEFT, [rectangle(0, 0.9, 0, 5, 10, 15)]), ((0, 0, 20, 50), [rectangle(0, 0.7, 0, 12, 10, 22)]))
    assert [each.area for each in found] == [100, 70]


def test_cores_cover_the_image_once():
    tops, lefts = [0, 13, 26, 31], [0, 40, 50]
    covered = np.zeros((60, 90), int)
    for top in tops:
        for left in lefts:
            core = window_core((top, left, top + 29, left + 40), (tops, lefts), (60, 90))
            covered[core[0] : core[2], core[1] : core[3]] += 1
            assert top <= core[0] and core[2] <= top + 29 and left <= core[1] and core[3] <= left + 40
    assert (covered == 1).all()


def test_stuff_is_one_segment():
    windows = [
        (LEFT, [rectangle(0, 0.5, 0, 0, 10, 30), rectangle(1, 0.9, 2, 2, 4, 4)]),
        (RIGHT, [rectangle(0, 0.7, 0, 20, 12, 50)]),
    ]
    thing, stuff = stitch(*windows, stuff={0})
    assert (thing.label, thing.area) == (1, 4)
    assert (stuff.label, stuff.area) == (0, 10 * 25 + 12 * 25 - 4) and stuff.box == (0, 0, 50, 12)
    assert not stuff.mask[2:4, 2:4].any()


def test_objects_have_no_average_over_views():
    for wrong in (Protocol(flip=True), Protocol(scales=(1, 2)), Protocol(window=(32, 32), blend="gaussian")):
        with pytest.raises(PredictionError):
            spot_segmenter(wrong)


def write_tiff(path, image) -> Job:
    import tifffile

    tifffile.imwrite(path, image, tile=(64, 64), photometric="minisblack")
    return Job(ImageFile(path, path), path.with_name("out"))


def test_files_of_objects(tmp_path):
    image = draw_spots(130, 150, 60, 16)
    Image.fromarray(image).save(tmp_path / "a.png")
    job = Job(ImageFile(tmp_path / "a.png", tmp_path / "a.png"), tmp_path / "out")
    options = PredictOptions(geojson=True, coco=True)
    (outcome,) = predict_objects(spot_segmenter(), [job], options)
    assert outcome.error is None
    whole = spot_segmenter()(image)
    numbers = np.asarray(Image.open(tmp_path / "out.png"))
    assert numbers.dtype == np.uint16 and np.array_equal(numbers > 0, image > 0)
    report = json.loads((tmp_path / "out.json").read_text())
    count = len(whole.objects)
    assert report["objects"] == count == numbers.max()
    assert {row["name"]: row["objects"] for row in report["classes"]} == whole.counts()
    assert sum(row["pixels"] for row in report["classes"]) == (image > 0).sum()
    lines = (tmp_path / "out.objects.csv").read_text().splitlines()
    assert lines[0].split(",")[:5] == ["id", "class", "name", "score", "area"] and len(lines) == count + 1
    assert int(lines[1].split(",")[4]) == (numbers == 1).sum()
    assert len(json.loads((tmp_path / "out.geojson").read_text())["features"]) == count
    assert len(json.loads((tmp_path / "out.coco.json").read_text())["annotations"]) == count
    assert Image.open(tmp_path / "out.overlay.png").size == (150, 130)


def test_files_of_tiles_equal_the_whole_image(tmp_path):
    image = draw_spots(300, 330, 200, 12)
    job = write_tiff(tmp_path / "a.tif", image)
    states = list(predict_tiled_objects(spot_segmenter(), job, PredictOptions(coco=True)))
    assert [state.done for state in states] == list(range(1, states[0].total + 1)) and len(states) > 9
    whole = spot_segmenter()(image)
    numbers = np.asarray(Image.open(tmp_path / "out.png"))
    ids = {(int(n), int(m)) for n, m in zip(numbers.ravel(), whole.instance_map().ravel(), strict=True)}
    assert len(ids) == len(whole.objects) + 1  # one to one
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["objects"] == len(whole.objects) and report["windows"] == len(states)
    assert Image.open(tmp_path / "out.overlay.png").size == (330, 300)


def test_interrupted_run_of_objects_resumes(tmp_path):
    image = draw_spots(300, 330, 200, 12)
    job = write_tiff(tmp_path / "a.tif", image)
    expected = list(predict_tiled_objects(spot_segmenter(), job, PredictOptions(coco=True)))
    whole, table = (np.asarray(Image.open(tmp_path / "out.png")), (tmp_path / "out.objects.csv").read_text())
    for file in tmp_path.glob("out*"):
        file.unlink()
    first = predict_tiled_objects(spot_segmenter(), job, PredictOptions(coco=True))
    assert [next(first).done for _ in range(4)] == [1, 2, 3, 4]
    first.close()
    kept = tmp_path / ".out.windows/windows.jsonl"
    kept.open("a").write('[{"label": 0')  # killed while writing a line
    assert not list(tmp_path.glob("out*"))
    segmenter, seen = spot_segmenter(), []
    outputs = segmenter.outputs
    segmenter.outputs = lambda pixel_values: seen.append(1) or outputs(pixel_values)
    states = list(predict_tiled_objects(segmenter, job, PredictOptions(coco=True)))
    assert states[0].done == states[0].resumed == 4 and states[-1].done == len(expected) == len(seen) + 4
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), whole)
    assert (tmp_path / "out.objects.csv").read_text() == table
    assert not kept.parent.exists()


def test_other_settings_start_again(tmp_path):
    job = write_tiff(tmp_path / "a.tif", draw_spots(300, 330, 200, 12))
    first = predict_tiled_objects(spot_segmenter(), job, PredictOptions())
    next(first)
    first.close()
    other = spot_segmenter()
    other.threshold = 0.9
    states = list(predict_tiled_objects(other, job, PredictOptions()))
    assert states[0].resumed == 0 and states[0].done == 1


def test_pixels_without_data_have_no_objects():
    image = draw_spots(60, 60, 20, 10)
    missing = np.zeros((60, 60), bool)
    missing[:, 30:] = True
    segmenter = spot_segmenter()
    import torch

    found = segmenter.segment_pixels(torch.from_numpy(image)[None], missing=missing)
    assert np.array_equal(found.instance_map() > 0, (image > 0) & ~missing)


def test_rejected_options():
    from hf_vit_seg.inference.files.prediction import check_task_options

    check_task_options("instance", PredictOptions(geojson=True, threshold=0.3, protocol=Protocol(window=512)))
    for options in (PredictOptions(scores=True), PredictOptions(top_k=2), PredictOptions(tile=512)):
        with pytest.raises(HfVitSegError):
            check_task_options("instance", options)
    with pytest.raises(HfVitSegError):
        check_task_options("segmentation", PredictOptions(threshold=0.3))


LARGE = """
import sys
from pathlib import Path
import numpy as np
from benchmarks.measuring import peak_rss
from object_models import spot_segmenter
from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.inference import Protocol
from hf_vit_seg.inference.files.prediction import Job, PredictOptions
from hf_vit_seg.inference.tiles.tiled_objects import predict_tiled_objects

path = Path(sys.argv[1])
image = np.lib.format.open_memmap(path, "w+", np.uint8, (20_000, 20_000))
for row in range(100):
    for column in range(100):
        image[200 * row + 90 : 200 * row + 120, 200 * column + 85 : 200 * column + 125] = 150 + (row + column) % 100
image.flush()
del image
job = Job(ImageFile(path, path), path.with_name("out"))
for _ in predict_tiled_objects(spot_segmenter(Protocol(window=2048, stride=1920)), job, PredictOptions(overlay=False)):
    pass
print(peak_rss())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_memory_for_ten_thousand_objects_of_a_large_image(tmp_path):
    size = int(output_of(LARGE, tmp_path / "large.npy").split()[-1])
    assert size < 2e9  # with the resident pages of the mapped image (400 MB)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["objects"] == 10_000
    assert sum(row["pixels"] for row in report["classes"]) == 10_000 * 30 * 40
    assert {row["name"] for row in report["classes"]} == set(NAMES)
