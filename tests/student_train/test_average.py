"""The moving average of weights against its formula written out, and through a checkpoint."""

import pytest
import torch
from torch import nn

from student_train.average import WeightAverage


def test_it_is_the_recursion_with_a_decay_that_grows_to_its_value():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    average, law = WeightAverage(module, 0.3), 2.0
    for step, weight in enumerate([5.0, -1.0, 4.0, 0.5]):
        nn.init.constant_(module.weight, weight)
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        law = decay * law + (1 - decay) * weight
        assert average.whole("weight").item() == pytest.approx(law, rel=1e-6)


def test_it_comes_back_bitwise_from_a_checkpoint(tmp_path):
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    with torch.no_grad():
        module.weight.add_(1)
    average.update(5)
    average.save(tmp_path)
    fresh = WeightAverage(nn.Linear(3, 2), 0.9)
    fresh.load(tmp_path)
    for name in ("weight", "bias"):
        assert torch.equal(fresh.whole(name), average.whole(name))
