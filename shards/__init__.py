"""The shard format that the two phases meet in: numpy and pyarrow only, never a tensor library.

`FORMAT.md` is the spec. What is named here is public; everything else may change.
"""

from .convert import convert
from .errors import ShardError, UserError
from .header import FORMAT_VERSION, Header
from .manifest import Manifest, is_whole, plan_shards
from .order import Layout, block_order, epoch_order, rank_slice, step_rows, steps_per_epoch
from .probe import Probe, read_probe, write_probe
from .reader import Dataset, open_dataset
from .rows import Capture, Row
from .schema import ShardPlan
from .verify import Report, verify
from .writer import DatasetWriter

__all__ = [
    "FORMAT_VERSION",
    "Capture",
    "Dataset",
    "DatasetWriter",
    "Header",
    "Layout",
    "Manifest",
    "Probe",
    "Report",
    "Row",
    "ShardError",
    "ShardPlan",
    "UserError",
    "block_order",
    "convert",
    "epoch_order",
    "is_whole",
    "open_dataset",
    "plan_shards",
    "rank_slice",
    "read_probe",
    "step_rows",
    "steps_per_epoch",
    "verify",
    "write_probe",
]
