"""The prefetcher: what it hands over, in which order, and, with streams that only take notes, what it asks of a GPU."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import warpwright
from warpwright.data import Prefetcher

Pair = collections.namedtuple("Pair", "image label")


@dataclasses.dataclass(frozen=True)
class Record:
    tokens: Tensor
    name: str


class Sent:
    """An object that knows how to go to a device."""

    def __init__(self, device: str = "cpu"):
        self.device = device

    def to(self, device: torch.device) -> Sent:
        return Sent(str(device))


def _batches(count: int = 5) -> list[Tensor]:
    return [torch.full((2,), float(i)) for i in range(count)]


def _values(batches: Any) -> list[float]:
    return [batch[0].item() for batch in batches]


thread = pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])


@thread
@pytest.mark.parametrize("depth", [1, 3, 9])
def test_order_and_length_are_those_of_the_batches(thread, depth):
    prefetcher = Prefetcher(_batches(), "cpu", depth=depth, thread=thread)
    assert len(prefetcher) == 5
    for _ in range(2):  # Each loop begins anew.
        assert _values(prefetcher) == [0, 1, 2, 3, 4]
    first, second = iter(prefetcher), iter(prefetcher)
    assert _values([next(first), next(first), next(second)]) == [0, 1, 0]
    assert _values(Prefetcher([], "cpu", thread=thread)) == []


@thread
def test_a_data_loader_is_read_as_it_is(thread):
    """Also its shuffling, which is torch's generator's."""
    data = torch.utils.data.TensorDataset(torch.arange(12.0), torch.arange(12))
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)
    torch.manual_seed(0)
    expected = [[t.tolist() for t in batch] for batch in loader]
    torch.manual_seed(0)
    prefetcher = Prefetcher(loader, "cpu", thread=thread)
    assert [[t.tolist() for t in batch] for batch in prefetcher] == expected
    assert len(prefetcher) == 3


@thread
def test_batches_keep_their_kind(thread):
    x, label = torch.ones(2, 3), torch.tensor([1, 2])
    counts = collections.defaultdict(int, a=1)
    batch = {
        "pair": Pair(x, label),
        "list": [x, (label, None)],
        "record": Record(label, "name"),
        "n": 3,
        "counts": counts,
    }
    batch |= {"sent": Sent(), "packed": torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])}
    (found,) = Prefetcher([batch], "cpu", dtype=torch.bfloat16, thread=thread)
    assert list(found) == list(batch)
    assert type(found["pair"]) is Pair
    assert found["pair"].image.dtype == torch.bfloat16
    assert found["pair"].label.dtype == torch.int64
    assert found["list"][0] is found["pair"].image  # One tensor stays one.
    assert type(found["list"][1]) is tuple
    assert found["list"][1][1] is None
    assert torch.equal(found["record"].tokens, label)
    assert found["record"].name == "name"
    assert found["n"] == 3
    assert found["counts"]["absent"] == 0
    assert found["sent"].device == "cpu"
    assert torch.equal(found["packed"].batch_sizes, batch["packed"].batch_sizes)
    assert batch["pair"].image is x  # What was given stays as it was.


def test_what_is_made_on_the_device():
    images = torch.randint(0, 255, (2, 3, 4, 5), dtype=torch.uint8)
    norm = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    (found,) = Prefetcher([(images, images.float(), torch.ones(3, 4))], "cpu", **norm)
    assert [t.dtype for t in found] == [torch.uint8, torch.bfloat16, torch.bfloat16]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in found[:2])
    volumes = torch.ones(1, 2, 3, 4, 5)
    (found,) = Prefetcher([volumes], "cpu", memory_format=torch.channels_last_3d)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)

    weight = torch.ones((), requires_grad=True)
    (found,) = Prefetcher([images], "cpu", transform=lambda x: x.float().div(255) * weight)
    assert torch.equal(found, images.float() / 255)
    assert not found.requires_grad


@thread
@pytest.mark.parametrize("where", ["batches", "transform"])
def test_an_exception_comes_in_its_turn(thread, where):
    def source() -> Iterator[Tensor]:
        for i, batch in enumerate(_batches()):
            if i == 3 and where == "batches":
                raise KeyError("the fourth")
            yield batch

    def transform(batch: Tensor) -> Tensor:
        if where == "transform" and batch[0] == 3:
            raise KeyError("the fourth")
        return batch

    seen: list[Tensor] = []
    with pytest.raises(KeyError, match="the fourth"):  # extend keeps what came before.
        seen.extend(Prefetcher(source(), "cpu", depth=2, transform=transform, thread=thread))
    assert _values(seen) == [0, 1, 2]


@thread
def test_a_loop_that_is_left_lets_go(thread):
    """The generator behind it is closed, and its thread ends, also while nobody takes what it has."""
    closed = threading.Event()

    def endless() -> Iterator[Tensor]:
        try:
            while True:
                yield torch.zeros(1)
        finally:
            closed.set()

    before = threading.active_count()
    iterator = iter(Prefetcher(endless(), "cpu", depth=2, thread=thread))
    next(iterator)
    assert threading.active_count() == before + thread
    del iterator
    assert closed.wait(5)
    assert threading.active_count() == before


def test_a_thread_makes_batches_while_one_is_worked_on():
    made = []

    def source() -> Iterator[Tensor]:
        for batch in _batches():
            made.append(batch)
            yield batch

    iterator = iter(Prefetcher(source(), "cpu", depth=2, thread=True))
    next(iterator)
    limit = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < limit:  # The one taken, two in the queue, one in the thread's hand.
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 4
    iterator.close()

    made.clear()
    iterator = iter(Prefetcher(source(), "cpu"))  # And without one nothing is made before it is asked for.
    next(iterator)
    assert len(made) == 1


def test_what_it_cannot_take():
    for error, message, arguments in (
        (TypeError, "batches must be iterable, got a int", {"batches": 3}),
        (ValueError, "depth must be a number of batches, at least 1, got 0", {"depth": 0}),
        (TypeError, "dtype must be a floating type, got torch.int64", {"dtype": torch.int64}),
        (ValueError, "memory_format must be one of torch.channels_last, ", {"memory_format": torch.contiguous_format}),
    ):
        with pytest.raises(error, match=f"warpwright: Prefetcher: {message}"):
            Prefetcher(**({"batches": [], "device": "cpu"} | arguments))
    with pytest.raises(TypeError, match="has no len"):
        len(Prefetcher(iter([]), "cpu"))


# ---- streams ----


class _Notes:
    """torch.cuda for the device "meta": its streams and events write down what is asked of them."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        notes, self.inside = self, ["main"]

        class Stream:
            def __init__(self, device: torch.device | None = None, name: str = "copies"):
                self.name = name

            def wait_event(self, event: Event) -> None:
                notes.log.append(("wait", self.name, event.number))

            def wait_stream(self, stream: Stream) -> None:
                notes.log.append(("wait for", self.name, stream.name))

        class Event:
            count = 0

            def record(self, stream: Stream) -> None:
                Event.count += 1
                self.number = Event.count
                notes.log.append(("record", stream.name, self.number))

        self.Stream, self.Event, self.main = Stream, Event, Stream(name="main")

    def current_stream(self, device: torch.device) -> Any:
        return self.main

    def current_device(self) -> int:
        return 0

    def stream(self, stream: Any) -> Any:
        notes = self

        class Inside:
            def __enter__(self) -> None:
                notes.inside.append(stream.name)

            def __exit__(self, *_: Any) -> None:
                notes.inside.pop()

        return Inside()


@pytest.fixture
def notes(monkeypatch) -> _Notes:
    """Notes in place of a GPU, whose tensors are meta tensors. A copy notes the stream that it stands on."""
    made = _Notes()
    move = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and args[0] == torch.device("meta", 0):
            made.log.append(("copy", made.inside[-1], kwargs.get("non_blocking"), getattr(self, "pinned", False)))
            args = (torch.device("meta"), *args[1:])
        return move(self, *args, **kwargs)

    def pin_memory(self: Tensor) -> Tensor:
        pinned = self.clone()
        pinned.pinned = True
        return pinned

    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "is_pinned", lambda self: getattr(self, "pinned", False))
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: made.log.append(("used by", stream.name)))
    monkeypatch.setattr(Tensor, "device", property(_device_of), raising=False)
    return made


_real_device = Tensor.device


def _device_of(tensor: Tensor) -> torch.device:
    device = _real_device.__get__(tensor)  # type: ignore[attr-defined]
    return torch.device("meta", 0) if device.type == "meta" else device


def test_copies_run_ahead_on_their_own_stream(notes):
    """depth + 1 of them before the first batch is handed over; each waits for its own event alone."""
    iterator = iter(Prefetcher(_batches(4), "meta", depth=2))
    first = next(iterator)
    assert first.device.type == "meta"
    copy = ("copy", "copies", True, True)
    copies = [entry for i in (1, 2, 3) for entry in (copy, ("record", "copies", i))]
    assert notes.log == [*copies, ("wait", "main", 1), ("used by", "main")]
    notes.log.clear()
    next(iterator)
    assert notes.log == [copy, ("record", "copies", 4), ("wait", "main", 2), ("used by", "main")]
    notes.log.clear()
    assert len(list(iterator)) == 2
    assert notes.log == [("wait", "main", 3), ("used by", "main"), ("wait", "main", 4), ("used by", "main")]


def test_transforms_run_beside_the_copies(notes):
    streams = []

    def transform(batch: Tensor) -> tuple[Tensor, Tensor]:
        streams.append(notes.inside[-1])
        return batch, batch + 1

    list(Prefetcher(_batches(1), "meta", transform=transform, pin_memory=False))
    assert streams == ["copies"]
    assert notes.log[0] == ("copy", "copies", True, False)
    assert notes.log[-2:] == [("used by", "main")] * 2  # What it made belongs to the copies' stream, too.


def test_what_lies_on_the_device_is_waited_for(notes):
    """The stream that made it may not be done with it; what lies elsewhere waits for nothing."""
    there = torch.ones(2, device="meta")
    list(Prefetcher([(there, torch.ones(2))], "meta"))
    assert notes.log[0] == ("wait for", "copies", "main")
    assert notes.log[1] == ("used by", "copies")


def test_an_exception_waits_for_the_copies_before_it(notes):
    def source() -> Iterator[Tensor]:
        yield from _batches(2)
        raise KeyError("the third")

    iterator = iter(Prefetcher(source(), "meta", depth=5))
    assert len([next(iterator), next(iterator)]) == 2
    with pytest.raises(KeyError, match="the third"):
        next(iterator)


def test_a_thread_copies_too(notes):
    found = list(Prefetcher(_batches(3), "meta", thread=True))
    assert len(found) == 3
    assert [entry for entry in notes.log if entry[0] == "copy"] == [("copy", "copies", True, True)] * 3
    assert [entry[2] for entry in notes.log if entry[0] == "wait"] == [1, 2, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's own streams")
@thread
def test_on_a_gpu_the_model_sees_what_was_sent(thread):
    """Copies and memory that is reused while a slow stream still reads would show in the sums."""
    batches = [torch.full((1 << 20,), float(i)) for i in range(24)]
    sums = []
    for batch in Prefetcher(batches, depth=3, dtype=torch.float64, thread=thread):
        torch.cuda._sleep(2_000_000)
        sums.append(batch.sum() / batch.numel())
        del batch
    assert torch.stack(sums).tolist() == list(map(float, range(24)))


def test_it_trains_as_without_it():
    torch.manual_seed(0)
    layers = [warpwright.nn.Linear(4, 3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    batches = [(torch.rand(6, 4), torch.randint(0, 3, (6,))) for _ in range(4)]
    for layer, source in zip(layers, (batches, Prefetcher(batches, "cpu", thread=True)), strict=True):
        optimizer = warpwright.optim.SGD(layer.parameters(), lr=0.1)
        for x, y in source:
            optimizer.zero_grad()
            warpwright.nn.CrossEntropyLoss()(layer(x), y).backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)
