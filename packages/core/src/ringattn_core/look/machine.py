"""What a device, its host and its links can do, in the few numbers that a prediction needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf


@dataclass(frozen=True, slots=True)
class Link:
    """How fast messages travel, with both directions busy."""

    latency: float  # seconds
    bandwidth: float  # bytes per second and direction, of one device
    copy: float = 0.0  # seconds until one more part of a message is under way

    def time(self, size: float, parts: int = 1) -> float:
        """Seconds for a message of `size` bytes in `parts` parts; 0 for an empty message."""
        return self.latency + (parts - 1) * self.copy + size / self.bandwidth if size else 0.0


@dataclass(frozen=True, slots=True)
class Kernels:
    """How fast attention kernels run.

    Every launch loses something at its start and its end, and every row of queries is loaded and put away: so small
    launches are slower, and short sequences.
    """

    flops: float  # per second, of a launch without end
    ramp: float  # seconds that a launch loses while it fills the device and while it runs dry
    call: float  # seconds of the host's time for each launch
    row: int = 0  # what a row costs, in keys, in addition to those that it sees

    def time(self, flop: float) -> float:
        """Seconds of the device's time for a launch."""
        return self.ramp + flop / self.flops


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices of one kind, all linked with each other."""

    forward: Kernels
    backward: Kernels
    memory: float  # bytes per second that a fused merge reads and writes, as if attention hid none of it
    two_sided: Link  # send and receive, between any number of ranks at once
    collective: Link  # all-gather and reduce-scatter
    one_sided: Link  # a copy out of another device's memory
    capacity: float = inf  # bytes of memory of a device

    def running(self, speed: tuple[float, float]) -> Machine:
        """The machine with a kernel of this speed, forward and backward, as a share of FlashAttention 4's."""
        forward, backward = speed
        return replace(
            self,
            forward=replace(self.forward, flops=self.forward.flops * forward),
            backward=replace(self.backward, flops=self.backward.flops * backward),
        )

    def slower(self, times: float) -> Machine:
        """A machine for a share of the work: all work and bytes take `times` as long, with memory / `times`.

        To begin a launch or a message takes as long.
        """

        def kernels(kind: Kernels) -> Kernels:
            return replace(kind, flops=kind.flops / times)

        def link(kind: Link) -> Link:
            return replace(kind, bandwidth=kind.bandwidth / times)

        return Machine(
            forward=kernels(self.forward),
            backward=kernels(self.backward),
            memory=self.memory / times,
            two_sided=link(self.two_sided),
            collective=link(self.collective),
            one_sided=link(self.one_sided),
            capacity=self.capacity / times,
        )


# Kernels, memory and one-sided copies are fitted to what `benchmarks/against_peers.py` and `predicted_vs_measured.py`
# measured in November 2026 on two and four GPUs of a kind: flash-attn-4 4.0.0b36 in bf16, 32 query heads, 8 kv heads,
# head_dim 128, PyTorch 2.11, launches side by side, which hide part of every ramp and of every sum. Very long launches
# run at a GPU's power limit, up to 9 % slower than these numbers say.
# Two-sided links were timed on two H200s joined by NVLink (NV18): NCCL 2.28.9 send/recv takes 82, 98, 148 and 468 us
# for 1, 8, 32 and 128 MiB, all_gather 29, 65, 159 and 550 us. `copy_` from a peer's symmetric memory takes 17, 27, 95
# and 365 us by itself, 373 GB/s; several at a time during attention are slower. Two H100s have the same links.
_LINKS = {
    "two_sided": Link(latency=70e-6, bandwidth=330e9),
    "collective": Link(latency=30e-6, bandwidth=258e9),
    "one_sided": Link(latency=10e-6, bandwidth=280e9, copy=5e-6),
}
H100 = Machine(
    forward=Kernels(flops=745e12, ramp=7e-6, call=71e-6, row=400),
    backward=Kernels(flops=635e12, ramp=20e-6, call=100e-6, row=260),
    memory=4e12,
    capacity=79 * 2**30,
    **_LINKS,
)
H200 = Machine(
    forward=Kernels(flops=730e12, ramp=7e-6, call=71e-6, row=400),
    backward=Kernels(flops=640e12, ramp=10e-6, call=100e-6, row=260),
    memory=8e12,
    capacity=139 * 2**30,
    **_LINKS,
)
MACHINES = {"h100": H100, "h200": H200}
"""Machines by what their devices' names contain."""


def machine_of(name: str) -> Machine:
    """The machine of a device's name, such as "NVIDIA H200"; of one that is not known, the newest that is."""
    return next((machine for key, machine in MACHINES.items() if key in name.lower()), H200)
