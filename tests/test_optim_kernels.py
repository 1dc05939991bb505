"""What the optimizers' kernels promise beside one step's numbers: a thousand steps, bits that are alike everywhere,
8-bit moments, clipping in the step, a learning rate on the device."""

from __future__ import annotations

import math

import pytest
import torch
from test_optim import batch, every, model, same, train
from torch import nn

import warpwright
from warpwright import ops
from warpwright._optim_rules import RULES, decode_moment, encode_moment
from warpwright.optim import SGD, Adam, AdamW, Lamb, Lion
from warpwright.testing.compare import ERROR_FACTOR
from warpwright.testing.specs import optim as specs

STEPS = 1000
#: The optimizers that torch has, and options of both.
THOUSAND = [
    (AdamW, torch.optim.AdamW, {"lr": 1e-2}),
    (Adam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2}),
    (SGD, torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2}),
    # A second moment of short memory is often below its maximum.
    (AdamW, torch.optim.AdamW, {"lr": 1e-2, "betas": (0.9, 0.95), "amsgrad": True}),
    (Adam, torch.optim.Adam, {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 1e-2, "amsgrad": True}),
]


def trajectory(kind, dtype, options, steps=STEPS, **kernel):
    """Parameters after `steps` steps with gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)) for n in (300, 7, 64)]
    optimizer = kind(params, **options, **kernel)
    for _ in range(steps):
        for param in params:
            param.grad = (torch.randn(param.shape, generator=generator) + 0.1).to(torch.bfloat16).to(param.dtype)
        optimizer.step()
    return torch.cat([param.detach().double() for param in params])


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    THOUSAND,
    ids=[kind.__name__ + "-amsgrad" * ("amsgrad" in options) for kind, _, options in THOUSAND],
)
def test_a_thousand_steps_stay_within_twice_torchs_error(ours, theirs, options):
    truth = trajectory(theirs, torch.float64, options)
    error = (trajectory(ours, torch.float32, options) - truth).abs().max()
    torchs = (trajectory(theirs, torch.float32, options, foreach=False) - truth).abs().max()
    floor = torch.finfo(torch.float32).eps * truth.abs().max()
    assert error <= ERROR_FACTOR * torchs + floor, (error, torchs)


@pytest.mark.parametrize("kind", [Lion, Lamb])
def test_a_thousand_steps_of_what_torch_lacks(kind):
    """Against the specs' composition of torch's ops, in float64 and in float32."""
    torch_step = specs._TORCH[{Lion: "lion_", Lamb: "lamb_"}[kind]][0]
    options = {"lr": 1e-3, "weight_decay": 1e-2}

    class Composed(torch.optim.Optimizer):
        def __init__(self, params, **options):
            super().__init__(params, options)
            self.count = 0

        @torch.no_grad()
        def step(self):
            self.count += 1
            params = self.param_groups[0]["params"]
            for param in params:
                if not self.state[param]:
                    moments = len(RULES["lamb_" if kind is Lamb else "lion_"].moments)
                    self.state[param] = {k: torch.zeros_like(param) for k in range(moments)}
            moments = [[self.state[p][k] for p in params] for k in self.state[params[0]]]
            steps = [torch.tensor(float(self.count))] * len(params)
            torch_step(params, [p.grad for p in params], moments, steps, options)

    truth = trajectory(Composed, torch.float64, options)
    error = (trajectory(kind, torch.float32, options) - truth).abs().max()
    torchs = (trajectory(Composed, torch.float32, options) - truth).abs().max()
    floor = torch.finfo(torch.float32).eps * truth.abs().max()
    assert error <= ERROR_FACTOR * torchs + floor, (error, torchs)


# ---- amsgrad ----


@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_maximum_keeps_nan_and_infinity_as_torch_maximum_does(matrix, kind, dtype):
    """Where the old maximum is NaN, where the new moment is, and where both are numbers."""
    old = torch.tensor([math.nan, math.nan, 0.25, 0.25, math.inf, 0.25, 0.0, 4.0])
    grad = torch.tensor([1.0, math.nan, math.nan, math.inf, 1.0, 1.0, 0.5, 1.0], dtype=dtype)
    results = []
    for optimizer, device in ((kind, matrix), (getattr(torch.optim, kind.__name__), torch.device("cpu"))):
        param = nn.Parameter(torch.ones(8, dtype=dtype, device=device))
        options = {"master_weights": False} if optimizer is kind else {}
        made = optimizer([param], lr=0.125, betas=(0.5, 0.5), amsgrad=True, weight_decay=0.0, **options)
        state = {k: torch.zeros_like(param) for k in ("exp_avg", "exp_avg_sq")}
        maximum = old.to(dtype).to(device)
        made.state[param] = state | {"step": torch.tensor(3.0, device=device), "max_exp_avg_sq": maximum}
        param.grad = grad.to(device)
        made.step()
        results.append([t.detach().float().cpu() for t in (made.state[param]["max_exp_avg_sq"], param)])
    (maximum, param), (expected_maximum, expected) = results
    torch.testing.assert_close(maximum, expected_maximum, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(param.isnan(), expected.isnan())


@pytest.mark.parametrize("kernel", [{}, {"eight_bit": True}], ids=["float32", "8-bit"])
def test_a_maximum_never_falls(matrix, kernel):
    """While its block's scale grows and shrinks by powers of ten, which would round a code anew."""
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.zeros(300, device=matrix))
    optimizer = AdamW([param], betas=(0.9, 0.5), amsgrad=True, **kernel)
    last = torch.zeros(300)
    fell = 0
    for step in range(12):
        grad = torch.randn(300, generator=generator)
        grad[7] *= 10.0 ** (step % 4)
        param.grad = grad.to(matrix)
        optimizer.step()
        state = optimizer.state[param]
        maximum = state["max_exp_avg_sq"].cpu()
        assert maximum.dtype == torch.float32
        assert (maximum >= last).all()
        # What a step divides by is at least what any gradient before left of itself.
        assert (maximum >= 0.5 * grad.square() * (1 - 1e-6)).all()
        fell += (maximum == last).sum().item()
        last = maximum
    assert fell > 300, "a moment of this memory is below its maximum half of the time"


# ---- stochastic rounding ----


@every
def test_stochastic_rounding_has_the_same_bits_on_every_backend(matrix, kind, options):
    def run():
        return trajectory(kind, torch.bfloat16, options | {"lr": 0.05}, steps=3, stochastic_rounding=True, seed=11)

    ours = run()
    with warpwright.use_backend("reference"):
        expected = run()
    # A float32 that another order of operations rounds otherwise may fall to the other side of its random number.
    assert (ours != expected).sum() <= 1
    assert (
        ours - trajectory(kind, torch.bfloat16, options | {"lr": 0.05}, 3, stochastic_rounding=True)
    ).abs().max() > 0


def test_stochastic_rounding_is_right_on_average(matrix):
    """A step of an eighth of a unit in the last place goes through once in eight times."""
    count, step = 40_000, 2.0**-10  # The spacing of bfloat16 from 1 to 2 is 2^-7.
    param, zeros = torch.ones(count, dtype=torch.bfloat16, device=matrix), torch.ones(1, device=matrix)
    ops.sgd_([param], [-torch.ones_like(param)], [], [zeros], lr=step, rounding_seed=5)
    assert set(param.unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    raised = (param > 1).float().mean().item()
    deviation = math.sqrt(1 / 8 * 7 / 8 / count)
    assert abs(raised - 1 / 8) < 4 * deviation
    # Neighbours, and the same element of another step or tensor, do not move together.
    again, other = torch.ones_like(param), torch.ones_like(param)
    grads = [-torch.ones_like(param)] * 2
    ops.sgd_([again, other], grads, [], [zeros + 1, zeros], lr=step, rounding_seed=5)
    for a, b in ((param[1:], param[:-1]), (param, again), (param, other)):
        both = ((a > 1) & (b > 1)).float().mean().item()
        assert abs(both - 1 / 64) < 4 * math.sqrt(1 / 64 / count)


def test_stochastic_rounding_keeps_what_cannot_be_rounded(matrix):
    values = [math.inf, -math.inf, math.nan, 0.0, -0.0]
    param = torch.tensor(values, dtype=torch.bfloat16, device=matrix)
    steps = [torch.ones((), device=matrix)]
    ops.sgd_([param], [torch.zeros_like(param)], [], steps, lr=0.1, rounding_seed=1)
    torch.testing.assert_close(param.float().cpu(), torch.tensor(values), equal_nan=True)


def test_the_layout_of_a_parameter_does_not_change_its_random_bits(matrix):
    start = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(matrix)
    steps = [torch.ones((), device=matrix)]
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        param = start.clone().to(memory_format=layout)
        ops.sgd_([param], [torch.ones_like(param)], [], steps, lr=0.01, rounding_seed=1)
        results.append(param)
    assert torch.equal(*results)


# ---- 8-bit moments ----


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_the_code_is_fine_near_zero(signed):
    """Its relative error, over six orders of magnitude for second moments and three for first ones."""
    values = torch.logspace(-3 if signed else -6, 0, 256, dtype=torch.float64)
    codes, scales = encode_moment(values, signed)
    assert (codes.dtype, scales.tolist()) == (torch.uint8, [1.0])
    relative = (decode_moment(codes, scales, signed, torch.float64) / values - 1).abs()
    assert relative.max() < 0.3
    # Half a step of a code of at least 127 * 0.1^(1/2) or 255 * 0.1^(1/4): 2.5% of a first moment, 1.4% of a second.
    bound = (1 + 0.5 / 40.1) ** 2 - 1 if signed else (1 + 0.5 / 143.3) ** 4 - 1
    assert relative[values > 0.1].max() < bound
    if signed:
        mirrored, _ = encode_moment(-values, signed)
        assert torch.equal(256 - codes.int(), mirrored.int())


@pytest.mark.parametrize("shape", [(3, 5), (0,), (1000,), ()], ids=str)
def test_codes_of_meta_tensors_lie_as_codes_do(shape):
    for signed in (True, False):
        found, meta = (encode_moment(torch.ones(shape, device=device), signed) for device in ("cpu", "meta"))
        for a, b in zip(found, meta, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            assert b.is_meta


def test_codes_of_special_blocks():
    zeros = torch.zeros(300)
    for signed in (True, False):
        codes, scales = encode_moment(zeros, signed)
        assert decode_moment(codes, scales, signed).tolist() == zeros.tolist()
        assert scales.tolist() == [0.0, 0.0]
    tiny = torch.tensor([1.0, 1e-30])
    assert decode_moment(*encode_moment(tiny, False), False)[1] > 0, "its root is divided by"
    for odd in (math.inf, math.nan):
        block = torch.ones(300)
        block[3] = odd
        decoded = decode_moment(*encode_moment(block, True), True)
        assert decoded[:256].isnan().all()
        assert (decoded[256:] == 1).all()


@every
def test_codes_are_the_reference_s(matrix, kind, options):
    """One step's moments, decoded, are within a code of the moments that the definition gives."""
    grad = torch.randn(5, 100, generator=torch.Generator().manual_seed(3))

    def run(device):
        param = nn.Parameter(torch.zeros(5, 100, device=device))
        param.grad = grad.to(device)
        optimizer = kind([param], eight_bit=True, **options)
        optimizer.step()
        return {k: v.cpu() for k, v in optimizer.state[param].items()}

    ours = run(matrix)
    with warpwright.use_backend("reference"):
        expected = run("cpu")
    assert set(ours) == set(expected)
    for name, value in ours.items():
        if name.endswith("_codes"):
            assert value.dtype == torch.uint8
            assert (value.int() - expected[name].int()).abs().max() <= 1
        else:
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)


@every
def test_8_bit_moments_train_as_float32_ones(kind, options):
    options = options | {"lr": 3e-4 if kind is Lion else 0.005}
    nets = [model(), model()]
    losses = [
        train(net, kind(net.parameters(), eight_bit=bits, **options), 60)
        for net, bits in zip(nets, (False, True), strict=True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def _lamb_of_codes(device, threads=1):
    """The parameters of one step with 8-bit moments, over several chunks, and of the same step with these moments as
    float32 numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    shapes = [(40_000,), (77,)]
    params, grads, first, second = (
        [torch.randn(shape, generator=generator).to(device) for shape in shapes] for _ in range(4)
    )
    pairs = [[encode_moment(t, True) for t in first], [encode_moment(t.abs(), False) for t in second]]
    steps = [torch.tensor(3.0, device=device) for _ in shapes]
    results = []
    for coded in (True, False):
        written = [t.clone() for t in params]
        if coded:
            moments = [[codes.clone() for codes, _ in pair] for pair in pairs]
            names = "exp_avg_scales", "exp_avg_sq_scales"
            scales = {name: [s.clone() for _, s in pair] for name, pair in zip(names, pairs, strict=True)}
        else:
            moments, scales = [[decode_moment(*c, k == 0) for c in pair] for k, pair in enumerate(pairs)], {}
        ops.lamb_(written, grads, *moments, steps, lr=0.1, **scales)
        results.append(torch.cat([t.cpu() for t in written]))
    torch.set_num_threads(before)
    return results


def test_lamb_steps_by_moments_before_they_are_rounded(matrix):
    """Both passes: a norm or a direction of rounded moments would be off by a code, some percent."""
    coded, plain = _lamb_of_codes(matrix)
    torch.testing.assert_close(coded, plain, rtol=1e-6, atol=1e-6)


def test_lamb_of_codes_has_the_same_bits_each_time(matrix):
    first, _ = _lamb_of_codes(matrix)
    for threads in (1, 2, 3):
        assert torch.equal(_lamb_of_codes(matrix, threads)[0], first)


@pytest.mark.parametrize("beta2", [0.0, 0.99])
@pytest.mark.parametrize("coded", [False, True])
def test_lamb_without_eps_has_a_trust_ratio(matrix, coded, beta2):
    """Vectors of the CPU that reach past the tensor's end divide nothing by nothing there."""
    param = nn.Parameter(torch.full((3,), 2.0, device=matrix))
    param.grad = torch.full_like(param, 0.5)
    Lamb([param], lr=0.25, betas=(0.9, beta2), eps=0.0, weight_decay=0.0, eight_bit=coded).step()
    # The direction is 1 everywhere, half as long as the parameter.
    torch.testing.assert_close(param.detach().cpu(), torch.full((3,), 1.5))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_8_bit_checkpoints_become_torchs_and_back(amsgrad):
    net = model()
    ours = AdamW(net.parameters(), lr=0.02, amsgrad=amsgrad, eight_bit=True)
    train(net, ours, 5)
    state = ours.state[net[2].weight]
    bytes_of_moments = sum(v.nbytes for k, v in state.items() if k != "step")
    assert bytes_of_moments == (2 + 4 * amsgrad) * net[2].weight.numel() + 2 * 4
    wide = AdamW(net.parameters())
    wide.load_state_dict(ours.state_dict())
    decoded = decode_moment(state["exp_avg_codes"], state["exp_avg_scales"], True)
    assert torch.equal(wide.state[net[2].weight]["exp_avg"], decoded)
    if amsgrad:
        assert torch.equal(wide.state[net[2].weight]["max_exp_avg_sq"], state["max_exp_avg_sq"])
    theirs = torch.optim.AdamW(net.parameters())
    theirs.load_state_dict(wide.state_dict())
    train(net, theirs, 2)
    narrow = AdamW(net.parameters(), eight_bit=True)
    narrow.load_state_dict(theirs.state_dict())
    codes, _ = encode_moment(theirs.state[net[2].weight]["exp_avg"], True)
    assert torch.equal(narrow.state[net[2].weight]["exp_avg_codes"], codes)
    assert ("max_exp_avg_sq" in narrow.state[net[2].weight]) == amsgrad
    train(net, narrow, 2)


# ---- clipping, the learning rate, compiled steps ----


@every
def test_the_step_clips_as_torch_does_before_it(kind, options):
    def run(fused):
        net = model()
        optimizer = kind(net.parameters(), max_grad_norm=0.05 if fused else None, **options)
        norms = []
        for step in range(5):
            x, target = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), target).backward()
            before = [p.grad.clone() for p in net.parameters()]
            if not fused:
                norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05).item())
            optimizer.step()
            if fused:
                norms.append(optimizer.grad_norm.item())
                assert all(torch.equal(a, p.grad) for a, p in zip(before, net.parameters(), strict=True))
        return net, norms

    ours, norms = run(True)
    expected, torchs = run(False)
    assert norms == pytest.approx(torchs, rel=1e-5)
    same(ours, expected, rtol=1e-3, atol=2e-4 if kind is Lion else 1e-5)


@every
def test_a_learning_rate_on_the_device(kind, options):
    nets = model(), model()
    lr = torch.tensor(0.01)
    optimizers = kind(nets[0].parameters(), lr=lr, **options), kind(nets[1].parameters(), lr=0.01, **options)
    for step in range(4):
        for net, optimizer in zip(nets, optimizers, strict=True):
            train(net, optimizer, 1, step)
        lr.mul_(0.5)  # In place, as a schedule does under a captured graph.
        optimizers[1].param_groups[0]["lr"] *= 0.5
    same(*nets, rtol=1e-5, atol=1e-6)


@every
def test_a_compiled_step(kind, options):
    nets = model(), model()
    optimizers = [kind(net.parameters(), max_grad_norm=1.0, **options) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 1)
    compiled = torch.compile(optimizers[0].step, backend="aot_eager")
    for step, (net, run) in enumerate(zip(nets, (compiled, optimizers[1].step), strict=True)):
        for i in range(2):
            x, target = batch(1 + i)
            optimizers[step].zero_grad()
            nn.functional.cross_entropy(net(x), target).backward()
            run()
    same(*nets, rtol=1e-6, atol=1e-7)
