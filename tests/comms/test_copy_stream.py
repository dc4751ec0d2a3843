"""The stream on which keys and gradients are copied, with streams that only take notes."""

from __future__ import annotations

import pytest
import torch

from noted_streams import Stream
from ringattn_comms import copy_stream
from ringattn_comms.copy_stream import CopyStream, new_copy_stream

CPU = torch.device("cpu")


class Kept(torch.Tensor):
    """A tensor that notes which stream may still use its memory."""

    def record_stream(self, stream: object) -> None:
        self.users = [*getattr(self, "users", []), stream]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes: list[str] = []
    monkeypatch.setattr(copy_stream, "current", lambda device: Stream("main", notes))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: notes.append(f"now {stream.name}"))
    return notes


def test_what_is_asked_for_inside_runs_on_the_side_and_then_main_is_current_again(notes: list[str]) -> None:
    side = CopyStream(CPU, Stream("side", notes))
    with side.after_main():
        notes.append("copy")
        arrived = side.event()
    notes.append("attention")
    arrived()
    assert notes == [
        *("side waits for main", "now side", "copy", "now main", "attention"),
        "main waits for copy",
    ]


def test_main_is_current_again_after_an_error(notes: list[str]) -> None:
    side = CopyStream(CPU, Stream("side", notes))
    with pytest.raises(LookupError), side.after_main():
        raise LookupError
    assert notes[-1] == "now main"


def test_memory_is_kept_until_the_side_is_done_with_it(notes: list[str]) -> None:
    stream = Stream("side", notes)
    x, y = (torch.zeros(3).as_subclass(Kept) for _ in range(2))
    CopyStream(CPU, stream).keep(x, y)
    assert x.users == y.users == [stream]


def test_a_captured_main_stream_gives_way_for_a_moment(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: notes.append("sleep"))
    side = CopyStream(CPU, Stream("side", notes))
    side.goes_first()
    assert not notes, "outside a graph the side has begun by itself"
    monkeypatch.setattr(copy_stream, "capturing", lambda: True)
    CopyStream(CPU, None).goes_first()
    assert not notes
    side.goes_first()
    assert notes == ["sleep"]


def test_a_cpu_has_no_second_stream() -> None:
    side, x = CopyStream(CPU, new_copy_stream(CPU)), torch.zeros(3).as_subclass(Kept)
    assert side.stream is None
    with side.after_main():
        side.event()()
    side.goes_first()
    side.keep(x)
    assert not hasattr(x, "users")
