"""Removal of debug records with local paths from TorchScript archives."""

from pathlib import Path

import torch

DEBUG = ".debug_pkl"  # call stacks for error messages, optional for torch.jit.load


def remove_debug_records(path: Path) -> None:
    """Rewrite an archive in place; other records are unchanged."""
    reader = torch._C.PyTorchFileReader(str(path))
    kept = [name for name in reader.get_all_records() if not name.endswith(DEBUG)]
    slim = path.with_name(f"slim.{path.name}")
    writer = torch._C.PyTorchFileWriter(str(slim))
    for name in kept:
        content = reader.get_record(name)
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    del reader
    slim.replace(path)


__all__ = ["remove_debug_records"]
