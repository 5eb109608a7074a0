"""Objects of images larger than memory, window by window.

Shapes: H W the image, r c a window.
"""

import json
import shutil
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.drawing.object_overlays import draw_numbers
from hf_vit_seg.drawing.overlays import save_overlay
from hf_vit_seg.errors import write_errors
from hf_vit_seg.inference.files.map_coordinates import map_coordinates
from hf_vit_seg.inference.files.object_files import InstanceRaster, object_report, object_savers
from hf_vit_seg.inference.files.prediction import Job, PredictOptions
from hf_vit_seg.inference.files.suffixes import OVERLAY, REPORT
from hf_vit_seg.inference.found_segments import FoundObject
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.object_stitching import ObjectStitcher

from .region_reading import open_regions
from .tiled_logits import tiling_protocol
from .tiled_prediction import Progress, common_plan, overview
from .writing import complete_lines, reuse_folder

WINDOWS = "windows.jsonl"


class WindowRecord:
    """A folder with the objects of completed windows, in their order.

    `plan` has everything that the objects depend on. Windows of an earlier run are reused if it had the same plan, and
    deleted otherwise.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]):
        self.folder, file = folder, folder / WINDOWS
        with write_errors(folder):
            reuse_folder(folder, json.dumps(plan, sort_keys=True))
            lines = complete_lines(file)
            self.known = [[object_from_json(each) for each in json.loads(line)] for line in lines]
            file.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
            self.file = file.open("a", encoding="ascii", buffering=1)

    def add(self, objects: Sequence[FoundObject]) -> None:
        """Append the objects of the next window."""
        with write_errors(self.folder):
            self.file.write(json.dumps([object_to_json(instance) for instance in objects]) + "\n")

    def close(self) -> None:
        """Close the record and keep the folder for a later run."""
        self.file.close()

    def remove(self) -> None:
        """Close the record and delete the folder."""
        self.close()
        shutil.rmtree(self.folder)


def object_to_json(instance: FoundObject) -> dict[str, Any]:
    """Convert an object for JSON; the bits of its mask are base64."""
    return asdict(instance) | {"bits": b64encode(instance.bits).decode("ascii")}


def object_from_json(entry: Mapping[str, Any]) -> FoundObject:
    """Restore an object from `object_to_json`."""
    x, y = entry["centroid"]
    rows, columns = entry["shape"]
    return FoundObject(**{**entry, "bits": b64decode(entry["bits"]), "centroid": (x, y), "shape": (rows, columns)})


def predict_tiled_objects(segmenter: InstanceSegmenter, job: Job, options: PredictOptions) -> Iterator[Progress]:
    """Find the objects of one image in windows and write the results, yielding the progress after each window.

    Objects are stored as crops, so that memory grows with their areas, not with the image. An interrupted run resumes
    with the missing windows if it is repeated with the same settings. Raises ImageFileError, PredictionError, or
    HfVitSegError for coordinates of polygons that cannot be computed.
    """
    start = time.perf_counter()
    protocol = tiling_protocol(segmenter.protocol, segmenter.processor).model_copy(update={"blend": "flat"})
    segmenter = segmenter.with_protocol(protocol)
    with open_regions(job.image.path, segmenter.channels) as image, ExitStack() as stack:
        coordinates = None
        if options.geojson:
            coordinates = map_coordinates(job.image.path, image.georeference, image.size, options.coordinates)
        grid = protocol.grid(image.size)
        total, stitcher = 1 if grid is None else len(grid), ObjectStitcher(image.size, segmenter.fused or ())
        settings = {"threshold": segmenter.threshold, "stuff": segmenter.fused}
        plan = common_plan(segmenter, job, image, options) | settings
        record = stack.enter_context(closing(WindowRecord(job.target.with_name(f".{job.target.name}.windows"), plan)))
        resumed = len(record.known)
        for done in segmenter.find_in_windows(image.read, stitcher, record.known, record.add):
            if done >= resumed:
                yield Progress(done, total, resumed, options.uses_pixels(coordinates))
        segments = segmenter.result(stitcher)
        savers = object_savers(segments, job, options, image.georeference, coordinates)
        if options.overlay:
            picture, numbers = overview(image, InstanceRaster(segments))
            overlay = draw_numbers(picture, numbers.astype(np.int64), None, options.opacity, None)
            savers[OVERLAY] = partial(save_overlay, overlay)
        content = object_report(segmenter, job, segments, options, coordinates)
        content |= {"windows": total, "resumed": resumed, "seconds": round(time.perf_counter() - start, 2)}
        savers[REPORT] = lambda path: path.write_text(json_text(content, indent=2), encoding="utf-8")
        write_files({job.result(suffix): save for suffix, save in savers.items()})
        record.remove()


__all__ = ["predict_tiled_objects"]
