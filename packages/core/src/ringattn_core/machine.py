"""What a device, its host and its links can do, in the few numbers that a prediction needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """How fast messages travel, with both directions busy."""

    latency: float  # seconds
    bandwidth: float  # bytes per second and direction, of one device

    def time(self, size: float) -> float:
        """Seconds for a message of `size` bytes; nothing takes no time."""
        return self.latency + size / self.bandwidth if size else 0.0


@dataclass(frozen=True, slots=True)
class Kernels:
    """How fast attention kernels run. Small launches are slower by what every launch loses at its start and its end."""

    flops: float  # per second, of a launch without end
    ramp: float  # seconds that a launch loses while it fills the device and while it runs dry
    call: float  # seconds of the host's time for each launch

    def time(self, flop: float) -> float:
        """Seconds of the device's time for a launch."""
        return self.ramp + flop / self.flops


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices of one kind, all linked with each other."""

    forward: Kernels
    backward: Kernels
    memory: float  # bytes per second that a fused merge reads and writes
    two_sided: Link  # send and receive, between any number of ranks at once
    collective: Link  # all-gather and reduce-scatter
    one_sided: Link  # a copy out of another device's memory


# All but `memory` was measured in November 2026 on two H200s joined by NVLink (NV18), with PyTorch 2.11, NCCL 2.28.9
# and flash-attn-4 4.0.0b36 in bf16, 32 query heads, 8 kv heads, head_dim 128. TFLOP/s for 4k, 8k, 16k and 32k tokens:
# full, 555, 637, 665, 665 forward and 574, 610, 609, 620 backward; causal, 456, 528, 669, 649 and 448, 533, 578, 606.
H200 = Machine(
    forward=Kernels(
        flops=680e12,  # fits the full launches above with the ramp below, to 2 %
        ramp=90e-6,  # the same fit; also what eight launches of a ring lose against one of the same work
        call=71e-6,  # host time per call, forward
    ),
    backward=Kernels(
        flops=625e12,  # fits the full launches above with the ramp below, to 5 %
        ramp=150e-6,  # what the backward launches of a ring of 8 lose: 130 us at 4,096 local tokens, 300 at 8,192
        call=100e-6,  # host time per call, backward
    ),
    memory=3.8e12,  # not measured: four fifths of the 4.8 TB/s in NVIDIA's data sheet
    # NCCL send/recv takes 82, 98, 148 and 468 us for 1, 8, 32 and 128 MiB.
    two_sided=Link(latency=70e-6, bandwidth=330e9),
    # NCCL all_gather takes 29, 65, 159 and 550 us.
    collective=Link(latency=30e-6, bandwidth=258e9),
    # copy_ from a peer's symmetric memory takes 17, 27, 95 and 365 us, a barrier 8 us.
    one_sided=Link(latency=8e-6, bandwidth=373e9),
)
