"""Which transport a group and a schedule get."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ringattn_comms.backends.torch_dist import TorchDist
from ringattn_comms.communicator import Communicator
from ringattn_comms.one_sided import OneSided
from ringattn_comms.ring import Ring
from ringattn_comms.waves import Waves
from ringattn_core.plan.route import travels_whole
from ringattn_core.plan.schedule import Schedule
from ringattn_core.run.transport import KV, LocalTransport, Transport

Group = dist.ProcessGroup | DeviceMesh | Communicator | None
"""A process group, a one-dimensional device mesh, a communicator of one's own, or None for all processes."""


def communicator(group: Group) -> Communicator:
    """This rank's end of a group.

    Raises TypeError for what is no group, and ValueError for a mesh of several dimensions, for a group that this
    process is not in, and for None where torch.distributed was not initialised.
    """
    if isinstance(group, Communicator):
        return group
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(
                f"A device mesh of {group.ndim} dimensions {group.mesh_dim_names} was given where one dimension is "
                'needed: name the one along which the sequence is sharded, as in mesh["cp"].'
            )
        group = group.get_group()
    # A process gets a number from `new_group` for a group that it is not in.
    if not (group is None or isinstance(group, dist.ProcessGroup) or group == dist.GroupMember.NON_GROUP_MEMBER):
        raise TypeError(
            "A group must be a ProcessGroup, a one-dimensional DeviceMesh, a Communicator, or None for all processes; "
            f"got {group!r}. Layouts and routes go by their names, as in ContextParallel(group, layout='zigzag')."
        )
    if not dist.is_initialized():
        raise ValueError(
            "There is no default process group: call torch.distributed.init_process_group first (torchrun sets what it "
            "needs), or give the group explicitly."
        )
    if group is not None and dist.get_rank(group) < 0:
        raise ValueError(
            f"This process (global rank {dist.get_rank()}) is not in the group that was given: every process passes "
            "the group that it belongs to."
        )
    return TorchDist(group)


def connect(group: Group, schedule: Schedule, kv: KV) -> Transport:
    """The transport of one pass: of a group, a schedule of this rank and its keys and values.

    One-sided where the ranks' devices can address each other's memory and the ranks know what the others need; else
    from neighbour to neighbour if every hop is a ring's, and straight from the owners if not.

    Raises what `communicator` does, and ValueError for a device that the group has no backend for.
    """
    comm = communicator(group)
    if comm.size == 1:
        return LocalTransport(schedule, kv)
    device = kv.k.device
    if not travels_whole(schedule.route) and (shared_buffers := comm.shared_buffers(device)):
        return OneSided(schedule, kv, shared_buffers)
    return (Ring if schedule.shifts else Waves)(schedule, kv, comm, comm.second_communicator(device))
