"""The ncps package samples the wiring we claim to reproduce; degrees follow from the rules of the paper."""

import numpy as np
import pytest
from ncps.wirings import AutoNCP

from student_train.cells.wiring import auto_ncp, strong_components


@pytest.mark.parametrize("seed", [0, 1, 7, 22_222])
@pytest.mark.parametrize(("units", "motor", "inputs"), [(8, 2, 1), (16, 4, 3), (64, 16, 40), (256, 64, 64)])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_matrices_are_those_of_the_ncps_package_seed_for_seed(seed, units, motor, inputs, sparsity):
    package = AutoNCP(units, motor, sparsity, seed)
    package.build(inputs)
    ours = auto_ncp(units, motor, inputs, sparsity=sparsity, seed=seed)
    np.testing.assert_array_equal(ours.internal, package.adjacency_matrix)
    np.testing.assert_array_equal(ours.sensory, package.sensory_adjacency_matrix)


def test_layers_only_feed_the_next_one_and_every_neuron_is_reached():
    w = auto_ncp(128, 32, 48, seed=3)
    assert (w.inter, w.command, w.motor) == (58, 38, 32)
    allowed = np.zeros((128, 128), bool)
    allowed[w.inter_ids, w.command_ids] = True
    allowed[w.command_ids, w.command_ids] = True
    allowed[w.command_ids, w.motor_ids] = True
    assert not w.internal[~allowed].any()
    assert not w.sensory[:, : w.motor + w.command].any()
    assert w.fan_in().min() >= 1
    assert w.fan_out()[w.motor :].min() >= 1
    assert (np.count_nonzero(w.sensory, axis=1) == 29).all()
    assert set(np.unique(w.internal)) == {-1, 0, 1}


def test_the_digest_tells_seeds_and_sizes_apart_and_is_stable():
    assert auto_ncp(32, 8, 5).digest == auto_ncp(32, 8, 5).digest
    assert len({auto_ncp(32, 8, 5, seed=s).digest for s in range(5)} | {auto_ncp(32, 8, 6).digest}) == 6


def test_motor_neurons_must_leave_room_for_the_other_layers():
    with pytest.raises(ValueError, match="motor 14 must be smaller than units - 2 = 14"):
        auto_ncp(16, 14, 4)


def test_strong_components_of_a_graph_known_by_hand():
    edges = np.zeros((6, 6), bool)
    for source, target in [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 3), (5, 5)]:
        edges[source, target] = True
    assert sorted(map(sorted, strong_components(edges))) == [[0, 1, 2], [3, 4], [5]]
