"""Panoptic quality, as an `evaluate` module."""

from collections.abc import Sequence
from typing import Any

from hf_vit_seg.metrics import segment_results
from hf_vit_seg.metrics.panoptic_quality import PanopticQuality

_INPUTS = f"""
Args of evaluate.load:
    num_labels (`int`): number of classes.
    stuff (`Sequence[int]`, optional): indices of the stuff classes, for separate means over things and stuff.
Args:{segment_results.INPUTS}Returns:
    pq, sq, rq (`float`, 0 .. 1), the same with _things and _stuff if `stuff` is given, and per_category_pq,
    per_category_sq, per_category_rq (arrays of num_labels).
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute.
"""


class Pq(segment_results.SegmentMetric):
    """Panoptic, segmentation and recognition quality."""

    DESCRIPTION = "Panoptic quality of segments, and its factors: segmentation and recognition quality."
    INPUTS = _INPUTS
    CITATION = (
        "@inproceedings{kirillov2019panoptic, title={Panoptic Segmentation}, author={Kirillov, Alexander and He, "
        "Kaiming and Girshick, Ross and Rother, Carsten and Doll\\'ar, Piotr}, booktitle={CVPR}, year={2019}}"
    )

    def __init__(self, *args: Any, num_labels: int = 1, stuff: Sequence[int] = (), **kwargs: Any):
        self.classes, self.stuff = num_labels, stuff
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Remove all images."""
        self.metric = PanopticQuality(self.classes, self.stuff)
