"""The output layer of a language model whose logits may never be computed: the loss can take its input and weight.

In training such a layer returns a tensor that remembers both. `cross_entropy` of it, also through the views and casts
that models make on the way there, is ops.linear_cross_entropy, which never holds all logits; anything else that is
asked of it computes the logits first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from warpwright import ops
from warpwright.nn import matmul
from warpwright.nn._children import altered
from warpwright.nn._reasons import common_reason, dtype_in_op
from warpwright.nn._replace._adapted import make

#: The last words of the classes of transformers whose output layer gives logits for a loss.
_HEADS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining")
FUSED = "linear + cross_entropy, in training"


def head_of(module: torch.nn.Module) -> torch.nn.Module | None:
    """The output layer of a language model of transformers; None for other modules."""
    kind = type(module)
    if not any(base.__module__.startswith("transformers.") for base in kind.__mro__):
        return None
    if not kind.__name__.endswith(_HEADS) or not hasattr(module, "get_output_embeddings"):
        return None
    head: torch.nn.Module = module.get_output_embeddings()  # type: ignore[operator]
    return head if type(head) is matmul.Linear else None


def head_recipe(original: type[torch.nn.Module]) -> type[torch.nn.Module]:
    def forward(self: Any, input: Tensor) -> Tensor:
        if not self.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return matmul.Linear.forward(self, input)
        if altered(self) is not None or common_reason(input, self.weight, self.bias) is not None or input.dim() == 0:
            return matmul.Linear.forward(self, input)
        dtype = dtype_in_op(input)
        return Logits.make(_Product(input, self.weight, self.bias, dtype), dtype)

    return make(head_recipe, original, (original,), {"forward": forward})


@dataclass(frozen=True)
class _Product:
    """What logits are made of. `product` is the dtype of the product; `cap` is how far a softcap has come."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    product: torch.dtype
    cap: tuple[Any, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.input, self.weight, self.bias) if t is not None)

    def cast(self) -> tuple[Tensor, Tensor, Tensor | None]:
        bias = None if self.bias is None else self.bias.to(self.product)
        return self.input.to(self.product), self.weight.to(self.product), bias


class Logits(torch.Tensor):
    """`input @ weight.T + bias`, computed when something reads it.

    A weight that changes in between (an optimizer's step) makes the logits of this call unknowable: reading them then
    raises a RuntimeError that says what to do.
    """

    _of: _Product
    _versions: tuple[int, ...]
    _computed: Tensor | None

    @staticmethod
    def make(of: _Product, dtype: torch.dtype, versions: tuple[int, ...] | None = None) -> Logits:
        shape = (*of.input.shape[:-1], of.weight.shape[0])
        made = torch.Tensor._make_wrapper_subclass(Logits, shape, dtype=dtype, device=of.input.device)
        made._of = of
        made._versions = _versions(of) if versions is None else versions
        made._computed = None
        return made

    def computed(self) -> Tensor:
        if self._computed is None:
            self._require_unchanged()
            with torch.autocast(self._of.input.device.type, enabled=False):
                value = ops.linear(*self._of.cast())
                for step in self._of.cap:
                    value = torch.tanh(value) if step == "tanh" else value * step
            self._computed = value.to(_dtype(self))
        return self._computed

    def _require_unchanged(self) -> None:
        if _versions(self._of) != self._versions:
            raise RuntimeError(
                "warpwright: the logits of a training step were never computed, as the loss needed none, and the "
                "weight or the input of the output layer has changed since: read them before the optimizer's step, "
                "or leave the layer out with replace_modules(model, exclude=...)"
            )

    def _like(self, of: _Product, dtype: torch.dtype | None = None) -> Logits:
        return Logits.make(of, _dtype(self) if dtype is None else dtype, self._versions)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if isinstance(first, Logits) and first._computed is None:
            rule = _RULES.get(func)
            result = NotImplemented if rule is None else rule(first, *args[1:], **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = _pytree.tree_map_only(Logits, Logits.computed, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """For code that does not ask __torch_function__."""
        args, kwargs = _pytree.tree_map_only(Logits, Logits.computed, (args, kwargs or {}))
        return func(*args, **kwargs)


def _versions(of: _Product) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in of.tensors())


def _dtype(logits: Logits) -> torch.dtype:
    with torch._C.DisableTorchFunctionSubclass():
        return logits.dtype


#: What can be said of logits without computing them.
_FACTS = frozenset(
    (
        torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
        torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
        torch.Tensor.device.__get__,
        torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
        torch.Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
        torch.Tensor.layout.__get__,  # type: ignore[attr-defined]
        torch.Tensor.size,
        torch.Tensor.dim,
        torch.Tensor.numel,
        torch.Tensor.is_floating_point,
    )
)


# ---- what keeps them uncomputed ----


def _view(logits: Logits, *shape: Any) -> Any:
    sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    of = logits._of
    if not isinstance(sizes, (tuple, list, torch.Size)) or len(sizes) == 0 or sizes[-1] != of.weight.shape[0]:
        return NotImplemented
    return logits._like(replace(of, input=of.input.reshape(*sizes[:-1], of.input.shape[-1])))


def _index(logits: Logits, index: Any) -> Any:
    """Rows alone: x[:, :-1], x[0], x[..., :-1, :]."""
    of = logits._of
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is Ellipsis or isinstance(part, (int, slice)) for part in parts):
        return NotImplemented
    last = len(parts) >= of.input.dim() or Ellipsis in parts
    if last and parts[-1] != slice(None):
        return NotImplemented
    return logits._like(replace(of, input=of.input[index]))


def _float(logits: Logits) -> Any:
    return _to(logits, torch.float32)


def _to(logits: Logits, *args: Any, **kwargs: Any) -> Any:
    """A wider dtype, or the device where they are."""
    to = args[0] if len(args) == 1 and not kwargs else None
    if isinstance(to, torch.device) and to == logits._of.input.device:
        return logits
    wide = to in (torch.float32, _dtype(logits)) and _dtype(logits) != torch.float64
    return logits._like(logits._of, to) if wide and len(logits._of.cap) in (0, 3) else NotImplemented


def _same(logits: Logits) -> Any:
    return logits


def _divide(logits: Logits, by: Any) -> Any:
    plain = isinstance(by, (int, float)) and by > 0 and not logits._of.cap and _dtype(logits) == logits._of.product
    return logits._like(replace(logits._of, cap=(1 / by,))) if plain else NotImplemented


def _tanh(logits: Logits) -> Any:
    cap = logits._of.cap
    return logits._like(replace(logits._of, cap=(*cap, "tanh"))) if len(cap) == 1 else NotImplemented


def _multiply(logits: Logits, by: Any) -> Any:
    cap = logits._of.cap
    fits = isinstance(by, (int, float)) and len(cap) == 2 and cap[0] == 1 / by
    return logits._like(replace(logits._of, cap=(*cap, float(by)))) if fits else NotImplemented


def _cross_entropy(
    logits: Logits,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    of = logits._of
    classes = isinstance(target, Tensor) and target.dtype == torch.int64 and target.shape == of.input.shape[:-1]
    if size_average is not None or reduce is not None or len(of.cap) in (1, 2) or not classes or of.input.dim() != 2:
        return NotImplemented
    logits._require_unchanged()
    input, matrix, bias = of.cast()
    with torch.autocast(input.device.type, enabled=False):
        loss = ops.linear_cross_entropy(
            input, matrix, target, bias, class_weight=weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, softcap=of.cap[2] if of.cap else None,
        )  # fmt: skip
    return loss.to(_dtype(logits))


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.Tensor.view: _view,
    torch.Tensor.reshape: _view,
    torch.reshape: _view,
    torch.Tensor.__getitem__: _index,
    torch.Tensor.float: _float,
    torch.Tensor.to: _to,
    torch.Tensor.contiguous: _same,
    torch.Tensor.div: _divide,
    torch.Tensor.__truediv__: _divide,
    torch.tanh: _tanh,
    torch.Tensor.tanh: _tanh,
    torch.Tensor.mul: _multiply,
    torch.Tensor.__mul__: _multiply,
    F.cross_entropy: _cross_entropy,
}
