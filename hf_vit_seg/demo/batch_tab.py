"""The tab that segments many files, also those that a browser cannot show."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.drawing.overlays import percent
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.prediction import FileFacts, Job, PredictOptions, create_jobs, write_job
from hf_vit_seg.inference.files.suffixes import OVERLAY
from hf_vit_seg.inference.segmentation import Segmentation

from .accelerator import CALLS
from .catalogue import Catalogue
from .file_segmentation import DEFAULT_WINDOW, MAX_PIXELS_PER_CALL, WHOLE, segment_file, selected_protocol
from .segmentation_tab import Choices
from .upload_folder import fresh_folder
from .uploads import MAX_FILES, clear_on_failure, error_message, files_input, report_failures

MAX_CLASSES = 4  # shown per file


class BatchTab:
    """Segments uploaded files, and shows a gallery and a ZIP archive. Files that fail are listed and skipped."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                files = files_input(f"Images (at most {MAX_FILES}), also TIFF and .npy")
                choices = Choices.render(catalogue.titles("segmentation"))
                with gr.Row():
                    start = gr.Button("Segment all", variant="primary", min_width=100)
                    stop = gr.Button("Stop", min_width=100)
            with gr.Column(scale=3, min_width=480):
                gallery = gr.Gallery(label="Overlays", columns=3, object_fit="contain", height="60vh")
                table = gr.Dataframe(headers=["file", "found"], label="Files", interactive=False, wrap=True)
                archive = gr.File(label="All label maps, overlays and reports", interactive=False)
        results = [gallery, table, archive]
        segmenting = start.click(
            self.segment_files, [files, *choices.components], results, api_name="segment_files", **CALLS
        )
        clear_on_failure(segmenting, results)
        stop.click(None, cancels=[segmenting], api_visibility="private")

    def segment_files(
        self,
        files: list[str] | None,
        model: str,
        view: str = WHOLE,
        window: float = DEFAULT_WINDOW,
        flip: bool = False,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (gradio knows it by this default)
    ) -> Iterator[tuple[list[Any], list[list[str]], str | None]]:
        """Segment images: overlays, what was found in each file, and a ZIP with label maps, overlays and reports."""
        with report_failures(), TemporaryDirectory() as results:
            if not files or len(files) > MAX_FILES:
                raise HfVitSegError(f"choose 1 to {MAX_FILES} files, these are {len(files or ())}")
            self.catalogue.load(model)
            protocol, folder, left = selected_protocol(view, window, flip), fresh_folder(), MAX_PIXELS_PER_CALL
            jobs = create_jobs([ImageFile(path, Path(path.name)) for path in map(Path, files)], Path(results))
            overlays, rows = [], []
            for number, job in enumerate(jobs):
                name = job.image.path.name
                progress((number, len(jobs)), desc=name)
                text, seen = outcome(self.catalogue, model, protocol, job, left)
                left -= seen
                rows.append([name, text])
                if job.done:
                    overlays.append((shutil.copy(job.result(OVERLAY), folder), name))
                yield overlays, rows, None  # here it ends when it is stopped
            yield overlays, rows, shutil.make_archive(str(folder / "segmentations"), "zip", results)


def outcome(catalogue: Catalogue, title: str, protocol: Protocol, job: Job, left: int) -> tuple[str, int]:
    """Segment a file and write its results; return a summary or the failure, and the number of processed pixels."""
    path, name = job.image.path, Path(job.image.path.name)
    try:
        segmented = segment_file(catalogue, title, protocol, path, left)
    except Exception as error:
        return f"failed: {error_message(error, path)}", 0
    visible = replace(job, image=ImageFile(name, name))
    milliseconds = segmented.report["timings_ms"]["read"]
    facts, options = FileFacts(milliseconds), PredictOptions(model=title)
    failure = write_job(catalogue.load(title), visible, segmented.result, facts, options).error
    if failure is not None:
        return f"failed: {failure}", segmented.seen
    return summary(segmented.result), segmented.seen


def summary(result: Segmentation) -> str:
    """Return the most frequent classes, in a line."""
    counts = result.counts()
    named = [f"{count.name} {percent(count.share)}" for count in counts[:MAX_CLASSES]]
    more = len(counts) - len(named)
    return ", ".join([*named, *([f"{more} more"] if more else [])])


__all__ = ["BatchTab"]
