"""Objects of images larger than memory, window by window.

Shapes: H W the image, r c a window.
"""

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.drawing.objects import draw_numbers
from hf_vit_seg.drawing.overlays import save_overlay
from hf_vit_seg.inference.files.map_coordinates import map_coordinates
from hf_vit_seg.inference.files.objects import InstanceRaster, object_report, object_savers
from hf_vit_seg.inference.files.prediction import OVERLAY, REPORT, Job, PredictOptions
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.object_stitching import ObjectStitcher

from .prediction import Progress, overview
from .reading import open_regions
from .tiled_logits import tiling_protocol


def predict_tiled_objects(segmenter: InstanceSegmenter, job: Job, options: PredictOptions) -> Iterator[Progress]:
    """Find the objects of one image in windows and write the results, yielding the progress after each window.

    Objects are held as crops, so that memory grows with their areas, not with the image. Raises ImageFileError,
    PredictionError, or HfVitSegError for coordinates of polygons that cannot be computed.
    """
    start = time.perf_counter()
    protocol = tiling_protocol(segmenter.protocol, segmenter.processor).model_copy(update={"blend": "flat"})
    segmenter = segmenter.with_protocol(protocol)
    with open_regions(job.image.path, segmenter.channels) as image:
        coordinates = None
        if options.geojson:
            coordinates = map_coordinates(job.image.path, image.georeference, image.size, options.coordinates)
        grid = protocol.grid(image.size)
        total, stitcher = 1 if grid is None else len(grid), ObjectStitcher(image.size, segmenter.fused or ())
        for done in segmenter.find_in_windows(image.read, stitcher):
            yield Progress(done, total, 0, options.uses_pixels(coordinates))
        found = segmenter.result(stitcher)
        savers = object_savers(found, job, options, image.georeference, coordinates)
        if options.overlay:
            picture, numbers = overview(image, InstanceRaster(found))
            overlay = draw_numbers(picture, numbers.astype(np.int64), None, options.opacity, None)
            savers[OVERLAY] = partial(save_overlay, overlay)
        content = object_report(segmenter, job, found, options, coordinates)
        content |= {"windows": total, "seconds": round(time.perf_counter() - start, 2)}
        savers[REPORT] = lambda path: path.write_text(json_text(content, indent=2), encoding="utf-8")
        write_files({job.result(suffix): save for suffix, save in savers.items()})


__all__ = ["predict_tiled_objects"]
