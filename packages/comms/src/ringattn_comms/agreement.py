"""How the ranks of a group agree before each pass, so that none computes with the messages of another call.

Messages carry no name, and a transport takes the next one for the one it expects. So every pass begins with a header
of fixed size from each rank (`ringattn_comms.header`): the number of the pass on this group, what it does, and all that
the ranks must agree on. Ranks exchange one header for each pass, whatever they are asked for, so that what they differ
in cannot make one of them wait. A rank that refuses its input says so in its header.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from time import monotonic, sleep
from typing import Protocol
from weakref import ref

from ringattn_comms.header import AgreementError, Header, compare, encode

_PENDING = 64  # headers whose answers are outstanding on a GPU, before the host waits for the oldest
_PATIENCE = 2.0  # seconds for which headers that differ may lie before the group is aborted
_ENDS_AFTER = 6  # times as long, before the process ends
_REMEMBERED = 1024  # terms that the other ranks have been seen to share


class Said(Protocol):
    """The headers of all ranks, under way."""

    def ready(self) -> bool:
        """Has every rank's header arrived?"""
        ...

    def wait(self) -> Sequence[bytes]:
        """Every rank's header, in rank order. Raises RuntimeError with the rank whose header does not come."""
        ...


class Turn:
    """A pass inside `with`; what is bound is its number. No generator makes it: that would cost ten times as much."""

    def __init__(self, agreement: Agreement, action: str, terms: bytes, wait: bool, changing: bytes) -> None:
        self._agreement, self._said = agreement, (action, terms, wait, changing)

    def __enter__(self) -> int:
        action, terms, wait, changing = self._said
        return self._agreement.begin(action, terms, wait=wait, changing=changing)

    def __exit__(self, *_: object) -> None:
        self._agreement.end()


class Agreement:
    """One rank's side of a group: it numbers the passes, says what each of them is and hears what the others say.

    say: sends a header to all ranks; what it returns are those of all ranks. release: ends what a GPU waits for, where
    ranks that were not waited for turn out to disagree and this one does not come back to hear of it.
    """

    def __init__(self, rank: int, say: Callable[[bytes], Said], release: Callable[[], None] | None = None) -> None:
        self._rank, self._say, self._number = rank, say, 0
        # What ends the waits of this rank's GPU, where the host does not return; nothing to do so: hosts always return.
        self.releases, self._watched = [release] if release else list[Callable[[], None]](), False
        self._pending, self._shared = deque[tuple[Said, bytes]](), set[bytes]()
        self._introduced = dict[str, tuple[str, ...]]()
        self._busy = Lock()

    def turn(self, action: str, terms: bytes, *, wait: bool = True, changing: bytes = b"") -> Turn:
        """A pass that all ranks make together: inside, the other ranks have agreed to make it too.

        wait: for the headers of all ranks. Where it is False, the host goes on if these terms have been shared before,
            and ranks that are out of step are noticed in one of the next passes: for GPUs, whose hosts are not to wait
            for each other.
        changing: terms that may be others in each pass, and do not make the host wait.
        """
        return Turn(self, action, terms, wait, changing)

    def begin(self, action: str, terms: bytes, *, wait: bool, changing: bytes) -> int:
        """What `turn` does first; the number of the pass. Raises `AgreementError` before any other message is sent."""
        if not self._busy.acquire(blocking=False):
            error = RuntimeError(
                f"Two threads of rank {self._rank} use one group at the same time, and their messages could not be "
                "told apart: give each thread a process group (torch.distributed.new_group)."
            )
            self.refuse(error)
            raise error
        number = self._number
        try:
            self._meet(encode(number, action, _merged(terms, changing)), terms, wait=wait)
        except BaseException:
            self._busy.release()
            raise
        return number

    def end(self) -> None:
        """What `turn` does last."""
        self._busy.release()

    def introduce(self, kind: str, about: str, terms: bytes) -> tuple[str, ...]:
        """What each rank says about itself, in rank order: asked once for each `kind`, by all ranks together."""
        if kind not in self._introduced:
            rows = self._meet(encode(self._number, "introduction", terms, about), terms, wait=True)
            self._introduced[kind] = tuple(Header.decode(row).about for row in rows)
        return self._introduced[kind]

    def refuse(self, error: Exception) -> None:
        """Tell the other ranks that this one does not take part in the next pass."""
        refused = f"{type(error).__name__}: {error}"
        said = self._say(encode(self._number, "refusal", b"{}", refused=refused))
        self._number += 1
        # A process that ends at once would take its header with it. Ranks that come later hear of it later.
        if not _arrives(said, 1.0):
            atexit.register(_arrives, said, 5.0)

    def flush(self) -> None:
        """Give headers under way a few seconds to arrive."""
        for said, _ in list(self._pending):
            _arrives(said, 5.0)

    def stuck_with(self, said: Said | None) -> tuple[Said | None, Exception | None]:
        """The oldest headers that nothing has compared, and if they are still `said`, what is wrong with them."""
        try:
            oldest, _ = self._pending[0]  # Not by an iterator: that fails where the caller adds a header meanwhile.
        except IndexError:
            return None, None
        if oldest is not said or not oldest.ready():
            return oldest, None
        try:
            compare(oldest.wait())
        except (AgreementError, RuntimeError) as error:  # or a rank has ended
            return oldest, error
        return oldest, None

    def _watch(self) -> None:
        """Look after this side from a thread: the caller may wait for a GPU that waits for another pass's message."""
        if self.releases and not self._watched:
            self._watched = True
            atexit.register(_flush, ref(self))
            Thread(target=_watch, args=(ref(self), self._rank, self.releases), daemon=True).start()

    def _meet(self, header: bytes, terms: bytes, *, wait: bool) -> Sequence[bytes]:
        self._number += 1
        self._pending.append((self._say(header), terms))
        wait = wait or terms not in self._shared
        rows: Sequence[bytes] = ()
        while self._pending and (wait or len(self._pending) > _PENDING or self._pending[0][0].ready()):
            said, shared = self._pending.popleft()
            rows = said.wait()
            compare(rows)
            if len(self._shared) == _REMEMBERED:
                self._shared.clear()
            self._shared.add(shared)
        if self._pending:
            self._watch()
        return rows


def _arrives(said: Said, seconds: float) -> bool:
    """Have all ranks' headers arrived, within some seconds?"""
    until = monotonic() + seconds
    while not said.ready() and monotonic() < until:
        sleep(0.001)
    return said.ready()


def _flush(agreement: ref[Agreement]) -> None:
    """A process that ends does not take along the headers that other ranks still wait for."""
    if (side := agreement()) is not None:
        side.flush()


def _watch(agreement: ref[Agreement], rank: int, releases: Sequence[Callable[[], None]]) -> None:
    """Say what is wrong where the caller does not come back to hear of it; release its GPU, or else end the process."""
    said: Said | None = None
    stuck = 0
    while (side := agreement()) is not None:
        said, error = side.stuck_with(said)
        del side
        stuck = stuck + 1 if error is not None else 0
        if stuck == 1:
            sys.stderr.write(
                f"ringattn, rank {rank}: {error} This process has not come back to hear of it, so its GPU may wait for "
                "a message that does not come: its NCCL group is aborted, and its shared buffers are released.\n"
            )
            for release in releases:
                release()
        if stuck == _ENDS_AFTER:
            sys.stderr.write(f"ringattn, rank {rank}: its GPU still waits, so this process ends.\n")
            sys.stderr.flush()
            _end(1)
        sleep(_PATIENCE)


_end = os._exit  # as NCCL's watchdog ends a process


def _merged(terms: bytes, changing: bytes) -> bytes:
    return terms[:-1] + b", " + changing[1:] if changing else terms
