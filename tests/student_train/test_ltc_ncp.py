"""The cell against the ncps package (the oracle), against its own step, against finite differences and closed forms."""

import pytest
import torch
from ncps.torch.ltc_cell import LTCCell
from ncps.wirings import AutoNCP
from torch.nn.functional import softplus

from student_train.cells import command as command_module
from student_train.cells.ltc_ncp import LtcNcp
from student_train.cells.synapses import SIGMA_MAX, softplus_inverse
from student_train.config import CellConfig, WiringConfig

RANGE = 6.0  # fresh states lie in [-3, 3], the reversal potentials


def make_cell(units=24, inputs=6, *, dtype=torch.float64, lively=True, seed=1, motor=5, **settings):
    """A cell; `lively` strengthens recurrence and shortens memory so that all parts of the equations matter."""
    torch.manual_seed(seed)
    settings = {"sweeps": 40, **settings}
    cell = LtcNcp(inputs, CellConfig(units=units, motor=motor, wiring=WiringConfig(seed=seed), **settings)).to(dtype)
    if lively:
        with torch.no_grad():
            for name, p in cell.named_parameters():
                match name.rpartition(".")[2]:
                    case "raw_weight":
                        p.copy_(softplus_inverse(torch.empty_like(p).uniform_(0.05, 0.6)))
                    case "raw_reversal":
                        p.copy_(softplus_inverse(torch.empty_like(p).uniform_(0.5, 1.5)))
                    case "raw_sigma":
                        p.copy_(torch.logit(torch.empty_like(p).uniform_(2.0, 7.0) / SIGMA_MAX))
                    case "start" | "offset":
                        p.uniform_(-0.5, 0.5)
                    case "raw_capacitance":
                        p.copy_(softplus_inverse(torch.empty_like(p).uniform_(0.3, 4.0)))
    return cell


def to_package(cell, states):
    """Our order inter, command, motor -> the package's motor, command, inter."""
    inter, command, motor = states.split(cell.sizes, dim=-1)
    return torch.cat([motor, command, inter], dim=-1)


def package_twin(cell, inputs):
    """The package's cell for one sub-step, its parameters differentiable functions of ours."""
    w = cell.wiring
    wiring = AutoNCP(w.units, w.motor, cell.config.wiring.sparsity, cell.config.wiring.seed)
    twin = LTCCell(wiring, inputs, ode_unfolds=1, implicit_param_constraints=True)
    dtype = cell.rest.dtype

    def matrix(rows, columns, shape, bundle, values, fill=0.0):
        source, target = bundle.source, bundle.cell % bundle.shape[1]
        full = torch.full(shape, fill, dtype=dtype)
        return full.index_put((source + rows.start, target + columns.start), values)

    def each_synapse(bundle, values):
        return values if bundle.per_edge else values[bundle.source]

    def internal(pick, fill):
        parts = [
            (w.inter_ids, w.command_ids, cell.inter_command),
            (w.command_ids, w.command_ids, cell.recurrent),
            (w.command_ids, w.motor_ids, cell.command_motor),
        ]
        return sum(matrix(a, b, (w.units, w.units), s, pick(s) - fill) for a, b, s in parts) + fill

    def sensory(pick, fill):
        return matrix(slice(0, inputs), w.inter_ids, (inputs, w.units), cell.sensory, pick(cell.sensory), fill)

    picks = {
        "w": (lambda s: s.raw_weight, -5.0),
        "erev": (lambda s: torch.where(s.excites, 1.0, -1.0) * softplus(s.raw_reversal), 0.0),
        "sigma": (lambda s: each_synapse(s, SIGMA_MAX * torch.sigmoid(s.raw_sigma)), 3.0),
        "mu": (lambda s: each_synapse(s, s.mu), 0.5),
    }
    p = {name: internal(pick, fill) for name, (pick, fill) in picks.items()}
    p |= {f"sensory_{name}": sensory(pick, fill) for name, (pick, fill) in picks.items()}
    p |= {
        "gleak": to_package(cell, cell.raw_leak),
        "vleak": to_package(cell, cell.rest),
        "cm": to_package(cell, cell.raw_capacitance),
    }
    fixed = ["sparsity_mask", "sensory_sparsity_mask", "input_w", "input_b", "output_w", "output_b"]
    twin._params = p | {name: twin._params[name].detach().to(dtype) for name in fixed}
    return twin


def package_substeps(cell, x, extra):
    """[B, T K + extra, U] package states after every sub-step from zeros; the last input is held for the extra ones."""
    K = cell.config.unfolds
    twin = package_twin(cell, x.shape[2])
    held = torch.cat([x.repeat_interleave(K, dim=1), x[:, -1:].expand(-1, extra, -1)], dim=1)
    state, states = x.new_zeros(len(x), cell.config.units), []
    for n in range(held.shape[1]):
        _, state = twin(held[:, n], state, 1.0 / K)
        states.append(state)
    return torch.stack(states, dim=1)


def skewed_package(cell, x):
    """Start state and states of our same-step order, read off the package: command one sub-step ahead, motor two."""
    K, T = cell.config.unfolds, x.shape[1]
    motor, command, inter = package_substeps(cell, x, 2).split(cell.sizes[::-1], dim=-1)
    start = torch.cat([torch.zeros_like(inter[:, 0]), command[:, 0], motor[:, 1]], dim=-1)
    states = torch.cat([inter[:, : T * K], command[:, 1 : T * K + 1], motor[:, 2 : T * K + 2]], dim=-1)
    return start, states[:, K - 1 :: K]


def all_states(cell, x, start=None, keep=None):
    return torch.cat(cell._states(x, start, keep), dim=-1)


def loop(cell, x, start, keep=None):
    states = []
    state = start
    for t in range(x.shape[1]):
        if keep is not None:
            state = torch.where(keep[:, t, None], state, cell.start)
        motor, state = cell.step(x[:, t], state)
        assert torch.equal(motor, state[:, -cell.motor :] + cell.offset)
        states.append(state)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("K", [1, 6])
@pytest.mark.parametrize("synapses", ["per_edge", "per_source"])
@pytest.mark.parametrize("seed", [1, 2])
def test_states_and_parameter_gradients_are_those_of_the_ncps_package(K, synapses, seed):
    cell = make_cell(units=32, unfolds=K, synapses=synapses, seed=seed)
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    start, expected = skewed_package(cell, x)
    states = all_states(cell, x, start)
    assert (states - expected).abs().max() <= 1e-12
    weights = torch.randn_like(states)
    known = [(n, p) for n, p in cell.named_parameters() if n not in ("start", "offset")]  # no such things there
    names, parameters = zip(*known, strict=True)
    ours = torch.autograd.grad((states * weights).sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max(), name


def test_the_substep_oracle_is_the_package_with_six_unfolds():
    cell = make_cell(unfolds=6)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    twin = package_twin(cell, 6)
    twin._ode_unfolds = 6
    state, states = x.new_zeros(2, 24), []
    for t in range(5):
        _, state = twin(x[:, t], state)
        states.append(state)
    assert (torch.stack(states, dim=1) - package_substeps(cell, x, 0)[:, 5::6]).abs().max() <= 1e-14


def test_float32_states_stay_within_1e_6_of_their_range_of_the_package_in_float64():
    cell = make_cell(units=128, inputs=32, motor=32, lively=False, sweeps=8)
    x = torch.randn(2, 64, 32, dtype=torch.float64)
    start, expected = skewed_package(cell, x)
    states = all_states(cell.float(), x.float(), start.float())
    assert (states.double() - expected).abs().max() <= 1e-6 * RANGE


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("synapses", ["per_edge", "per_source"])
def test_the_parallel_path_equals_the_step_with_segments_and_a_carried_state(K, synapses):
    cell = make_cell(unfolds=K, synapses=synapses)
    x = torch.randn(3, 33, 6, dtype=torch.float64)
    keep = torch.rand(3, 33) > 0.15
    start = torch.rand(3, 24, dtype=torch.float64) - 0.5
    assert (all_states(cell, x, start, keep) - loop(cell, x, start, keep)).abs().max() <= 1e-12


def test_the_default_number_of_sweeps_is_exact_in_float32_at_initialisation():
    cell = make_cell(units=128, inputs=32, motor=32, dtype=torch.float32, lively=False, sweeps=CellConfig().sweeps)
    x = torch.randn(2, 200, 32)
    states = all_states(cell, x)
    assert cell.residual(x) <= 1e-6
    exact = cell.double()
    expected = loop(exact, x.double(), exact.start.expand(2, -1))
    assert (states - expected).abs().max() <= 1e-6 * RANGE


def test_too_few_sweeps_show_in_the_residual():
    cell = make_cell(sweeps=1)
    assert cell.residual(torch.randn(2, 30, 6, dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize("cut", [1, 16, 39])
def test_cutting_a_sequence_anywhere_and_carrying_the_state_changes_nothing(cut):
    cell = make_cell(dtype=torch.float64)
    x = torch.randn(2, 40, 6, dtype=torch.float64)
    whole, end = cell(x)
    first, state = cell(x[:, :cut])
    second, state = cell(x[:, cut:], state)
    assert (torch.cat([first, second], dim=1) - whole).abs().max() <= 1e-12
    assert (state - end).abs().max() <= 1e-12


def gradcheck(cell, fast_mode=True):
    x = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    start = (torch.rand(1, 13, dtype=torch.float64) - 0.5).requires_grad_()
    keep = torch.tensor([[True, True, True, False, True, True, True]])
    names, values = zip(*cell.named_parameters(), strict=True)

    def run(x, start, *values):
        out, state = torch.func.functional_call(cell, dict(zip(names, values, strict=True)), (x, start, keep))
        return out, state

    return torch.autograd.gradcheck(
        run, (x, start, *values), raise_exception=False, rtol=1e-5, atol=1e-6, fast_mode=fast_mode
    )


@pytest.mark.parametrize("synapses", ["per_edge", "per_source"])
def test_the_adjoint_equals_finite_differences_where_command_neurons_form_a_cycle(synapses):
    cell = make_cell(units=13, inputs=3, motor=2, synapses=synapses, seed=8)
    assert cell.wiring.largest_component() >= 3
    assert gradcheck(cell, fast_mode=synapses == "per_edge")


def test_the_diagonal_only_adjoint_fails_the_same_check(monkeypatch):
    cell = make_cell(units=13, inputs=3, motor=2, seed=8)
    whole = command_module._Adjoint.apply
    monkeypatch.setattr(command_module, "adjoint", lambda *args: whole(*args[:-1], 1))
    assert not gradcheck(cell)


def test_one_lonely_neuron_decays_in_closed_form():
    cell = make_cell(lively=False)
    with torch.no_grad():
        for bundle in (cell.sensory, cell.inter_command, cell.recurrent, cell.command_motor):
            bundle.raw_weight.fill_(-800.0)  # softplus gives exactly 0: no synapses at all
    start = torch.rand(1, 24, dtype=torch.float64)
    states = all_states(cell, torch.randn(1, 50, 6, dtype=torch.float64), start)
    c, g = softplus(cell.raw_capacitance), softplus(cell.raw_leak)
    t = torch.arange(1, 51, dtype=torch.float64)[:, None]
    expected = cell.rest + (c / (c + g)) ** t * (start - cell.rest)
    assert (states[0] - expected).abs().max() <= 1e-6  # 1e-8 in the denominator, over fifty steps


def test_states_never_leave_the_hull_of_start_rest_and_reversal_potentials():
    cell = make_cell(dtype=torch.float32)
    states = all_states(cell, 30 * torch.randn(2, 100, 6))
    reversal = max(
        softplus(b.raw_reversal).max() for b in (cell.sensory, cell.inter_command, cell.recurrent, cell.command_motor)
    )
    assert states.abs().max() <= max(reversal, cell.rest.abs().max(), cell.start.abs().max())


def test_initial_values_follow_their_ranges():
    cell = make_cell(units=256, inputs=64, motor=64, lively=False)
    c, g = softplus(cell.raw_capacitance).detach(), softplus(cell.raw_leak).detach()
    slow, fast = c[:116], c[116:]
    assert 1 <= slow.min() < 1.5
    assert 400 < slow.max() <= 512
    assert abs(float(slow.log2().median()) - 4.5) < 1.0
    assert 0.1 <= fast.min() <= fast.max() <= 2
    assert 0.05 <= g.min() <= g.max() <= 0.25
    incoming = torch.zeros(116, dtype=torch.float64).index_add(
        0, cell.sensory.cell % 116, softplus(cell.sensory.raw_weight.detach())
    )
    assert 0.7 < incoming.min() <= incoming.max() < 1.3
    sigma = SIGMA_MAX * torch.sigmoid(cell.sensory.raw_sigma.detach())
    assert 1 <= sigma.min() <= sigma.max() <= 3
    assert abs(float(cell.sensory.mu.detach().std()) - 0.7) < 0.2


@torch.no_grad()
@pytest.mark.parametrize("synapses", ["per_edge", "per_source"])
def test_a_fresh_cell_rests_under_normed_inputs_and_its_output_follows_them(synapses):
    cell = make_cell(units=128, inputs=64, motor=32, lively=False, synapses=synapses, sweeps=8)
    out, _ = cell(torch.randn(4, 600, 64, dtype=torch.float64))
    spread = out.std(dim=(0, 1)).mean()
    assert out.mean(dim=(0, 1)).abs().mean() < 0.5 * spread  # no constant swamps the signal
    assert spread > 0.01
    assert out.diff(dim=1).std(dim=(0, 1)).mean() > 0.1 * spread  # and it moves from token to token


def test_an_input_still_matters_a_hundred_tokens_later():
    cell = make_cell(units=128, inputs=32, motor=32, lively=False, sweeps=8)
    x = torch.randn(1, 128, 32, dtype=torch.float64, requires_grad=True)
    out, _ = cell(x)
    (gradient,) = torch.autograd.grad(out[0, -1].square().sum(), x)
    reach = gradient[0].norm(dim=-1).flip(0)
    assert reach[0] > 0  # the same step: no latency
    assert reach[100] > 0.02 * reach.max()


def test_the_liquid_gate_of_each_layer_moves_with_the_tokens():
    cell = make_cell(units=64, inputs=16, motor=16, lively=False)
    x = torch.randn(1, 50, 16, dtype=torch.float64)
    c, _, load = cell._leaks(torch.float64)
    drive = cell.sensory(torch.float64)
    _, den = drive.collect(drive.activation(x))
    assert (c[0] / (load[0] + den)).std(dim=1).min() > 0


def test_padding_neither_reaches_earlier_outputs_nor_the_returned_state():
    cell = make_cell(dtype=torch.float32)
    x = torch.randn(3, 20, 6)
    last = torch.tensor([19, 11, -1])
    start = torch.rand(3, 24) - 0.5
    out, state = cell(x, start, None, last)
    noisy = x.clone()
    noisy[1, 12:] = 1e4
    noisy[2] = -1e4
    out2, state2 = cell(noisy, start, None, last)
    assert torch.equal(out[1, :12], out2[1, :12])
    assert torch.equal(state, state2)
    assert torch.equal(state[2], start[2])
    alone, alone_state = cell(x[1:2, :12], start[1:2])
    torch.testing.assert_close(out[1:2, :12], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(state[1:2], alone_state, rtol=0, atol=1e-6)


def test_bfloat16_weights_keep_float32_states_close_to_the_float32_cell():
    cell = make_cell(units=64, inputs=16, motor=16, dtype=torch.float32, lively=False, sweeps=8)
    x = torch.randn(2, 64, 16)
    exact = all_states(cell, x)
    rough = all_states(cell.bfloat16(), x.bfloat16())
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() <= 3 * 2e-2  # reversal potentials are 3, so are the states' bounds
    assert (rough - exact).square().mean().sqrt() <= 3 * 5e-3
