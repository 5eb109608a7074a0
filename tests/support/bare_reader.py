"""Load a pushed model with transformers only. A script: see `bare_environment.py`.

Cases are JSON: `model` (Hub id or directory), `auto`, `image`, `wanted` (a numpy file); `revision`; `pipeline`;
`again`, a repository to push to again; `without`, a name to remove from torch, as in another version of torch.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import numpy as np
import torch
import transformers
from PIL import Image


def outputs(model, inputs):
    with torch.no_grad():
        found = model.eval()(**inputs)
    for name in ("logits", "heatmaps", "last_hidden_state", "masks_queries_logits", "distances"):
        if name in found:
            return found[name].numpy()
    return found.feature_maps[-1].numpy()


def check(place, case, **options):
    """Load processor and model with the code in the repository, and compare the output for the image."""
    options |= {"trust_remote_code": True}
    processor = transformers.AutoImageProcessor.from_pretrained(place, **options)
    if case["auto"] == "AutoBackbone" and case.get("directory"):  # AutoBackbone of transformers 5.23 contacts the Hub
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = json.loads(Path(place, "config.json").read_text())["auto_map"]["AutoBackbone"]
        model = get_class_from_dynamic_module(reference, place).from_pretrained(place)
    else:
        model = getattr(transformers, case["auto"]).from_pretrained(place, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
    found = outputs(model, processor(Image.open(case["image"]), return_tensors="pt"))
    np.testing.assert_allclose(found, np.load(case["wanted"]), rtol=1e-3, atol=1e-4)
    return model, processor


class Lacking:
    """All attributes of another object except one."""

    def __init__(self, whole, name):
        self._whole, self._name = whole, name

    def __getattr__(self, name):
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


@contextmanager
def without(path):
    """torch without a name. Operators cannot be deleted, so their namespace is replaced."""
    *parents, name = path.split(".")
    holder = owner = None
    for part in parents:
        holder, owner = owner, torch if owner is None else getattr(owner, part)
    if path.startswith("torch.ops."):
        setattr(holder, parents[-1], Lacking(owner, name))
        yield
        setattr(holder, parents[-1], owner)
        return
    kept = getattr(owner, name)
    delattr(owner, name)
    yield
    setattr(owner, name, kept)


def do(case):
    if case.get("without"):
        with without(case["without"]):
            return do(case | {"without": None})
    options = {"revision": case["revision"]} if "revision" in case else {}
    model, processor = check(case["model"], case, **options)
    if "pipeline" in case:
        find = transformers.pipeline(case["pipeline"], model=case["model"], trust_remote_code=True)
        for subtask in case.get("subtasks", [None]):
            found = find(case["image"], **({} if subtask is None else {"subtask": subtask, "threshold": 0.1}))
            assert len(found) > 0 or case.get("may_be_empty"), subtask
    if "again" in case:
        model.push_to_hub(case["again"])
        processor.push_to_hub(case["again"])
        check(case["again"], case)


transformers.utils.logging.disable_progress_bar()
for each in json.load(sys.stdin):
    try:
        do(each)
    except Exception as error:
        raise RuntimeError(f"{each['model']} by {each['auto']}: {type(error).__name__}: {error}") from error
strangers = {name.partition(".")[0] for name in sys.modules} & {"hf_vit_seg", "accelerate", "pydantic", "datasets"}
assert not strangers, strangers
try:
    import hf_vit_seg
except ModuleNotFoundError:
    sys.exit()
sys.exit(f"the package is there: {hf_vit_seg.__file__}")
