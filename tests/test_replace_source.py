"""The lines of a method that replace_modules(fuse=True) takes for chains, by their syntax trees alone."""

from __future__ import annotations

import ast
import textwrap

import pytest

from warpwright.nn._replace import _rewrite
from warpwright.nn._replace._source import meaning


def rewritten(body):
    definition = ast.parse("def forward(self, x, r=None):\n" + textwrap.indent(textwrap.dedent(body), "    ")).body[0]
    new, chains = _rewrite.rewrite(definition, frozenset({"F.relu", "torch.tanh"}))
    text = ast.unparse(ast.fix_missing_locations(ast.Module(new.body, []))).replace("_warpwright_", "")
    return text, len(chains)


JOINED = {
    "nested calls": ("return self.c(self.b(self.a(x)))", "return run(x, (self.a, self.b, self.c))"),
    "one after the other": ("x = self.a(x)\nx = self.b(x)\nreturn F.relu(x)",
     "return run(x, (self.a, self.b, F.relu))"),
    "another variable": ("h = self.a(x)\ny = self.b(h)\nreturn y + x",
     "return run(x, (self.a, self.b, add(x, False, False)))"),
    "a sum on the right": ("x = self.a(x)\nreturn r + x", "return run(x, (self.a, add(r, True, False)))"),
    "a sum in place": ("y = self.a(x)\ny += r\nreturn self.b(y)",
     "return run(x, (self.a, add(r, False, True), self.b))"),
    "a layer that may be missing": (
        "x = self.a(x)\nif self.b is not None:\n    x = self.b(x)\nreturn x",
        "x = run(x, (self.a, *((self.b,) if self.b is not None else ())))\nreturn x",
    ),
    "a shortcut in between": (
        "y = self.b(self.a(x))\nif self.down is not None:\n    r = self.down(x)\ny += r\nreturn self.c(y)",
        "if self.down is not None:\n    r = self.down(x)\nreturn run(x, (self.a, self.b, add(r, False, True), self.c))",
    ),
    "a gated product": ("return self.d(self.act(self.g(x)) * self.u(x))",
     "return run(x, (gated(self.g, self.act, self.u), self.d))"),
    "gate on the right": ("return self.u(x) * self.act(self.g(x))",
     "return run(x, (gated(self.g, self.act, self.u),))"),
    "a residual that may be missing": (
        "y = self.b(self.a(x))\nif self.skip:\n    y = self.drop(y)\n    y += r\nreturn y",
        "y = run(x, (self.a, self.b, *((self.drop, add(r, False, True)) if self.skip else ())))",
    ),
    "either": (
        "y = self.b(self.a(x))\nreturn r + y if self.skip else y",
        "return run(x, (self.a, self.b, *((add(r, True, False),) if self.skip else ())))",
    ),
    "the other way round": (
        "y = self.b(self.a(x))\nreturn y if self.plain else self.c(y)",
        "return run(x, (self.a, self.b, *(() if self.plain else (self.c,))))",
    ),
    "inside an expression": ("return 2 * self.b(self.a(x)) + 1", "return 2 * run(x, (self.a, self.b)) + 1"),
    "an argument": ("return self.c(self.b(self.a(x)), r)", "return self.c(run(x, (self.a, self.b)), r)"),
    "a sum and its norm": ("x = x + r\nr = x\nx = self.norm(x)\nreturn x + r",
     "x, normal_of_x = tap(x, (add(r, False, False),), self.norm)"),
    "an inner block": ("if r is None:\n    x = self.a(x)\n    x = self.b(x)\nreturn x", "x = run(x, (self.a, self.b))"),
    "items of lists": ("return self.layers[1](self.layers[0](x))", "return run(x, (self.layers[0], self.layers[1]))"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(JOINED))
def test_chains_are_found(case):
    body, expected = JOINED[case]
    text, count = rewritten(body)
    assert expected in text
    assert count


APART = {
    "read twice": "h = self.a(x)\ny = self.b(h)\nreturn y, h",
    "two arguments": "x = self.a(x, r)\nreturn x",
    "keywords": "x = self.a(x, scale=2)\nreturn x",
    "a lone sum in place": "x += r\nx = self.b(x)\nreturn x",
    "an inner function": "h = self.a(x)\ny = self.b(h)\nreturn (lambda: y)()",
    "the variable on both sides": "h = self.a(x)\nh = h + h\nreturn h",
    "another function": "return torch.sin(self.a(x))",
    "a condition of values": "x = self.a(x)\nif r is None:\n    x = self.b(x)\nreturn x",
    "a condition that calls": "x = self.a(x)\nif self.wanted():\n    x = self.b(x)\nreturn x",
    "the shortcut reads it": "y = self.a(x)\nr = self.down(y)\ny = self.b(y)\nreturn y + r",
    "the shortcut changes the base": "y = self.a(x)\nx = self.down(r)\ny = self.b(y)\nreturn y + x",
}


@pytest.mark.parametrize("case", list(APART))
def test_what_is_no_chain_stays_as_it_is(case):
    text, _ = rewritten(APART[case])
    assert "self.a, self.b" not in text
    assert "tap(" not in text
    if case in ("two arguments", "keywords", "a lone sum in place", "read twice", "an inner function"):
        assert text == ast.unparse(ast.parse(APART[case]))


def test_meaning_is_what_a_function_computes():
    assert meaning("def f(self, x):\n    'text'\n    y: int = x\n    return y") == meaning(
        "def g(s, a: int):\n    b: int = a\n    return b"
    )
    assert meaning("def f(self, x):\n    return x * self.a") != meaning("def f(self, x):\n    return x * self.b")
    assert meaning("def f(self, x, y):\n    return x - y") != meaning("def f(self, x, y):\n    return y - x")
    assert meaning(len) is None
