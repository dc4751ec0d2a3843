"""Streams of a GPU that only take notes of what they are asked for."""

from __future__ import annotations


class Stream:
    """A stream that notes whom it waits for."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def wait_stream(self, other: Stream) -> None:
        self.notes.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        return self.notes[-1]

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")
