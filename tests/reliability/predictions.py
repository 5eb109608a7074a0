"""`python -m tests.reliability.predictions COUNT FILE`: segment images of random sizes; `soak` observes this process.

FILE is created after the first image.
"""

import random
import sys
from pathlib import Path

import numpy as np

from hf_vit_seg.inference import Segmenter

SIDES = (64, 512)  # smallest and largest side of an image


def predict_images(count: int, ready: Path) -> None:
    """Segment images with the built-in model."""
    segmenter, draw = Segmenter.from_pretrained("examples/nuclei/model", "cpu"), random.Random(0)
    for number in range(count):
        size = draw.randint(*SIDES), draw.randint(*SIDES)
        segmenter(np.full((*size, 3), number % 256, np.uint8), scores=True)
        if not number:
            ready.touch()


if __name__ == "__main__":
    predict_images(int(sys.argv[1]), Path(sys.argv[2]))
