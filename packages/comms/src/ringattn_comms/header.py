"""The header that a rank sends before a pass, and what ranks conclude from the headers of all of them.

number  action         terms                          about
41      forward        {"layout": "zigzag", ...}
42      backward of 41 {"layout": "zigzag", ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

SIZE = 4096  # bytes that a header takes at most: two texts and all terms
_PROTOCOL = "ringattn agreement 1"  # the first line; it changes when this file changes what a header is
_TERM, _TERMS = 96, 2600  # bytes of one value, and of all terms
_TEXT = 600  # bytes of a message, or of what a rank says about itself
_NOT_GIVEN = "not given"  # in place of a term that a rank does not state
_BEGINNINGS = {"forward", "introduction", "shard"}  # ranks that differ in their arguments may begin a call with each


class AgreementError(Exception):
    """Ranks of a group that should agree do not: every rank of the group raises one of its kinds."""


class DisagreementError(AgreementError, ValueError):
    """The ranks begin the same pass with different arguments."""


class RefusedError(AgreementError, ValueError):
    """Another rank has refused its input, so this pass does not take place."""


class OutOfStepError(AgreementError, RuntimeError):
    """The ranks begin different passes: one has skipped, repeated or added a call."""


class Header(NamedTuple):
    """What one rank says."""

    number: int  # passes that this rank has begun on this group
    action: str  # "forward", "backward of 41", "unshard"
    terms: bytes  # what all ranks have to say alike: `encoded`
    about: str = ""  # what this rank says about itself, such as its device; ranks may differ in it
    refused: str = ""  # why this rank does not take part

    def encode(self) -> bytes:
        """The header as at most `SIZE` bytes; spaces behind it mean nothing."""
        return encode(*self)

    @classmethod
    def decode(cls, row: bytes) -> Header:
        """The inverse of `encode`."""
        _, number, action, about, refused, terms = row.rstrip().split(b"\n")
        return cls(int(number), action.decode(), terms, json.loads(about), json.loads(refused))


def encode(number: int, action: str, terms: bytes, about: str = "", refused: str = "") -> bytes:
    """What `Header.encode` returns, without the object: a host does this before each pass."""
    return f"{_PROTOCOL}\n{number}\n{action}\n{_text(about)}\n{_text(refused)}\n".encode() + terms


def _text(text: str) -> str:
    """As JSON in one line, cut to what a header has room for."""
    return json.dumps(text.encode()[:_TEXT].decode(errors="ignore"), ensure_ascii=False) if text else '""'


@lru_cache(1024)
def encoded(terms: tuple[tuple[str, object], ...]) -> bytes:
    """Names and values that all ranks have to say alike, as part of a header. What is too long is cut, and hashed."""
    text = json.dumps({name: _short(str(value)) for name, value in terms}).encode()
    return text if len(text) <= _TERMS else json.dumps({"hash of all arguments": _hash(text)}).encode()


def _short(value: str) -> str:
    if len(value) <= _TERM:
        return value
    return f"{value[: _TERM // 2]}... ({len(value)} characters, hash {_hash(value.encode())})"


def _hash(text: bytes) -> str:
    return blake2b(text, digest_size=8).hexdigest()


def compare(rows: Sequence[bytes]) -> None:
    """Raise what `AgreementError` has kinds of, unless the headers of all ranks agree; `rows` are in rank order."""
    if rows.count(rows[0]) == len(rows):
        return
    for rank, row in enumerate(rows):
        if not row.startswith(_PROTOCOL.encode() + b"\n"):
            raise DisagreementError(
                f"rank {rank} of this group runs another version of ringattn, whose headers differ: install the same "
                "version on all ranks."
            )
    headers = [Header.decode(row) for row in rows]
    for rank, header in enumerate(headers):
        if header.refused:
            raise RefusedError(f"rank {rank} refused its input: {header.refused}")
    actions = {header.action for header in headers}
    if len(actions) == 1 or actions <= _BEGINNINGS:
        _compare_terms([json.loads(header.terms) for header in headers], all_of_them=len(actions) == 1)
    _compare_order(headers)


def _compare_terms(said: Sequence[Mapping[str, str]], *, all_of_them: bool) -> None:
    """Raise for the first term that differs; one action has the same terms on all ranks, two may share only some."""
    for name in dict.fromkeys(name for terms in said for name in terms):
        values = [terms.get(name, _NOT_GIVEN) for terms in said]
        for rank, value in enumerate(values):
            if value != values[0] and (all_of_them or _NOT_GIVEN not in (value, values[0])):
                raise DisagreementError(
                    f"The ranks of a group ask for different attention: {name} is {values[0]} on rank 0 and {value} "
                    f"on rank {rank}. All ranks call attention with the same arguments, and with their share of q, k "
                    "and v."
                )


def _compare_order(headers: Sequence[Header]) -> None:
    for rank, header in enumerate(headers):
        if (header.number, header.action) != (headers[0].number, headers[0].action):
            raise OutOfStepError(
                f"The ranks of a group are out of step: rank 0 begins {_described(headers[0])}, and rank {rank} "
                f"{_described(header)}. All ranks make the same calls in the same order, forward and backward: look "
                "for a branch that some ranks take and others do not, such as a skipped batch, an evaluation, or a "
                "second backward."
            )


def _described(header: Header) -> str:
    """For example "pass 42, backward of 41": numbers count the passes of this group."""
    return f"pass {header.number}, {header.action}"
