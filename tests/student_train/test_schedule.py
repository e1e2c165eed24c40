"""Learning rates at hand-computed steps; which parameters decay."""

import pytest
from torch import nn

from student_train.config import OptimizerConfig
from student_train.schedule import learning_rate, parameter_groups

CONFIG = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.2, weight_decay=0.3)


def test_it_warms_up_linearly_then_falls_as_a_cosine_to_its_final_share():
    rates = [learning_rate(s, 25, CONFIG) for s in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.6)  # half of the 20 steps after warm-up
    assert rates[24] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_linear_one_falls_in_equal_steps_and_wsd_stays_up_until_its_last_share():
    linear = [learning_rate(s, 25, CONFIG.model_copy(update={"schedule": "linear"})) for s in range(25)]
    assert linear[4:] == pytest.approx([1 - 0.04 * i for i in range(21)])
    wsd = CONFIG.model_copy(update={"schedule": "wsd", "decay_share": 0.25})
    rates = [learning_rate(s, 25, wsd) for s in range(25)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:20] == [1.0] * 16
    assert rates[20:] == pytest.approx([0.84, 0.68, 0.52, 0.36, 0.2])


def test_it_needs_no_warm_up_and_survives_runs_shorter_than_it():
    assert learning_rate(0, 10, CONFIG.model_copy(update={"warmup_steps": 0})) == 1.0
    assert [learning_rate(s, 2, CONFIG) for s in range(2)] == [0.25, 0.5]
    assert learning_rate(99, 25, CONFIG) == pytest.approx(0.2)


def test_only_the_named_parameters_decay():
    module = nn.Linear(3, 2)
    groups = parameter_groups(module, ["weight"], CONFIG)
    assert [(g["weight_decay"], [p.shape for p in g["params"]]) for g in groups] == [
        (0.3, [module.weight.shape]),
        (0.0, [module.bias.shape]),
    ]
    with pytest.raises(AssertionError, match="wieght"):
        parameter_groups(module, ["wieght"], CONFIG)
