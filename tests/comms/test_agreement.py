"""Headers: what is said is what is heard, differences are named, and a side that does not come back is looked after."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from threading import Event, Thread

import pytest

from ringattn_comms import agreement
from ringattn_comms.agreement import Agreement
from ringattn_comms.header import SIZE, DisagreementError, Header, OutOfStepError, RefusedError, compare, encoded

TERMS = encoded((("mask", (-1, 0)), ("layout", "zigzag")))


class Heard:
    """Headers that arrive when they are told to."""

    def __init__(self, rows: Sequence[bytes], arrived: bool = True) -> None:
        self.rows, self.arrived, self.waited = rows, arrived, 0

    def ready(self) -> bool:
        return self.arrived

    def wait(self) -> Sequence[bytes]:
        self.waited += 1
        return self.rows


def test_what_is_said_is_what_is_heard() -> None:
    header = Header(41, "backward of 40", TERMS, about="NVIDIA H200\nfa4", refused="ValueError: ümlaut\n" * 3)
    row = header.encode()
    assert len(row) <= SIZE and Header.decode(row) == Header.decode(row.ljust(SIZE)) == header


def test_a_long_value_is_cut_and_told_apart() -> None:
    first, second = (encoded((("cu_seqlens", (*range(2000), last)),)) for last in (5000, 5001))
    assert first != second and len(first) < 200
    with pytest.raises(DisagreementError, match=r"cu_seqlens is \(0, 1, .*hash \w{16}\) on rank 0 and .*hash"):
        compare([Header(0, "forward", terms).encode() for terms in (first, second)])


@pytest.mark.parametrize("length", [10, 10_000])
def test_everything_fits(length: int) -> None:
    for terms in (24, 500):
        said = encoded(tuple((f"term {place}", "é" * length) for place in range(terms)))
        header = Header(10**9, "backward of 99999999", said, "a\n" * length, "é" * length)
        assert len(header.encode()) <= SIZE and Header.decode(header.encode()).terms == said


@pytest.mark.parametrize("few", [(), (("tensor 0", "x"),)], ids=["none", "one"])
@pytest.mark.parametrize("many", [2, 100], ids=["two", "so many that they are hashed"])
def test_a_term_that_one_rank_does_not_state_is_a_difference(many: int, few: tuple[tuple[str, object], ...]) -> None:
    """Whichever rank has more of them; ranks that begin a call with different actions compare what both state."""
    terms = [encoded(few), encoded(tuple((f"tensor {place}", "x" * 40 if place else "x") for place in range(many)))]
    for said in (terms, terms[::-1]):
        with pytest.raises(DisagreementError, match=r"not given on rank [01]"):
            compare([Header(3, "shard", each).encode() for each in said])
        with pytest.raises(OutOfStepError, match="rank 0 begins pass 3, shard, and rank 1 pass 3, forward"):
            compare([Header(3, action, each).encode() for action, each in zip(("shard", "forward"), said, strict=True)])


@pytest.mark.parametrize(
    ("actions", "kind"),
    [
        (("unshard", "unshard"), DisagreementError),
        (("backward of 2", "backward of 2"), DisagreementError),
        (("forward", "introduction"), DisagreementError),
        (("forward", "shard"), DisagreementError),
        (("forward", "backward of 2"), OutOfStepError),
        (("unshard", "forward"), OutOfStepError),
    ],
)
def test_terms_are_compared_where_ranks_begin_the_same(actions: tuple[str, str], kind: type[Exception]) -> None:
    """One of two calls that differ in their arguments may begin with an introduction; other actions are out of step."""
    terms = TERMS, encoded((("mask", (-1, -1)), ("layout", "zigzag")))
    with pytest.raises(
        kind, match=r"mask is \(-1, 0\) on rank 0" if kind is DisagreementError else "rank 0 begins pass 3"
    ):
        compare([Header(3, action, each).encode() for action, each in zip(actions, terms, strict=True)])


def test_differences_are_named() -> None:
    said = [Header(3, "forward", TERMS)] * 2
    for odd, kind, message in (
        (Header(3, "forward", encoded((("mask", 1), ("layout", "zigzag")))), DisagreementError, r"mask .* 1 on rank 2"),
        (Header(3, "backward of 2", TERMS), OutOfStepError, "rank 0 begins pass 3, forward, and rank 2 pass 3, backw"),
        (Header(4, "forward", TERMS), OutOfStepError, "rank 2 pass 4, forward"),
        (
            Header(3, "refusal", b"{}", refused="ValueError: no"),
            RefusedError,
            "rank 2 refused its input: ValueError: no",
        ),
    ):
        with pytest.raises(kind, match=message):
            compare([header.encode() for header in (*said, odd)])
    compare([header._replace(about=str(rank)).encode() for rank, header in enumerate(said)])
    with pytest.raises(DisagreementError, match="rank 1 of this group runs another version of ringattn"):
        compare([said[0].encode(), b"ringattn agreement 0\n".ljust(SIZE)])


def test_beside_a_gpu_only_what_is_new_is_waited_for() -> None:
    heard: list[Heard] = []
    other = Header(0, "forward", TERMS)

    def say(header: bytes) -> Heard:
        heard.append(Heard([header, other._replace(number=Header.decode(header).number).encode()], len(heard) < 2))
        return heard[-1]

    side = Agreement(0, say)
    for number in range(4):
        with side.turn("forward", TERMS, wait=False) as found:
            assert found == number
    assert [each.waited for each in heard] == [1, 1, 0, 0]  # the first is new, the second has arrived
    other = other._replace(action="backward of 0")
    with side.turn("forward", TERMS, wait=False):
        pass
    heard[2].arrived = heard[3].arrived = heard[4].arrived = True
    with pytest.raises(OutOfStepError), side.turn("forward", TERMS, wait=False):
        raise AssertionError("this pass must not take place")


def test_a_side_that_does_not_come_back_is_released_or_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its caller waits for a GPU; the headers have arrived, and differ."""
    monkeypatch.setattr(agreement, "_PATIENCE", 0.05)
    released: list[bool] = []
    ended: list[int] = []
    monkeypatch.setattr(agreement, "_end", ended.append)
    rows = [Header(1, "forward", TERMS).encode(), Header(1, "backward of 0", TERMS).encode()]
    answers = iter([Heard([Header(0, "forward", TERMS).encode()] * 2), late := Heard(rows, arrived=False)])
    side = Agreement(0, lambda header: next(answers), lambda: released.append(True))
    for _ in range(2):
        with side.turn("forward", TERMS, wait=False):
            pass
    time.sleep(0.3)
    assert not released
    late.arrived = True
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    assert released == [True] and ended == [1]
    assert "ringattn, rank 0: The ranks of a group are out of step" in capsys.readouterr().err


def test_a_side_is_looked_after_while_it_goes_on() -> None:
    """The thread that looks reads the headers under way while the caller adds and takes some."""
    interval = sys.getswitchinterval()
    side, done = Agreement(0, lambda header: Heard([header], arrived=False)), Event()

    def goes_on() -> None:
        while not done.is_set():
            side._pending.append((Heard([]), TERMS))
            side._pending.popleft()

    caller = Thread(target=goes_on)
    caller.start()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200_000):
            assert side.stuck_with(None)[1] is None
    finally:
        sys.setswitchinterval(interval)
        done.set()
        caller.join()
