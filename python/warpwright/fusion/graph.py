"""A graph that is rewritten: what its nodes hold, and one way to put a call in the place of several.

The graph is Dynamo's, of calls of torch's functions before autograd and functionalisation: gradients will be those of
the op that is put in, and in-place operations are still there to be minded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from warpwright.fusion.calls import Call, read
from warpwright.fusion.report import Fusion, FusionReport, Skip, place_of
from warpwright.nn._reasons import common_reason

#: Adds a call to the graph: emit(function or a method's name, *args, **kwargs) -> its node.
Emit = Callable[..., Node]
#: Whether gradients are recorded, the autocast regions around, and how many other changes of state came before.
_State = tuple[bool, tuple[tuple[Any, ...], ...], int]


class NotFused(Exception):
    """Why a pattern is left as it is."""


class Rewriter:
    """One graph on its way through the patterns."""

    def __init__(self, module: GraphModule, report: FusionReport) -> None:
        self.graph = module.graph
        self.report = report
        self._states = _states(self.graph.nodes)
        self._seen: set[tuple[str, Node]] = set()
        self._made: dict[Node, Fusion] = {}
        values = [leaf for node in self.graph.nodes for leaf in tree_leaves(self.value(node))]
        # Of the values themselves: Dynamo has a fresh one ready for the compiler behind.
        self.fake_mode = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)

    # ---- what nodes hold ----

    def nodes(self) -> Iterator[Node]:
        """Those there are now; a pattern may erase some while it looks at them."""
        for node in list(self.graph.nodes):
            if not node._erased:
                yield node

    def value(self, node: Any) -> Any:
        """What stands for a node's result: fake tensors."""
        if not isinstance(node, Node):
            return node
        return node.meta.get("example_value", node.meta.get("val"))

    def tensor(self, node: Any) -> Tensor | None:
        """The same, where a node's result is one tensor."""
        value = self.value(node) if isinstance(node, Node) else None
        return value if isinstance(value, Tensor) else None

    def call(self, node: Any) -> Call | None:
        """What `node` computes; see calls.read. A cast keeps sizes and device."""
        found = read(node)
        if found is not None and found.name == "cast":
            before, after = self.tensor(found["input"]), self.tensor(node)
            if before is None or after is None or before.device != after.device or not same_sizes(before, after):
                return None
        return found

    def only_user(self, node: Node) -> Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def like(self, one: Any, other: Any) -> bool:
        """Whether both are tensors of one dtype, device and shape."""
        a, b = self.tensor(one), self.tensor(other)
        return a is not None and b is not None and a.dtype == b.dtype and a.device == b.device and same_sizes(a, b)

    # ---- rewriting ----

    def adopt(self, new: Node, old: Node) -> None:
        """A node that was put in by hand runs in the state of `old`."""
        self._states[new] = self._states[old]

    def skip(self, pattern: str, node: Node, reason: str) -> None:
        """Records why a pattern at `node` is left, once."""
        if (pattern, node) not in self._seen:
            self._seen.add((pattern, node))
            self.report.skipped.append(Skip(pattern, place_of(node), reason))

    def fuse(
        self,
        pattern: str,
        nodes: Iterable[Node],
        build: Callable[[Emit], dict[Node, Node]],
        *,
        takes: Callable[[Rewriter], str | None],
        op: str | None,
        results: Iterable[Node] = (),
    ) -> bool:
        """Puts what `build` emits in the place of `nodes`, if nobody can tell the difference.

        Args:
            pattern: its name in the report.
            nodes: all that becomes one.
            build: emits the new calls and says whose place each result takes.
            takes: why the op cannot take the tensors, or None.
            op: the warpwright op's name in the report; None for a step on the way, which is not reported.
            results: those that others may use; none for the last of `nodes`.

        Returns:
            Whether it was done; if not, and `op` is given, the report has the reason.
        """
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        old = sorted(set(nodes), key=order.__getitem__)
        emitted: list[Node] = []
        try:
            new = self._build(old, set(results) or {old[-1]}, order, build, takes, emitted)
        except NotFused as reason:
            for node in reversed(emitted):
                self.graph.erase_node(node)
            if op is not None:
                self.skip(pattern, old[-1], str(reason))
            return False
        last = old[-1]
        for before, after in new.items():
            before.replace_all_uses_with(after, propagate_meta=False)
            after.meta["example_value"] = self.value(before)
        for node in reversed(old):
            self.graph.erase_node(node)
            earlier = self._made.pop(node, None)
            if earlier in self.report.fused:  # It has become a part of this one.
                self.report.fused.remove(earlier)
        if op is not None:
            fusion = Fusion(pattern, op, place_of(last))
            self.report.fused.append(fusion)
            self._made.update(dict.fromkeys(emitted, fusion))
        return True

    def _build(
        self,
        old: list[Node],
        results: set[Node],
        order: dict[Node, int],
        build: Callable[[Emit], dict[Node, Node]],
        takes: Callable[[Rewriter], str | None],
        emitted: list[Node],
    ) -> dict[Node, Node]:
        states = {self._states[node] for node in old}
        if len(states) > 1:
            raise NotFused("autocast or the recording of gradients changes in between")
        for node in old:
            if node not in results and any(user not in old for user in node.users):
                raise NotFused(f"the result of {_name(node)} is used {len(node.users)} times")
        self._require_unwritten(old, order)
        outside = [order[user] for node in old for user in node.users if user not in old]
        place = min([order[old[-1]], *outside])
        before = next(node for node, at in order.items() if at == place)
        with self._as_at(old[-1]):
            reason = takes(self)
            if reason is not None:
                raise NotFused(reason)

            def emit(function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Node:
                inputs: list[Node] = []
                map_aggregate((args, kwargs), lambda a: inputs.append(a) if isinstance(a, Node) else None)
                if any(order.get(node, -1) >= place for node in inputs):
                    raise NotFused("its result is used before all that the op takes is there")
                with self.graph.inserting_before(before):
                    create: Any = self.graph.call_method if isinstance(function, str) else self.graph.call_function
                    node = create(function, args, kwargs)
                emitted.append(node)
                node.meta.update({key: old[-1].meta[key] for key in _ORIGINS if key in old[-1].meta})
                self._states[node] = self._states[old[-1]]
                node.meta["example_value"] = self._run(function, args, kwargs)
                return node

            new = build(emit)
        for was, now in new.items():
            self._require_same(self.tensor(was), self.tensor(now))
        return new

    def _run(self, function: Callable[..., Any] | str, args: Any, kwargs: Any) -> Any:
        """What the call gives for the nodes' fake tensors; the ops check their arguments on the way."""
        args, kwargs = map_aggregate((args, kwargs), self.value)
        try:
            with torch.no_grad(), self.fake_mode or contextlib.nullcontext():
                if isinstance(function, str):
                    return getattr(args[0], function)(*args[1:], **kwargs)
                return function(*args, **kwargs)
        except Exception as error:  # Of fake tensors there are several kinds; none is the user's.
            raise NotFused(str(error).removeprefix("warpwright: ")) from error

    @contextlib.contextmanager
    def _as_at(self, node: Node) -> Iterator[None]:
        """Inside the autocast regions that the graph has around a node."""
        with contextlib.ExitStack() as stack:
            for device, dtype, enabled, cache in self._states[node][1]:
                stack.enter_context(torch.autocast(device, dtype, enabled, cache))
            yield

    def _require_same(self, was: Tensor | None, now: Tensor | None) -> None:
        if was is None or now is None:
            raise NotFused("its result is not a tensor")
        for what in ("dtype", "device"):
            if getattr(was, what) != getattr(now, what):
                raise NotFused(f"its result is {getattr(was, what)}, the op's {getattr(now, what)}")
        if not same_sizes(was, now):
            raise NotFused(f"its result has shape {tuple(was.shape)}, the op's {tuple(now.shape)}")
        steps = zip(was.shape, was.stride(), now.stride(), strict=True)
        if not all(statically_known_true(a == b) or statically_known_true(size <= 1) for size, a, b in steps):
            raise NotFused(f"its result has strides {was.stride()}, the op's {now.stride()}")

    def _require_unwritten(self, old: list[Node], order: dict[Node, int]) -> None:
        """Everything happens at one moment now: nobody may write, in between, to what is read, nor look at what is
        written."""
        inside = set(old)
        born = [storage for node in old for storage in self._storages([node])]
        reads = self._storages(source for node in old for source in node.all_input_nodes) | set(born)
        foreign = {node for node in self.graph.nodes if node not in inside}
        writes: set[int] = set()
        for node in old:
            written = self._storages(self.written(node))
            call = read(node)
            if call is not None and call.inplace:
                holders = {
                    other for other in foreign if self._storages([other]) & written and order[other] < order[node]
                }
                known = holders | inside  # What only these see is gone after the call.
                if any(h.op not in _CALLS or any(user not in known for user in h.users) for h in holders):
                    raise NotFused("it works in place on a tensor that others may look at")
            else:
                writes |= written
        between = [node for node, at in order.items() if order[old[0]] < at < order[old[-1]] and node not in inside]
        for node in between:
            if self._storages(self.written(node)) & (reads | writes):
                raise NotFused(f"{_name(node)} writes to one of its tensors in between")
            if writes and self._storages(node.all_input_nodes) & writes:
                raise NotFused(f"{_name(node)} reads in between what it writes")

    def written_after(self, node: Node, tensor: Any) -> bool:
        """Whether anybody writes to a tensor behind `node`: an op must not keep it for its gradient then."""
        memory, behind = self._storages([tensor]), False
        for other in self.graph.nodes:
            if behind and self._storages(self.written(other)) & memory:
                return True
            behind = behind or other is node
        return False

    def written_in_vain(self, node: Node) -> bool:
        """Whether nothing else has a use for the memory that `node` writes to, if it writes at all."""
        written = self.written(node)
        if not all(self._storages([each]) for each in written):
            return False
        memory = self._storages(written)
        sharing = (other for other in self.graph.nodes if other is not node and self._storages([other]) & memory)
        return all(other.op in _CALLS and set(other.users) <= {node} for other in sharing)

    def _storages(self, nodes: Iterable[Node]) -> set[int]:
        found = set()
        for node in nodes:
            for leaf in tree_leaves(self.value(node)):
                while isinstance(leaf, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(leaf):
                    leaf = torch._C._functorch.get_unwrapped(leaf)
                # What has no one memory (subclasses that wrap tensors, sparse tensors) no op takes anyway.
                plain = isinstance(leaf, Tensor) and not is_traceable_wrapper_subclass(leaf)
                if plain and leaf.layout == torch.strided:
                    found.add(leaf.untyped_storage()._cdata)
        return found

    def written(self, node: Node) -> list[Node]:
        """The nodes whose tensors a node writes to, as far as one can know."""
        if node.op not in _CALLS:
            return list(node.all_input_nodes) if node.op == "call_module" else []
        first = [arg for arg in node.args[:1] if isinstance(arg, Node)]
        call = read(node)
        if call is not None and call.name.endswith("_"):
            return list(node.all_input_nodes)
        if call is not None:
            running = [call.args.get(name) for name in ("running_mean", "running_var")]
            moved = [arg for arg in running if isinstance(arg, Node)] if call.args.get("training") is not False else []
            return moved + (first if call.inplace else [])
        if node.op == "call_method":
            name = str(node.target)
            return first if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" else []
        if isinstance(node.target, torch._ops.OpOverload):
            arguments = node.target._schema.arguments
            written = {
                at for at, argument in enumerate(arguments) if argument.alias_info and argument.alias_info.is_write
            }
            # A list of tensors is one argument.
            given = [leaf for at, arg in enumerate(node.args) if at in written for leaf in tree_leaves(arg)]
            named = [leaf for argument in arguments for leaf in tree_leaves(node.kwargs.get(argument.name))]
            return [leaf for leaf in (*given, *named) if isinstance(leaf, Node)]
        return list(node.all_input_nodes) if _may_write(node) else []

    # ---- what the ops take ----

    def reason(self, input: Any, *others: Any, wide: bool = False) -> str | None:
        """nn's common_reason for the tensors of nodes; None among them is no tensor."""
        tensors = [self.value(node) for node in (input, *others)]
        for tensor in tensors:
            if isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                return "a torch.func transform"
        return common_reason(*tensors, wide=wide)


def same_sizes(one: Tensor, other: Tensor) -> bool:
    """Whether the shapes are known to be equal, without adding a guard where sizes are symbols."""
    return one.dim() == other.dim() and all(
        statically_known_true(a == b) for a, b in zip(one.shape, other.shape, strict=True)
    )


_CALLS = ("call_function", "call_method")
_ORIGINS = ("nn_module_stack", "stack_trace", "source_fn_stack")
#: Functions of these modules write to nothing, unless their name or an argument says so.
_KNOWN_MODULES = ("torch", "_operator", "torch.nn.functional", "torch._C._nn", "torch.special", "torch.functional")
_WRITING_OPERATORS = {
    "setitem",
    "delitem",
    "iadd",
    "iand",
    "ifloordiv",
    "ilshift",
    "imatmul",
    "imod",
    "imul",
    "ior",
    "ipow",
    "irshift",
    "isub",
    "itruediv",
    "ixor",
}


def _may_write(node: Node) -> bool:
    target: Any = node.target
    module, name = getattr(target, "__module__", None) or "", getattr(target, "__name__", "")
    if module == "builtins" and name == "getattr":
        return False
    if module.startswith("warpwright."):
        return name.endswith("_")
    is_torchs = module in _KNOWN_MODULES or module.startswith(
        ("torch._C", "torch.nn.functional", "torch._jit_internal")
    )
    if not is_torchs or name.endswith("_") or node.kwargs.get("out") is not None or node.kwargs.get("inplace"):
        return True
    if any(arg is True for arg in node.args):  # An `inplace` by position, or any other switch.
        return True
    return module == "_operator" and name in _WRITING_OPERATORS


def _states(nodes: Iterable[Node]) -> dict[Node, _State]:
    """In which state of gradients and autocast each node runs."""
    grad, regions, others = torch.is_grad_enabled(), [], 0
    found: dict[Node, _State] = {}
    for node in nodes:
        target: Any = node.target
        if node.op == "call_function":
            if target is torch._C._set_grad_enabled:
                grad = bool(node.args[0])
            elif target is torch.amp.autocast_mode._enter_autocast:
                regions.append((node, node.args))
            elif target is torch.amp.autocast_mode._exit_autocast:
                regions = [region for region in regions if region[0] is not node.args[0]]
            elif _changes_state(node):
                others += 1
        found[node] = (grad, tuple(arguments for _, arguments in regions), others)
    return found


def _changes_state(node: Node) -> bool:
    """Calls that take and give no tensor, among torch's own: contexts that are entered and left, transforms."""
    target: Any = node.target
    module, name = getattr(target, "__module__", None) or "", getattr(target, "__name__", "")
    inner = module.startswith(("torch._C", "torch._functorch", "torch.autograd", "torch.amp"))
    value = node.meta.get("example_value", node.meta.get("val"))
    return inner and name != "_log_api_usage_once" and not any(isinstance(x, Tensor) for x in tree_leaves(value))


def _name(node: Node) -> str:
    call = read(node)
    if call is not None:
        return call.name
    return str(getattr(node.target, "__name__", node.target))
