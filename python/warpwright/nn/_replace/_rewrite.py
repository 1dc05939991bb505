"""Finds chains of calls in a method's source, and writes them as one call that may run them by one kernel.

    x = self.conv1(x)                    x = chain(x, (self.conv1, self.bn1, self.relu))
    x = self.bn1(x)             ->
    x = self.relu(x)

What the stages are is not known here: `_chain.run` looks at the modules at each call, and calls one after the other
where nothing fuses. Only the order in which a line's own operands are looked up changes; control flow, arguments and
everything else of the method stay as they are written.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

#: What the written code calls; `_chain.py` has them.
RUN, TAP = "_warpwright_run", "_warpwright_tap"
_NORMAL = "_warpwright_normal_of_"
ADD, GATED = "_warpwright_add", "_warpwright_gated"


@dataclass
class Chain:
    """A value, and what happens to it: `stages` are expressions of modules or functions, or of _chain.Add and Gated."""

    base: ast.expr
    stages: list[ast.expr] = field(default_factory=list)

    def written(self) -> ast.expr:
        if not self.stages:
            return self.base
        return _call(RUN, self.base, ast.Tuple(self.stages, ast.Load()))

    def is_worth_it(self) -> bool:
        """Whether there may be something to fuse: a gated product is three modules by itself."""
        count = sum(len(conditional_stages(stage)) if isinstance(stage, ast.Starred) else 1 for stage in self.stages)
        return count > 1 or (count == 1 and _is_gated(self.stages[0]))


def conditional_stages(stage: ast.Starred) -> list[ast.expr]:
    """The stages of `*((...) if test else ())`, or of the same the other way round."""
    assert isinstance(stage.value, ast.IfExp)
    sides = (stage.value.body, stage.value.orelse)
    return [element for side in sides if isinstance(side, ast.Tuple) for element in side.elts]


def rewrite(definition: ast.FunctionDef, functions: frozenset[str]) -> tuple[ast.FunctionDef, list[list[ast.expr]]]:
    """A copy of a method in which chains are calls of RUN and TAP.

    Args:
        definition: the method; its first parameter is the module.
        functions: the names under which it sees activation functions, as they are written ("F.relu").

    Returns:
        The new method, and the stages of each chain of two and more; none when there is nothing to fuse.
    """
    new = copy.deepcopy(definition)
    if not new.args.args or any(isinstance(node, (ast.Lambda, ast.FunctionDef)) for node in _inside(new)):
        return new, []  # A variable could be read by an inner function, at any time.
    writer = _Writer(new.args.args[0].arg, functions, new)
    new.body = writer.block(new.body)
    return new, writer.found


class _Writer:
    def __init__(self, module: str, functions: frozenset[str], definition: ast.FunctionDef):
        self.module = module
        self.functions = functions
        self.found: list[list[ast.expr]] = []
        self.reads: dict[str, int] = {}
        self.tries = any(isinstance(node, ast.Try) for node in ast.walk(definition))
        for node in ast.walk(definition):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.reads[node.id] = self.reads.get(node.id, 0) + 1
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                self.reads[node.target.id] = self.reads.get(node.target.id, 0) + 1

    # ---- statements ----

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Statements with each run of `v = f(v)` joined, then with sums that a norm reads taken together with it."""
        return self._written(*self._joined(body))

    def _joined(self, body: list[ast.stmt]) -> tuple[list[ast.stmt], list[Chain | None]]:
        """The statements that are left, and the chain that each computes."""
        joined: list[ast.stmt] = []
        chains: list[Chain | None] = []
        for statement in body:
            chain = self._chain_of(statement)
            self._inner_expressions(statement, chain)
            place = None if chain is None else self._place_before(joined, chains, chain, statement)
            if chain is not None and place is None and _is_sum_of_names(chain):
                other = _turned(chain)
                place = self._place_before(joined, chains, other, statement)
                chain = chain if place is None else other
            if chain is not None and place is not None:
                earlier = chains[place]
                assert earlier is not None
                chain = Chain(earlier.base, [*earlier.stages, *chain.stages])
                del joined[place], chains[place]
            joined.append(statement)
            chains.append(chain)
        return joined, chains

    def _written(self, joined: list[ast.stmt], chains: list[Chain | None]) -> list[ast.stmt]:
        for statement, chain in zip(joined, chains, strict=True):
            if chain is not None:
                _set_value(statement, chain)
        self._tap(joined, chains)
        for chain in chains:
            if chain is not None and chain.is_worth_it():
                self.found.append(chain.stages)
        return joined

    def _inner_expressions(self, statement: ast.stmt, chain: Chain | None) -> None:
        """Chains inside a larger expression: in the base of the statement's chain, or anywhere in its value."""
        if chain is not None:
            chain.base = self._with_chains(chain.base)
        elif isinstance(getattr(statement, "value", None), ast.expr):
            statement.value = self._with_chains(statement.value)  # type: ignore[attr-defined]

    def _with_chains(self, value: ast.expr) -> ast.expr:
        chain = self.chain(value)
        if chain is not None:
            chain.base = self._with_chains(chain.base)
            if chain.is_worth_it():
                self.found.append(chain.stages)
                return chain.written()
        for name, field_value in ast.iter_fields(value):
            if isinstance(field_value, ast.expr):
                setattr(value, name, self._with_chains(field_value))
            elif isinstance(field_value, list):
                field_value[:] = [self._with_chains(v) if isinstance(v, ast.expr) else v for v in field_value]
        for keyword in getattr(value, "keywords", ()):
            keyword.value = self._with_chains(keyword.value)
        return value

    def _chain_of(self, statement: ast.stmt) -> Chain | None:
        """The chain that a statement computes; `_set_value` puts it back."""
        if isinstance(statement, ast.If):
            return self._conditional(statement)
        for name in ("body", "orelse", "finalbody"):
            inner = getattr(statement, name, None)
            if inner and isinstance(inner, list) and isinstance(inner[0], ast.stmt):
                setattr(statement, name, self.block(inner))
        if isinstance(statement, ast.AugAssign):
            target, value = statement.target, statement.value
            if isinstance(statement.op, ast.Add) and isinstance(target, ast.Name) and isinstance(value, ast.Name):
                return Chain(ast.Name(target.id, ast.Load()), [_add(value, in_place=True)])
            return None
        if isinstance(statement, ast.Return) or _stored(statement):
            value = statement.value  # type: ignore[attr-defined]
            return None if value is None else self.chain(value)
        return None

    def _conditional(self, statement: ast.If) -> Chain | None:
        """`if self.flag: v = self.m(v)`, and `if self.m is not None`: stages that are there or not."""
        body, chains = self._joined(statement.body)
        name, chain = _target(body[0]), chains[0]
        lone = len(body) == 1 and not statement.orelse and self._is_of_module(statement.test)
        if not lone or chain is None or not _is_name(chain.base, name):
            statement.body = self._written(body, chains)
            statement.orelse = self.block(statement.orelse)
            return None
        statement.body = body
        return Chain(chain.base, [_conditional_stage(statement.test, chain.stages)])

    def _is_of_module(self, test: ast.expr) -> bool:
        """Whether a condition asks for nothing but the module's attributes."""
        nodes = list(ast.walk(test))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        return names == {self.module} and not any(isinstance(node, (ast.Call, ast.NamedExpr)) for node in nodes)

    def _place_before(
        self, joined: list[ast.stmt], chains: list[Chain | None], chain: Chain, statement: ast.stmt
    ) -> int | None:
        """Where the chain stands that computes the base of `chain` and nothing else: right before it, or before a
        statement that has nothing to do with either."""
        if not isinstance(chain.base, ast.Name):
            return None
        name = chain.base.id
        for place in range(len(joined) - 1, max(len(joined) - 3, -1), -1):
            earlier = chains[place]
            between = joined[place + 1 :]
            if earlier is not None and _target(joined[place]) == name:
                # A lone `v += r` changes a tensor that others may hold.
                kept = isinstance(joined[place], ast.AugAssign) and len(earlier.stages) == 1
                if kept or not self._last_read(name, chain, statement):
                    return None
                moved = {node.id for node in ast.walk(earlier.written()) if isinstance(node, ast.Name)} - {self.module}
                apart = all(not moved & _written_names(other) for other in between)
                return place if apart and not any(name in _names(other) for other in between) else None
            if not self._is_shortcut(joined[place]):
                return None
        return None

    def _last_read(self, name: str, chain: Chain, statement: ast.stmt) -> bool:
        """Whether nothing reads the variable's value but the chain."""
        if any(_is_name(node, name) for stage in chain.stages for node in ast.walk(stage)):
            return False
        leaves = isinstance(statement, ast.Return) and not self.tries
        return leaves or _target(statement) == name or self.reads.get(name) == 1

    def _is_shortcut(self, statement: ast.stmt) -> bool:
        """`identity = self.downsample(x)`, also under `if self.downsample is not None`."""
        if isinstance(statement, ast.If):
            plain = self._is_of_module(statement.test) and not statement.orelse
            return plain and all(self._is_shortcut(inner) for inner in statement.body)
        value = statement.value if _stored(statement) else None  # type: ignore[attr-defined]
        if isinstance(value, ast.Call) and _is_name(value.func, RUN):
            return isinstance(value.args[0], ast.Name)
        chain = None if value is None else self.chain(value)
        return chain is not None and isinstance(chain.base, ast.Name)

    def _tap(self, joined: list[ast.stmt], chains: list[Chain | None]) -> None:
        """`h = x + r`, then `y = self.norm(h)` with h still wanted: both come from one call."""
        for place, chain in enumerate(chains[:-1]):
            target = _stored(joined[place])
            if chain is None or not target or not _is_add(chain.stages[-1]):
                continue
            reader = place + 1
            aliased = isinstance(getattr(joined[reader], "value", None), ast.Name) and chains[reader] is None
            if aliased and _stored(joined[reader]) and _is_name(joined[reader].value, target):  # type: ignore[attr-defined]
                reader += 1
            following = chains[reader] if reader < len(chains) else None
            if following is None or not _is_name(following.base, target) or not self._is_module(following.stages[0]):
                continue
            ends = _stored(joined[reader]) or isinstance(joined[reader], ast.Return)
            if not ends or any(_is_name(node, target) for stage in following.stages for node in ast.walk(stage)):
                continue
            norm, *rest = following.stages
            normal = f"{_NORMAL}{target}"
            pair = ast.Tuple([ast.Name(target, ast.Store()), ast.Name(normal, ast.Store())], ast.Store())
            call = _call(TAP, chain.base, ast.Tuple(chain.stages, ast.Load()), norm)
            joined[place] = ast.copy_location(ast.Assign([pair], call), joined[place])
            self.found.append([*chain.stages, norm])
            chains[place] = None
            chains[reader] = Chain(ast.Name(normal, ast.Load()), rest)
            _set_value(joined[reader], Chain(ast.Name(normal, ast.Load()), rest))

    # ---- expressions ----

    def chain(self, value: ast.expr) -> Chain | None:
        """The value as a chain of at least one stage."""
        chain = self._parse(value)
        return chain if chain.stages else None

    def _parse(self, value: ast.expr) -> Chain:
        if isinstance(value, ast.Call) and _takes_one(value) and self._is_stage(value.func):
            inner = self._parse(value.args[0])
            return Chain(inner.base, [*inner.stages, value.func])
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            for side, other in ((value.left, value.right), (value.right, value.left)):
                if isinstance(other, ast.Name):
                    inner = self._parse(side)
                    if inner.stages or isinstance(side, (ast.Name, ast.Call)):
                        return Chain(inner.base, [*inner.stages, _add(other, swapped=side is value.right)])
        if isinstance(value, ast.IfExp) and self._is_of_module(value.test):
            for side, other in ((value.body, value.orelse), (value.orelse, value.body)):
                inner = self._parse(side)
                if _is_sum_of_names(inner) and not _same(inner.base, other):
                    inner = _turned(inner)
                if inner.stages and isinstance(other, ast.Name) and _same(inner.base, other):
                    return Chain(other, [_conditional_stage(value.test, inner.stages, side is value.orelse)])
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):
            for gate, up in ((value.left, value.right), (value.right, value.left)):
                gated = self._gated(gate, up)
                if gated is not None:
                    return gated
        return Chain(value)

    def _gated(self, gate: ast.expr, up: ast.expr) -> Chain | None:
        """`self.act(self.gate(x)) * self.up(x)` of a variable x."""
        first, second = self._calls(gate), self._calls(up)
        if first is None or second is None or len(first.stages) != 2 or len(second.stages) != 1:
            return None
        if not isinstance(first.base, ast.Name) or not _is_name(second.base, first.base.id):
            return None
        return Chain(first.base, [_call(GATED, first.stages[0], first.stages[1], second.stages[0])])

    def _calls(self, value: ast.expr) -> Chain | None:
        chain = self._parse(value)
        return chain if all(self._is_stage(stage) for stage in chain.stages) else None

    def _is_stage(self, function: ast.expr) -> bool:
        return self._is_module(function) or ast.unparse(function) in self.functions

    def _is_module(self, function: ast.expr) -> bool:
        """self.a, self.a.b, self.a[0]"""
        if isinstance(function, ast.Subscript):
            return isinstance(function.slice, ast.Constant) and self._is_module(function.value)
        if not isinstance(function, ast.Attribute):
            return False
        return _is_name(function.value, self.module) or self._is_module(function.value)


def _set_value(statement: ast.stmt, chain: Chain) -> None:
    """Makes the statement compute the chain; one that a chain of one stage came from stays as it was written."""
    if not (chain.is_worth_it() or not chain.stages or _is_normal(chain.base)):
        return
    if isinstance(statement, (ast.If, ast.AugAssign)):
        _become(statement, ast.Assign([ast.Name(_target(statement), ast.Store())], chain.written()))
    else:
        statement.value = chain.written()  # type: ignore[attr-defined]


def _takes_one(call: ast.Call) -> bool:
    return len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred)


def _is_normal(base: ast.expr) -> bool:
    """Whether it is the second value of a TAP."""
    return isinstance(base, ast.Name) and base.id.startswith(_NORMAL)


def _become(statement: ast.stmt, other: ast.stmt) -> None:
    """Turns the node, which lists hold, into another."""
    place = {name: getattr(statement, name) for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")}
    statement.__class__ = other.__class__
    statement.__dict__.clear()
    statement.__dict__.update({**other.__dict__, **place})


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _add(other: ast.expr, swapped: bool = False, in_place: bool = False) -> ast.Call:
    return _call(ADD, other, ast.Constant(swapped), ast.Constant(in_place))


def _conditional_stage(test: ast.expr, stages: list[ast.expr], otherwise: bool = False) -> ast.Starred:
    there, missing = ast.Tuple(stages, ast.Load()), ast.Tuple([], ast.Load())
    both = (missing, there) if otherwise else (there, missing)
    return ast.Starred(ast.IfExp(test, *both), ast.Load())


def _same(one: ast.expr, other: ast.expr) -> bool:
    return isinstance(one, ast.Name) and isinstance(other, ast.Name) and one.id == other.id


def _is_sum_of_names(chain: Chain) -> bool:
    """`a + b`: either may be what the chain begins with."""
    if not chain.stages:
        return False
    first = chain.stages[0]
    return isinstance(chain.base, ast.Name) and isinstance(first, ast.Call) and _is_add(first)


def _turned(chain: Chain) -> Chain:
    """The chain of `a + b` that begins with b."""
    first, *rest = chain.stages
    assert isinstance(first, ast.Call)
    other, swapped, in_place = first.args
    assert isinstance(swapped, ast.Constant)
    assert isinstance(in_place, ast.Constant)
    if in_place.value:  # a += b changes a.
        return chain
    return Chain(other, [_add(chain.base, swapped=not swapped.value), *rest])


def _is_add(stage: ast.expr) -> bool:
    return isinstance(stage, ast.Call) and _is_name(stage.func, ADD)


def _is_gated(stage: ast.expr) -> bool:
    return isinstance(stage, ast.Call) and _is_name(stage.func, GATED)


def _is_name(node: ast.AST | None, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _stored(statement: ast.stmt) -> str:
    """v of `v = ...`, or an empty text."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else ""
    return ""


def _target(statement: ast.stmt) -> str:
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    if isinstance(statement, ast.If):
        return _target(statement.body[0]) if len(statement.body) == 1 else ""
    return _stored(statement)


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _written_names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _inside(definition: ast.FunctionDef) -> Iterable[ast.AST]:
    return (node for part in definition.body for node in ast.walk(part))
