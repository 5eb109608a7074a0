"""Fixtures that all tests share."""

from pathlib import Path

import pytest
import torch

import hf_vit_seg  # noqa: F401  (registers the architectures)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The founders' folder of real weights and photos, which cannot be committed."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"the founders' folder {folder} is not on this machine")
    return folder
