# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_vit_seg"]
# ///
"""Segment a dataset of the Hub with one or several jobs of HF Jobs, and publish the label maps as a dataset.

    hf jobs uv run --flavor t4-small --secrets HF_TOKEN examples/jobs/segment_dataset.py \\
        me/model hf://datasets/me/photos --push me/labels

Each of several jobs segments its share if it gets its number and the number of jobs, with the same arguments:

    for rank in 0 1 2 3; do
        hf jobs uv run --detach --flavor t4-small --secrets HF_TOKEN --env RANK=$rank --env NUM_SHARDS=4 \\
            examples/jobs/segment_dataset.py me/model hf://datasets/me/photos --push me/labels
    done

Finished shards are stored in a private dataset (`--parts`, by default REPO-parts) as Parquet files with status records.
A stopped job resumes when it is started again. The job that finds all shards finished publishes
them in one commit. While hf_vit_seg is not on PyPI, add `--with` and the address of its wheel or repository.
"""

import argparse
import sys

from huggingface_hub import HfApi

from hf_vit_seg.error_reporting import report_error
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.hub.dataset import push_dataset
from hf_vit_seg.hub.repository import Target
from hf_vit_seg.inference.batch.batch_console import run_batch, share_of_processes
from hf_vit_seg.inference.batch.run import BatchRun
from hf_vit_seg.inference.files.prediction import PredictOptions


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub ID of a segmentation model")
    parser.add_argument("inputs", nargs="+", help="addresses, such as hf://datasets/me/photos")
    parser.add_argument("--push", required=True, metavar="REPO", help="dataset to publish, such as me/labels")
    parser.add_argument("--parts", help="address of unfinished results; default: hf://datasets/REPO-parts")
    parser.add_argument("--column", default="", help="column of the images in Parquet files and datasets")
    parser.add_argument("--batch-size", type=int, help="images per forward pass")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="visibility of the dataset")
    return parser.parse_args(arguments)


def run(given: argparse.Namespace) -> int:
    """Segment the shards of this job, publish the dataset if all shards are finished, and return the exit code."""
    parts = given.parts
    if parts is None:
        parts = f"hf://datasets/{given.push}-parts"
        HfApi().create_repo(f"{given.push}-parts", repo_type="dataset", private=True, exist_ok=True)
    rank, world = share_of_processes()
    batch = BatchRun(
        options=PredictOptions(model=given.model, overlay=False),
        inputs=tuple(given.inputs),
        out=parts,
        format="parquet",
        column=given.column,
        batch_size=given.batch_size,
        rank=rank,
        world=world,
    )
    code, summary = run_batch(batch)
    if summary.finished == summary.images:
        print(push_dataset(parts, Target(given.push, private=given.private)))
    return code


def main() -> None:
    """Run the job; errors of usage are reported in one sentence."""
    try:
        code = run(read_arguments())
    except HfVitSegError as error:
        code = report_error(error)
    sys.exit(code)


if __name__ == "__main__":
    main()
