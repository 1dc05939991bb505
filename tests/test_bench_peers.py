"""The adapters of the peers, against stand-ins with the peers' own signatures."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys

import peer_stubs
import pytest
import torch

import warpwright.bench.operators
from warpwright.bench.case import OPERATORS, Case
from warpwright.bench.environment import peer_versions
from warpwright.bench.providers.peers import DISTRIBUTIONS, PEERS, _peer
from warpwright.testing import Expected, evaluate

CUDA = torch.device("cuda")
BY_NAME = {peer.name: peer for peer in PEERS}

ROWS = {"rows": 6, "width": 32}
RESIDUAL = {**ROWS, "residual": True}
LOSS = {"rows": 6, "classes": 11}
SMOOTHED = {**LOSS, "label_smoothing": 0.1}
LINEAR_LOSS = {"rows": 8, "width": 16, "classes": 24}
ROTARY = {"batch": 2, "sequence": 5, "heads": 3, "head_dim": 16}
CONV = {"batch": 2, "channels": 4, "length": 9, "kernel": 4}
IMAGES = {"batch": 2, "channels": 8, "size": 3, "groups": 4}
LAST = {"batch": 2, "channels": 128, "size": 3, "groups": 32, "channels_last": True}

TAKEN = [
    ("liger", "rms_norm", ROWS), ("liger", "rms_norm", RESIDUAL), ("liger", "layer_norm", ROWS),
    ("liger", "group_norm", IMAGES), ("liger", "softmax", ROWS), ("liger", "linear_cross_entropy", LINEAR_LOSS),
    ("liger", "linear_cross_entropy", {**LINEAR_LOSS, "reduction": "none"}),
    ("quack", "rms_norm", ROWS), ("quack", "rms_norm", RESIDUAL), ("quack", "softmax", ROWS),
    ("quack", "cross_entropy", LOSS), ("quack", "rotary_embedding", ROTARY),
    ("quack", "rotary_embedding", {**ROTARY, "interleaved": True}),
    ("flash-attn", "rms_norm", RESIDUAL), ("flash-attn", "rms_norm", ROWS), ("flash-attn", "layer_norm", RESIDUAL),
    ("flash-attn", "layer_norm", ROWS), ("flash-attn", "swiglu", ROWS), ("flash-attn", "cross_entropy", SMOOTHED),
    ("flash-attn", "rotary_embedding", ROTARY), ("flash-attn", "rotary_embedding", {**ROTARY, "interleaved": True}),
    ("apex", "rms_norm", ROWS), ("apex", "layer_norm", ROWS), ("apex", "group_norm", LAST),
    ("apex", "group_norm", {**LAST, "activation": "silu"}), ("apex", "cross_entropy", SMOOTHED),
    ("causal-conv1d", "causal_conv1d", CONV), ("causal-conv1d", "causal_conv1d", {**CONV, "activation": "silu"}),
    ("causal-conv1d", "causal_conv1d", {**CONV, "bias": False}),
]  # fmt: skip

FORWARD_ONLY = [
    ("liger", "swiglu", ROWS), ("liger", "geglu", {**ROWS, "approximate": "tanh"}), ("liger", "cross_entropy", SMOOTHED)
]  # fmt: skip

REFUSED = [
    ("liger", "layer_norm", RESIDUAL, "residual is not supported"),
    ("liger", "geglu", ROWS, "approximate='none' is not supported"),
    ("liger", "rms_norm", {"rows": 1, "width": 65537}, "rows are at most 65536 wide, got 65537"),
    ("liger", "group_norm", {**IMAGES, "activation": "silu"}, "activation is not supported"),
    ("liger", "group_norm", {**IMAGES, "channels_last": True}, "channels last are not supported"),
    ("quack", "cross_entropy", SMOOTHED, "label_smoothing=0.1 is not supported"),
    ("quack", "linear_cross_entropy", {**LINEAR_LOSS, "reduction": "none"}, "reduction='none' is not supported"),
    ("quack", "linear", {"m": 8, "n": 16, "k": 8}, "float32 products are not supported"),
    ("quack", "rotary_embedding", {**ROTARY, "head_dim": 12}, "sizes must be multiples of 8, got 12"),
    ("apex", "rms_norm", RESIDUAL, "residual is not supported"),
    ("apex", "group_norm", IMAGES, "it runs PyTorch's own op unless channels come last"),
    ("apex", "group_norm", {**LAST, "groups": 8}, "it runs PyTorch's own op for 8 groups of 128 channels"),
    ("apex", "adamw_", {"model": "resnet50", "masters": True, "divide": 4096}, "masters are not supported"),
    ("causal-conv1d", "causal_conv1d", {**CONV, "kernel": 5}, "kernels must be 2 to 4 wide, got 5"),
]


@pytest.fixture(autouse=True)
def _nothing_imported():
    """Each test imports its own packages of these names."""
    packages = {peer_stubs.PACKAGES[peer.name] for peer in PEERS}

    def forget():
        _peer.import_failure.cache_clear()
        for name in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.fixture
def installed(monkeypatch):
    """All peers, as their stand-ins."""
    for modules in peer_stubs.ALL.values():
        peer_stubs.install(monkeypatch, modules)


def case(op: str, parameters: dict, dtype: torch.dtype = torch.float32) -> Case:
    return Case("", op, dtype, ("forward",), dict(parameters))


def worst(op: str, function, sample) -> float:
    compared = Expected.of(OPERATORS[op].torch_op, sample).compare(evaluate(function, sample))
    return max(c.ratio for c in compared)


@pytest.mark.parametrize(("peer", "op", "parameters"), TAKEN, ids=str)
def test_a_peer_gives_what_torch_gives(installed, peer, op, parameters):
    sample = case(op, parameters).sample("cpu")
    assert BY_NAME[peer].accepts(op, case(op, parameters).sample("meta")) is None
    assert worst(op, BY_NAME[peer].function(op, CUDA), sample) <= 1


@pytest.mark.parametrize(("peer", "op", "parameters"), FORWARD_ONLY, ids=str)
def test_a_peer_that_destroys_its_inputs_runs_forward_only(installed, peer, op, parameters):
    sample = case(op, parameters).sample("cpu")
    assert BY_NAME[peer].accepts(op, sample) is None
    function = BY_NAME[peer].function(op, CUDA)
    assert worst(op, function, sample.map(torch.Tensor.detach)) <= 1
    with pytest.raises(RuntimeError, match="writes gradients over its inputs"):
        function(*sample.args, **sample.kwargs)


@pytest.mark.parametrize(("peer", "op", "parameters", "reason"), REFUSED, ids=str)
def test_what_a_peer_does_not_take_has_a_reason(installed, peer, op, parameters, reason):
    assert BY_NAME[peer].accepts(op, case(op, parameters).sample("meta")) == reason


@pytest.mark.parametrize(
    ("op", "parameters"),
    [("linear", {"m": 8, "n": 16, "k": 8, "bias": True}), ("linear_cross_entropy", LINEAR_LOSS)],
)
def test_quack_multiplies_in_half_precision(installed, op, parameters):
    half = case(op, parameters, torch.bfloat16)
    assert BY_NAME["quack"].accepts(op, half.sample("meta")) is None
    assert worst(op, BY_NAME["quack"].function(op, CUDA), half.sample("cpu")) <= 1


def test_apex_steps_as_torch_does(installed):
    steps = case("adamw_", {"model": "resnet50", "divide": 4096})
    ours, theirs = steps.sample("cpu"), steps.sample("cpu")
    assert BY_NAME["apex"].accepts("adamw_", ours) is None
    function = BY_NAME["apex"].function("adamw_", CUDA)
    for step in (3.0, 4.0):  # The second is another step: the first must not be remembered.
        for sample in (ours, theirs):
            for tensor in sample.args[4]:
                tensor.fill_(step)
        function(*ours.args)
        OPERATORS["adamw_"].in_place(*theirs.args)
    written = OPERATORS["adamw_"].written
    assert all(map(torch.equal, written(ours), written(theirs)))


def test_apex_keeps_parameters_of_its_calls_apart(installed):
    """Its layer is kept, its parameters are not."""
    function = BY_NAME["apex"].function("group_norm", CUDA)
    for seed in (0, 1):
        assert worst("group_norm", function, case("group_norm", LAST).sample("cpu", seed)) <= 1


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_an_op_that_a_peer_has_not(installed, peer):
    assert peer.function("conv2d", CUDA) is None
    assert (
        peer.accepts("conv2d", case("conv2d", {"batch": 1, "channels": 2, "size": 4, "kernel": 3}).sample("meta"))
        is None
    )


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_is_not_installed_is_missing_and_not_imported(peer, monkeypatch):
    monkeypatch.setattr(_peer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(_peer.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert peer.missing(CUDA).startswith(f"{peer.name} is not installed (")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_is_installed_needs_a_gpu(installed, peer):
    assert peer.missing(CUDA) is None
    assert peer.missing(torch.device("cpu")) == f"{peer.name} needs a CUDA GPU"


def test_a_broken_package_is_missing_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "quack.py").write_text("raise OSError('libcutlass.so:\\n  undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    reason = BY_NAME["quack"].missing(CUDA)
    assert reason == "quack is installed but cannot be imported: OSError: libcutlass.so: undefined symbol"


def test_a_broken_op_is_missing_alone(tmp_path, monkeypatch):
    """Such as an apex without one of its extensions."""
    (tmp_path / "quack").mkdir()
    files = {"__init__": "", "rmsnorm": "import no_such_module_of_ours", "softmax": "def softmax(x): ..."}
    for name, text in files.items():
        (tmp_path / "quack" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    quack = BY_NAME["quack"]
    assert quack.missing(CUDA) is None
    assert quack.function("softmax", CUDA) is not None
    sample = case("rms_norm", ROWS).sample("meta")
    expected = "quack has no rms_norm here: ModuleNotFoundError: No module named 'no_such_module_of_ours'"
    assert quack.accepts("rms_norm", sample) == expected
    assert quack.function("rms_norm", CUDA) is not None


def test_apex_without_an_extension(installed, monkeypatch):
    monkeypatch.delitem(sys.modules, "fused_layer_norm_cuda")
    reason = BY_NAME["apex"].accepts("rms_norm", case("rms_norm", ROWS).sample("meta"))
    assert reason.startswith("apex was built without fused_layer_norm_cuda (ModuleNotFoundError")


def test_adapters_have_the_parameters_of_torch(installed):
    """Each name that an adapter knows is one of torch_op's, in the same order."""
    for peer in PEERS:
        for op, operator in OPERATORS.items():
            function = peer.function(op, CUDA)
            if function is None or op == "cross_entropy":  # torch's own has deprecated arguments in between.
                continue
            theirs = list(inspect.signature(operator.torch_op).parameters)
            if "rest" in theirs:  # One function stands for all optimizers: what it is called with is ours.
                theirs = list(inspect.signature(getattr(warpwright.ops, op)).parameters)
            ours = list(inspect.signature(function).parameters)
            assert [name for name in theirs if name in ours] == ours, (peer.name, op)


def test_every_peer_has_a_distribution(monkeypatch):
    assert set(DISTRIBUTIONS) == set(BY_NAME)
    versions = {"liger-kernel": "0.8.5"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert peer_versions() == {"liger": "0.8.5"}
