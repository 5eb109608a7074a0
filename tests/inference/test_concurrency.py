"""Models that are used by several threads, in other processes, or while their weights change."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import save_tiny_model
from object_models import save_object_model
from torch.utils.data import DataLoader

from hf_vit_seg.inference import InstanceSegmenter, Segmenter
from hf_vit_seg.inference.dense.protocols import Protocol

THREADS = 8
SIZES = [(48, 64), (64, 48), (33, 70), (64, 64)]
ARCHITECTURES = ("segformer", "vit", "cvt")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(folder / name, name) for name in ARCHITECTURES}


def images(count: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*SIZES[i % len(SIZES)], 3), dtype=np.uint8) for i in range(count)]


def load(folder: Path) -> Segmenter:
    return Segmenter.from_pretrained(str(folder), "cpu")


def label_maps(folder: Path) -> list[np.ndarray]:
    """Segment all images; runs in other processes, too."""
    torch.set_num_threads(1)
    segmenter = load(folder)
    return [segmenter(image).label_map for image in images()]


def in_threads(function: Callable[[Any], Any], inputs: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, inputs))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("protocol", [Protocol(), Protocol(window=(32, 32), stride=(24, 24), flip=True)])
def test_segmenter_in_threads(models, name, protocol):
    segmenter = load(models[name]).with_protocol(protocol)
    expected = [segmenter(image, scores=True) for image in images()]
    for found, alone in zip(
        in_threads(lambda image: segmenter(image, scores=True), images() * 4), expected * 4, strict=True
    ):
        assert np.array_equal(found.label_map, alone.label_map)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=0, atol=1e-5)


def test_instance_segmenter_in_threads(tmp_path):
    segmenter = InstanceSegmenter.from_pretrained(str(save_object_model(tmp_path / "model")), "cpu", threshold=0.1)
    expected = [segmenter(image).instance_map() for image in images()]
    assert any(numbers.any() for numbers in expected)
    found = in_threads(lambda image: segmenter(image).instance_map(), images() * 2)
    assert all(np.array_equal(*pair) for pair in zip(found, expected * 2, strict=True))


def test_two_models_in_one_process(models):
    segmenters = [load(models[name]) for name in ("segformer", "vit")]
    expected = [[segmenter(image).label_map for image in images()] for segmenter in segmenters]
    jobs = [(which, index) for index in range(len(images())) for which in (0, 1)] * 2
    found = in_threads(lambda job: segmenters[job[0]](images()[job[1]]).label_map, jobs)
    assert all(np.array_equal(label_map, expected[a][b]) for label_map, (a, b) in zip(found, jobs, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_that_change_during_predictions(models, name, tmp_path):
    """Afterwards, the results are those of the new weights: nothing computed from earlier ones is kept."""
    other = load(save_tiny_model(tmp_path / "other", name, seed=1))
    segmenter, stopped = load(models[name]), Event()
    weights = [each.model.state_dict() for each in (segmenter, other)]
    weights = [{key: tensor.clone() for key, tensor in state.items()} for state in weights]

    def segment_until_stopped(image: np.ndarray) -> int:
        count = 0
        while not stopped.is_set():
            segmenter(image)
            count += 1
        return count

    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(segment_until_stopped, image) for image in images(THREADS - 1)]
        try:
            for step in range(40):
                segmenter.model.load_state_dict(weights[step % 2])
                segmenter(images(1)[0])
        finally:
            stopped.set()
        assert sum(each.result() for each in running)
    segmenter.model.load_state_dict(weights[1])
    for image in images():
        found, alone = segmenter(image, scores=True), other(image, scores=True)
        assert np.array_equal(found.label_map, alone.label_map)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes(models, method):
    expected = label_maps(models["vit"])
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        for found in pool.map(label_maps, [models["vit"]] * 2):
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


class PreparedImages(torch.utils.data.Dataset):
    """Pixel values of images, by a segmenter that is copied to the processes of a loader."""

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter

    def __len__(self) -> int:
        return len(images())

    def __getitem__(self, index: int) -> torch.Tensor:
        prepared = self.segmenter.prepare(images()[index])
        return self.segmenter.logits(prepared.pixel_values)[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_loader(models, method):
    dataset = PreparedImages(load(models["segformer"]))
    expected = [dataset[index] for index in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    for found, alone in zip(loader, expected, strict=True):
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
