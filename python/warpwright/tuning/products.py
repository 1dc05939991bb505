"""The products of C++ kernels on a GPU, of matrices and of convolutions: which an op makes, in which ways each can be
computed, and the winners.

A winner is handed to the library (`load`) when a kind of device is first used, and holds for every device of its
compute capability and number of multiprocessors. Two kinds that share both (H100 and H200) in one machine share
preferences: the library cannot tell them apart, and the one that is used first has its table read.

The backend "emulated" is that of the tests, on tensors of the CPU; its times mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warpwright import _gemm_plans, _library, _registry
from warpwright._backend import use_backend
from warpwright._gemm_plans import GemmPlan, GemmQuestion, chosen, device_kind, question_of
from warpwright.tuning import convolutions, selector, tables
from warpwright.tuning.launches import Calls, run_case
from warpwright.tuning.tables import Config, Entry, Problem

#: The ops that are a product each; their gradients are two more.
PRODUCT_OPS = ("linear", "matmul", "bmm", "addmm", *convolutions.OPS)
#: Those that make one besides, which has the plan of the product alone.
_WITH_PRODUCT = ("conv2d_batch_norm", "conv2d_moments")
_OPERATORS = ("linear", "linear_backward", "matmul", "matmul_backward", *convolutions.OPERATORS)
#: What is tried: plans that are predicted to take no more than so many times as long as the best, and no more of them.
_SLOWEST, _MOST = 3.0, 24
#: What tables call a product of each of `_gemm_plans.ROLES`.
_KERNELS = ("gemm", "conv_fprop", "conv_dgrad", "conv_wgrad")
_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float16, torch.bfloat16)}
_LAYOUTS = {f"{a}{b}{precision}" for a in "km" for b in "kn" for precision in ("", " tf32", " tf32x3")}
_SIZES = ("matrices", "m", "n", "k")
_PLAN = ("tile_m", "tile_n", "splits", "pingpong", "swapped", "cluster")


@dataclass
class Product:
    """One matrix product: what a search needs to know of a launch, see `warpwright.tuning.search.Launch`.

    Attributes:
        backend: whose kernels.
        question: the product as the choice sees it.
        operator, args: the call that makes it, and no other.
    """

    backend: str
    question: GemmQuestion
    operator: str
    args: tuple[Any, ...] = field(repr=False)
    _results: tuple[Tensor, ...] = field(default=(), repr=False)

    @property
    def problem(self) -> Problem:
        q = self.question.bucketed()
        layout = ("k" if q.a_along_k else "m") + ("k" if q.b_along_k else "n")
        layout += "" if q.precision == "ieee" else f" {q.precision}"
        kernel = _KERNELS[_gemm_plans.ROLES.index(q.role)]
        sizes = tuple((name, getattr(q, name)) for name in _sizes(kernel))
        return Problem(self.backend, kernel, str(q.dtype).removeprefix("torch."), sizes, layout)

    @property
    def sources(self) -> str:
        return needed_sources(self.backend)

    @property
    def default(self) -> Config:
        """The plan that the model chooses."""
        return config_of(self.question.plans()[0])

    @property
    def candidates(self) -> list[Config]:
        """The other plans that are worth trying, those first that should be fastest."""
        first, *others = self.question.plans()
        return [config_of(plan) for plan in others if plan.seconds <= _SLOWEST * first.seconds][:_MOST]

    @property
    def terms(self) -> int:
        return self.question.k

    @property
    def written(self) -> tuple[Tensor, ...]:
        """The results of the latest run."""
        return self._results

    def run(self, config: Config) -> None:
        self._results = ()  # So that results are written to the memory of those before, which the search has spoilt.
        _gemm_plans.prefer(_gemm_plans.LIBRARIES[self.backend], plan_of(config), self.question)
        operator = getattr(_operators(self.backend), self.operator).default
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            self._results = operator._op(*self.args)

    @contextmanager
    def forced(self, config: Config) -> Iterator[None]:
        """Every product that can take the plan does."""
        library = _gemm_plans.LIBRARIES[self.backend]
        _gemm_plans.prefer(library, plan_of(config))
        try:
            yield
        finally:
            _gemm_plans.forget(library)


def _operators(backend: str) -> Any:
    return getattr(torch.ops, _registry.NAMESPACES[backend])


# ---- configurations ----


def config_of(plan: GemmPlan) -> Config:
    """A plan as tables have it: `kernel` is the number of its name in csrc/kernels/gemm_plan.h."""
    return {"kernel": _gemm_plans.KERNELS.index(plan.kernel)} | {name: int(getattr(plan, name)) for name in _PLAN}


def plan_of(config: Config, measured: float | None = None) -> GemmPlan:
    """The plan of a table's entry. Raises IndexError or KeyError where it is none."""
    c = config
    return GemmPlan(
        _gemm_plans.KERNELS[c["kernel"]], c["tile_m"], c["tile_n"], c["splits"], bool(c["pingpong"]),
        bool(c["swapped"]), c["cluster"], measured=measured,
    )  # fmt: skip


def _sizes(kernel: str) -> tuple[str, ...]:
    """Names of a problem's sizes."""
    return _SIZES if kernel == _KERNELS[0] else (*_SIZES, "channels")


def _question_of(problem: Problem, capability: int, multiprocessors: int) -> GemmQuestion:
    """The question that a problem stands for, whatever its alignment and epilogue."""
    sizes, (layout, precision) = dict(problem.sizes), (*problem.layout.split(), "ieee")[:2]
    return GemmQuestion(
        sizes["matrices"], sizes["m"], sizes["n"], sizes["k"], _DTYPES[problem.dtype], precision, capability,
        multiprocessors, a_along_k=layout[0] == "k", b_along_k=layout[1] == "k",
        role=_gemm_plans.ROLES[_KERNELS.index(problem.kernel)], channels=sizes.get("channels", 0),
    )  # fmt: skip


def _possible(problem: Problem, config: Config) -> bool:
    """Whether a configuration out of a file is one that could have been measured, on some device."""
    known = problem.dtype in _DTYPES and problem.layout in _LAYOUTS
    sized = all(1 <= size < 1 << 31 for _, size in problem.sizes)
    if not (known and sized and config.keys() == {"kernel", *_PLAN}):
        return False
    # Of a device that every tile keeps busy.
    most = _question_of(problem, capability=90, multiprocessors=1)
    if not 1 <= config["splits"] <= _gemm_plans.MOST_SPLITS[most.role]:
        return False
    ways = (most, replace(most, tma=False, aligned=False))
    # How many splits there may be depends on the size before it is bucketed.
    return any(config_of(plan) | {"splits": 0} == config | {"splits": 0} for q in ways for plan in q.plans())


def text_of(config: Config) -> str:
    """A configuration in words; as it is where it is none."""
    try:
        return plan_of(config).text
    except (IndexError, KeyError):
        return str(config)


# ---- what an op makes ----


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _leaves_by_tma(values: dict[str, Any], dtype: torch.dtype) -> bool:
    """wgmma_leaves_by_tma of csrc/cuda/matmul/gemm_wgmma.cu: whether the epilogue is no obstacle to it."""
    output = values.get("out_dtype") or dtype
    own = output == dtype and values.get("output_scale", 1.0) == 1
    half = output in (torch.float16, torch.bfloat16)
    saves = values["save_preact"] and values["activation"] != "none" and not own
    return values["residual"] is None and values["activation"] in ("none", "relu") and half and not saves


def _matrix_products(name: str, values: dict[str, Any], args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """(a, b, whether results may leave by TMA, operator, its arguments) of each product of an operator's call, as
    csrc/bindings/matmul.cpp makes them: (*batch, m, k) by (*batch, n, k)."""
    if name in ("linear", "matmul"):
        a = values["input"]
        a, b = (_matrix(a), values["weight"]) if name == "linear" else (a, values["other"].mT)
        yield a, b, _leaves_by_tma(values, a.dtype), name, args
        return

    def alone(a: Tensor, b: Tensor) -> tuple[Any, ...]:
        arithmetic = values["precision"], values["batch_invariant"]
        return a, b, True, "matmul", (a, b.mT, None, None, 1.0, 1.0, "none", 1.0, None, *arithmetic, False)

    grad, input = values["grad_output"].to(values["input"].dtype), values["input"]
    # What the products read is the pre-activation's gradient, a new tensor, or without an activation this one itself.
    grad = grad if values["activation"] == "none" else grad.contiguous()
    if name == "linear_backward":
        grad, input = _matrix(grad), _matrix(input)
        if values["need_input"]:
            yield alone(grad, values["weight"].mT)
        if values["need_weight"]:
            yield alone(grad.mT, input.mT)
        return
    if values["need_input"]:
        yield alone(grad, values["other"])
    if values["need_other"]:
        yield alone(input.mT, grad.mT)


def _made(backend: str, calls: Calls, device: tuple[int, int]) -> list[Product]:
    found = []
    for name, args in calls.found:
        if name not in _OPERATORS or args[0].dtype not in _DTYPES.values():
            continue
        schema = getattr(_operators(backend), name).default._schema
        values = dict(zip((argument.name for argument in schema.arguments), args, strict=True))
        with torch.no_grad():
            if name in convolutions.OPERATORS:
                made = convolutions.products_of(_gemm_plans.LIBRARIES[backend], name, values, args)
                found += [Product(backend, *product) for product in made]
                continue
            for a, b, by_tma, operator, call in _matrix_products(name, values, args):
                arithmetic = values["precision"], values["batch_invariant"]
                found.append(Product(backend, question_of(a, b, *arithmetic, *device, by_tma), operator, call))
    return found


def record(case: Any, device: torch.device, backend: str, seed: int = 0, *, run: bool = True) -> list[Product]:
    """The products of one call of a case, and of its backward pass where it has one, where there is more than one way.

    Args:
        case: of one of `PRODUCT_OPS`.
        device, seed: of the case's inputs.
        backend: "native" or "emulated".
        run: False runs nothing: the products have tensors without data.
    """
    from torch._subclasses import FakeTensorMode

    mode = nullcontext() if run else FakeTensorMode()
    with mode, use_backend(backend), Calls(backend) as calls:
        run_case(case, device, seed)
        with torch.no_grad():
            made = _made(backend, calls, device_kind(device, backend))
    return [product for product in made if product.candidates]


def foreseen(
    op: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
    backend: str,
) -> list[tuple[GemmQuestion, list[GemmPlan]]]:
    """The products that function(*args, **kwargs), which is `op`, would make, without its backward pass: of each the
    plan that would be taken, then the others. Nothing runs."""
    if op not in (*PRODUCT_OPS, *_WITH_PRODUCT):
        return []
    from torch._subclasses import FakeTensorMode

    from warpwright.testing.spec import map_tensors

    mode = FakeTensorMode()
    with mode, use_backend(backend), Calls(backend) as calls:
        function(*map_tensors(args, mode.from_tensor), **map_tensors(kwargs, mode.from_tensor))
        questions = [product.question for product in _made(backend, calls, device_kind(device, backend))]
    found = []
    for question in questions:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            taken = chosen(_gemm_plans.LIBRARIES[backend], question)
        found.append((question, [taken, *(plan for plan in question.plans() if plan.text != taken.text)]))
    return found


# ---- winners ----


def sources_of(backend: str) -> str | None:
    """Hash of the kernels' sources, as csrc/build.py wrote it down beside the library; None where it did not."""
    try:
        found = json.loads((_gemm_plans.LIBRARIES[backend].parent / "build_info.json").read_text())["gemm_sources"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def needed_sources(backend: str) -> str:
    """The same. Raises RuntimeError where there is none."""
    found = sources_of(backend)
    if found is None:
        folder: Path = _gemm_plans.LIBRARIES[backend].parent
        raise RuntimeError(f"warpwright: tune: {folder}/build_info.json has no gemm_sources: build the libraries again")
    return found


def missing(backend: str) -> str | None:
    """Why the products of a backend cannot be tuned here, or None when they can."""
    if backend == "emulated":
        return None if backend in _gemm_plans.LIBRARIES else "the emulated backend is for the tests, which build it"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    return _library.CUDA_MISSING


def gpu_name(device: torch.device | int | None, backend: str) -> str:
    """The name that tables go by."""
    if backend == "emulated":
        return f"emulated sm_{device_kind(torch.device('cpu'), backend)[0]}"
    return torch.cuda.get_device_name(device)


def unused(problem: Problem, entry: Entry) -> str | None:
    """Why an entry of a table is not used, or None when it is."""
    if problem.backend not in _gemm_plans.LIBRARIES:
        return _library.CUDA_MISSING if problem.backend == "native" else "no such kernel"
    if problem.kernel not in _KERNELS or tuple(dict(problem.sizes)) != _sizes(problem.kernel):
        return "no such kernel"
    if entry.sources != sources_of(problem.backend):
        return "the kernel's source has changed"
    if entry.config is not None and not _possible(problem, entry.config):
        return "no such configuration"
    return None


def load(backend: str, capability: int, multiprocessors: int) -> None:
    """Hands the winners of the current device's tables, the user's before the package's, to the library."""
    file = tables.file_name(gpu_name(None, backend))
    winners: dict[Problem, Entry] = {}
    for path in (tables.SHIPPED / file, tables.folder() / file):
        for problem, entry in selector.table(path).items():
            if problem.backend != backend:
                continue
            reason = unused(problem, entry)
            if reason is None:
                winners[problem] = entry
            elif reason == "no such configuration":
                selector.warn(f"{path}: config of {problem} cannot be launched: {entry.config}")
    for problem, entry in winners.items():
        if entry.config is not None:
            question = _question_of(problem, capability, multiprocessors)
            _gemm_plans.prefer(_gemm_plans.LIBRARIES[backend], plan_of(entry.config, entry.seconds), question)
