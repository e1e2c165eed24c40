"""How much a position counts: a function of what the shards say of it, never of the student."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config import LossConfig


def position_weights(config: LossConfig, entropy: NDArray[np.float32], source: str) -> NDArray[np.float32]:
    """[n]: (1 + entropy) ** entropy_power * source_weights[source]; 1 where nothing is configured.

    Args:
        config: `entropy_power` and `source_weights`; sources not named there have weight 1.
        entropy: [n] of the teacher, nats, of the positions of one row.
        source: of that row.
    """
    uncertain = (1.0 + np.maximum(entropy.astype(np.float64), 0.0)) ** config.entropy_power
    return (uncertain * config.source_weights.get(source, 1.0)).astype(np.float32)
