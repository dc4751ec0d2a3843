"""Which stream is current, and which rank a thread is."""

from __future__ import annotations

from threading import Thread

import pytest
import torch

from ringattn_core.run import streams
from ringattn_core.run.streams import On, capturing, rank_of_thread, set_rank


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The streams that become current, in order."""
    notes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_stream", notes.append)
    return notes


def test_a_stream_is_current_inside_and_the_one_before_afterwards(notes: list[str]) -> None:
    with On("left", "main"):
        notes.append("launch")
    assert notes == ["left", "launch", "main"]


def test_the_one_before_is_current_after_an_error_too(notes: list[str]) -> None:
    with pytest.raises(LookupError), On("left", "main"):
        raise LookupError
    assert notes == ["left", "main"]


def test_the_current_stream_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: f"stream of {index}")
    assert streams.current(torch.device("cuda", 3)) == "stream of 3"


def test_nothing_is_captured_where_cuda_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not capturing(), "to ask would begin it"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert capturing()


def test_every_thread_is_a_rank_of_its_own() -> None:
    found = dict[int, int]()

    def main(rank: int) -> None:
        assert rank_of_thread() == 0
        set_rank(rank)
        found[rank] = rank_of_thread()

    threads = [Thread(target=main, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {rank: rank for rank in range(3)} and rank_of_thread() == 0
