"""A checkpoint of one number of ranks made loadable by another, through DeepSpeed's universal format.

ZeRO's files are cut for the ranks that wrote them; the universal form has one file for each parameter and state, from
which any number of ranks take their parts. Which checkpoint is taken is `checkpoint`'s to say.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SUFFIX = "-universal"


def convert(root: Path, tag: str) -> str:
    """Write the universal form of checkpoint `tag` beside it; one process does it. The new tag.

    A kill leaves at most a scratch folder: the result appears by rename, and one from an earlier start is made anew.
    Both bear the checkpoints' prefix without a marker, so the next checkpoint prunes them.
    """
    from deepspeed.checkpoint import ds_to_universal

    made = tag + SUFFIX
    scratch = root / f"{made}.tmp"
    for stale in (scratch, root / made):
        shutil.rmtree(stale, ignore_errors=True)
    scratch.mkdir()
    settings = Namespace(
        input_folder=str(root / tag),
        output_folder=str(scratch / made),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(sys.stderr):  # standard output carries the progress events
        ds_to_universal.main(settings)
    (scratch / made).rename(root / made)
    shutil.rmtree(scratch)
    return made


@contextlib.contextmanager
def mended(engine: Any) -> Iterator[None]:
    """Undo what a universal load of DeepSpeed 0.19.8 does to the optimizer.

    It gives every group the settings of the first one (all parameters would decay), and all parameters one common
    step counter, which AdamW then advances once for each of them.
    """
    before = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    yield
    for group, settings in zip(engine.optimizer.param_groups, before, strict=True):
        group.update(settings)
    for state in getattr(engine.optimizer, "optimizer", engine.optimizer).state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
