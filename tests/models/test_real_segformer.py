"""A real SegFormer-B0 on real photos, from both formats of its checkpoint. Neither can be shipped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_vit_seg.conversion.convert import convert
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerForSemanticSegmentation

from hf_vit_seg.inference import Segmenter

pytestmark = pytest.mark.shared

# CamVid's classes, and the corresponding names in ADE20K.
CAMVID = {
    "sky": 0,
    "building": 1,
    "house": 1,
    "wall": 1,
    "skyscraper": 1,
    "door": 1,
    "windowpane": 1,
    "pole": 2,
    "streetlight": 2,
    "road": 3,
    "path": 3,
    "sidewalk": 4,
    "tree": 5,
    "plant": 5,
    "grass": 5,
    "palm": 5,
    "signboard": 6,
    "traffic light": 6,
    "fence": 7,
    "railing": 7,
    "car": 8,
    "bus": 8,
    "truck": 8,
    "van": 8,
    "person": 9,
    "bicycle": 10,
    "minibike": 10,
}
UNLABELLED = 11


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory) -> dict[str, Path]:
    """The NVlabs file and the Hugging Face directory, converted."""
    folder = tmp_path_factory.mktemp("real")
    weights = shared / "data" / "segformer_b0_ade"
    convert(weights / "nvlabs" / "segformer.b0.512x512.ade.dequant.pth", folder / "nvlabs")
    convert(weights / "hf", folder / "hf")
    return {"nvlabs": folder / "nvlabs", "hf": folder / "hf"}


@pytest.fixture(scope="module")
def photos(shared) -> list[Path]:
    """30 photos sampled evenly from the test set."""
    found = sorted((shared / "data" / "camvid" / "test" / "images").glob("*.jpg"))
    return found[:: len(found) // 30][:30]


def test_both_formats_give_the_same_label_maps(real, photos):
    first, second = (Segmenter.from_pretrained(str(real[name])) for name in ("nvlabs", "hf"))
    equal = [
        (np.asarray(first(Image.open(p)).label_map) == np.asarray(second(Image.open(p)).label_map)).mean()
        for p in photos[:8]
    ]
    # The epsilons of the two references differ (1e-6 and 1e-5), so pixels on a border may differ.
    assert np.mean(equal) > 0.999


def test_label_map_matches_transformers(real, shared, photos):
    theirs = SegformerForSemanticSegmentation.from_pretrained(shared / "data" / "segformer_b0_ade" / "hf").eval()
    processor = AutoImageProcessor.from_pretrained(real["hf"])
    ours = AutoModelForSemanticSegmentation.from_pretrained(real["hf"]).eval()
    for path in photos[:3]:
        photo = Image.open(path)
        inputs = processor(photo, return_tensors="pt")
        with torch.no_grad():
            expected, actual = theirs(**inputs), ours(**inputs)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-3, atol=1e-3)
        size = [(photo.height, photo.width)]
        maps = [
            processor.post_process_semantic_segmentation(output, target_sizes=size)[0] for output in (actual, expected)
        ]
        assert (maps[0] == maps[1]).double().mean() > 0.9999


def test_pixel_accuracy_on_camvid(real, photos):
    segmenter = Segmenter.from_pretrained(str(real["nvlabs"]))
    names = json.loads((real["nvlabs"] / "config.json").read_text())["id2label"]
    to_camvid = np.array([CAMVID.get(names[str(i)], UNLABELLED) for i in range(len(names))])
    right = counted = 0
    for path in photos:
        truth = np.asarray(Image.open(path.parent.parent / "masks" / f"{path.stem}.png"))
        predicted = to_camvid[np.asarray(segmenter(Image.open(path)).label_map)]
        right += int(((predicted == truth) & (truth != UNLABELLED)).sum())
        counted += int((truth != UNLABELLED).sum())
    print(f"pixel accuracy on {len(photos)} photos: {right / counted:.4f}")
    assert right / counted >= 0.85
