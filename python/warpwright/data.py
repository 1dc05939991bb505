"""Feeding a model: the next batches are copied to the device while it works on this one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

#: How often a thread whose queue is full looks whether anyone still wants it, and how long a loop waits for its thread.
_LOOK_S, _JOIN_S = 0.05, 5.0


class Prefetcher:
    """Iterates over batches whose copies to the device run ahead, on a stream of their own.

    Args:
        batches: an iterable of batches: a DataLoader, a list, anything that gives an iterator each time it is asked. A
            batch is a tensor, or lists, tuples, named tuples, dictionaries and dataclasses that hold some, nested as
            they like; what else has a method `to` is sent by that, and the rest is passed on as it is.
        device: where to; None for the GPU if there is one, else the CPU.
        depth: how many batches are under way beside the one that is worked on. Each costs its memory on the device.
        dtype: what floating-point tensors become, on the device; None to leave them. Other tensors keep their dtype.
        memory_format: of tensors with four dimensions (torch.channels_last) or five (torch.channels_last_3d), made on
            the device; None to leave them.
        transform: called with each batch when it is on the device, on the stream of the copies and without gradients:
            to normalise images, say. Returns the batch that is passed on.
        pin_memory: copy through page-locked memory, which is what lets a copy run beside the model. Tensors that are
            pinned already (DataLoader's pin_memory) are not copied again.
        thread: take batches from a thread, so that waiting for them stands beside the work too. Then what makes them
            must not draw from torch's global random generators, or runs are no longer repeatable; a DataLoader with
            workers gains little by it. On the CPU it is the only thing that runs ahead.

    Order and length are those of `batches`, and each `for` loop starts from its beginning. An exception while a batch
    is made, copied or transformed is raised where that batch would have come, after those before it. A loop that is
    left early lets go of what is under way, and ends its thread. Tensors may be used on the stream that is current
    where the loop takes them, for as long as it likes: they are not reused before that stream is done with them.

    Without a GPU it is a plain iterator with the same results, one batch at a time unless `thread`.

    Raises:
        TypeError: batches cannot be iterated over; dtype is not a floating type; len() of what has none.
        ValueError: depth is less than 1; a memory_format that is neither of the two.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        device: torch.device | str | int | None = None,
        *,
        depth: int = 2,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
        transform: Callable[[Any], Any] | None = None,
        pin_memory: bool = True,
        thread: bool = False,
    ):
        if not isinstance(batches, Iterable):
            raise TypeError(f"warpwright: Prefetcher: batches must be iterable, got a {type(batches).__name__}")
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"warpwright: Prefetcher: depth must be a number of batches, at least 1, got {depth!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"warpwright: Prefetcher: dtype must be a floating type, got {dtype}")
        if memory_format not in (None, *_FORMATS.values()):
            known = ", ".join(map(str, _FORMATS.values()))
            raise ValueError(f"warpwright: Prefetcher: memory_format must be one of {known}, got {memory_format}")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batches = batches
        self.device = torch.device(device)
        self.depth = depth
        self.dtype = dtype
        self.memory_format = memory_format
        self.transform = transform
        self.pin_memory = pin_memory
        self.thread = thread

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        mover = _mover(self)
        if self.thread:
            ready = _from_thread(self.batches, mover.send, self.depth)
        else:
            ready = _ahead(self.batches, mover.send, self.depth if mover.runs_ahead else 0)
        with contextlib.closing(ready):
            for sent in ready:
                yield mover.take(sent)


# ---- batches that are under way ----


def _ahead(batches: Iterable[Any], send: Callable[[Any], Any], depth: int) -> Generator[Any, None, None]:
    """What `send` makes of each batch, for `depth` batches before they are asked for."""
    source, waiting = iter(batches), deque[Any]()
    failure: BaseException | None = None
    more = True
    try:
        while more or waiting:
            while more and len(waiting) <= depth:
                try:
                    waiting.append(send(next(source)))
                except StopIteration:
                    more = False
                except Exception as error:  # Raised in its turn: the batches before it are fine.
                    more, failure = False, error
            if waiting:
                yield waiting.popleft()
        if failure is not None:
            raise failure
    finally:
        _close(source)


def _from_thread(batches: Iterable[Any], send: Callable[[Any], Any], depth: int) -> Generator[Any, None, None]:
    """The same from a thread."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    unwanted = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not unwanted.is_set():
            try:
                ready.put((kind, value), timeout=_LOOK_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        source: Any = None
        try:
            source = iter(batches)
            for batch in source:
                if not put("batch", send(batch)):
                    break
            else:
                put("end", None)
        except BaseException as error:  # Of any kind: the loop would wait for ever for a thread that is gone.
            put("failure", error)
        finally:
            _close(source)

    thread = threading.Thread(target=work, name="warpwright.data.Prefetcher", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "failure":
                raise value
            yield value
    finally:
        unwanted.set()
        thread.join(_JOIN_S)


def _close(source: Any) -> None:
    """A generator's own `finally` runs now, not when somebody collects it."""
    close = getattr(source, "close", None)
    if callable(close):
        close()


# ---- what is done with a batch ----


def _mover(options: Prefetcher) -> _Here:
    module = None if options.device.type == "cpu" else torch.get_device_module(options.device)
    return _Streamed(options, module) if hasattr(module, "Stream") else _Here(options)


class _Here:
    """Batches for a device without streams."""

    runs_ahead = False

    def __init__(self, options: Prefetcher):
        self.options, self.device = options, options.device

    def send(self, batch: Any) -> Any:
        with torch.no_grad():
            return self._arrived(_mapped(batch, lambda t: t.to(self.device), self.device))

    def take(self, sent: Any) -> Any:
        return sent

    def _arrived(self, batch: Any) -> Any:
        """What was asked for beside the copy."""
        if self.options.dtype is not None or self.options.memory_format is not None:
            batch = _mapped(batch, self._converted)
        return batch if self.options.transform is None else self.options.transform(batch)

    def _converted(self, tensor: Tensor) -> Tensor:
        if self.options.dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self.options.dtype)
        if self.options.memory_format is not None and self.options.memory_format == _FORMATS.get(tensor.dim()):
            tensor = tensor.contiguous(memory_format=self.options.memory_format)
        return tensor


class _Streamed(_Here):
    """Copies on a stream of their own. A batch comes with an event that says when it has arrived."""

    runs_ahead = True

    def __init__(self, options: Prefetcher, module: Any):
        super().__init__(options)
        self.module = module
        if self.device.index is None:  # A tensor's has one.
            self.device = torch.device(self.device.type, module.current_device())
        self.stream = module.Stream(device=self.device)
        #: The one that works on what lies on the device already, which a copy must not read too early.
        self.working = module.current_stream(self.device)

    def send(self, batch: Any) -> tuple[Any, Any]:
        if self._has_tensors_there(batch):
            self.stream.wait_stream(self.working)
        with torch.no_grad(), self.module.stream(self.stream):
            arrived = self._arrived(_mapped(batch, self._copied, self.device))
            event = self.module.Event()
            event.record(self.stream)
        return arrived, event

    def take(self, sent: tuple[Any, Any]) -> Any:
        batch, event = sent
        stream = self.module.current_stream(self.device)
        stream.wait_event(event)
        # Their memory is the copies' stream's, which would reuse it while this one still reads.
        for tensor in _tensors(batch):
            if tensor.device == self.device:
                tensor.record_stream(stream)
        return batch

    def _copied(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device:
            tensor.record_stream(self.stream)
        elif self.options.pin_memory and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _has_tensors_there(self, batch: Any) -> bool:
        return any(tensor.device == self.device for tensor in _tensors(batch))


# ---- tensors in containers ----

#: How tensors with so many dimensions may lie.
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _mapped(batch: Any, function: Callable[[Tensor], Tensor], device: torch.device | None = None) -> Any:
    """`batch` with `function` applied to each tensor, once for one that stands in several places. With a device, other
    objects that have a method `to` are sent there by it."""
    made: dict[int, Tensor] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in made:
                made[id(value)] = function(value)
            return made[id(value)]
        if isinstance(value, Mapping):
            return _mapping_like(value, {key: visit(item) for key, item in value.items()})
        if not isinstance(value, type) and callable(getattr(value, "to", None)):  # A packed sequence, a graph.
            return value if device is None else value.to(device)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(visit, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(visit, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            result = copy.copy(value)
            for field in dataclasses.fields(value):
                object.__setattr__(result, field.name, visit(getattr(value, field.name)))
            return result
        return value

    return visit(batch)


def _mapping_like(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same kind: one that has a default, or attributes of its own, keeps them."""
    if not isinstance(value, MutableMapping):
        return items
    result = copy.copy(value)
    result.update(items)
    return result


def _tensors(batch: Any) -> list[Tensor]:
    """Each tensor in a batch, once."""
    found: list[Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            if not any(value is tensor for tensor in found):
                found.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                visit(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                visit(getattr(value, field.name))

    visit(batch)
    return found
