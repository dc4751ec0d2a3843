"""Operations, bytes and memory, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

from plans import Case, causal
from ringattn_core.look.shape import Shape, peak_bytes
from ringattn_core.plan.layout import contiguous, zigzag
from ringattn_core.plan.route import gather, ring, waves

SHAPE = Shape(num_heads=4, num_kv_heads=2, head_dim=8)


def test_a_token_is_a_key_and_a_value_of_every_kv_head() -> None:
    assert SHAPE.token(2) == 2 * (8 + 8) * 2
    assert replace(SHAPE, head_dim_v=4).token(4) == 2 * (8 + 4) * 4


def test_two_products_forward_and_five_backward() -> None:
    assert SHAPE.flop(10, backward=False) == 4 * 10 * (2 * 2 * 8)
    assert SHAPE.flop(10, backward=True) == 4 * 10 * (2 * 5 * 8)
    wide = replace(SHAPE, head_dim=12)
    assert replace(wide, head_dim_v=8).flop(1, backward=True) == 4 * 2 * (3 * 12 + 2 * 8)


def test_forward_memory_of_a_ring() -> None:
    schedule = causal(zigzag, ring, 4, 32)[0]
    results = 8 * 4 * (8 * 2 + 4)  # out in 16 bits and lse of 8 tokens
    running = 8 * 4 * 8 * (4 + 2)  # in float32, and one launch's block in 16 bits
    shards = 2 * 8 * SHAPE.token(2)  # one at hand and one arriving
    assert peak_bytes(schedule, SHAPE, backward=False, one_sided=False) == results + running + shards


def test_backward_memory_of_a_ring() -> None:
    schedule = causal(zigzag, ring, 4, 32)[0]
    results = 8 * 4 * (8 * 2 + 2 * 4)  # out in 16 bits, lse and delta
    running = 8 * 4 * 8 * (4 + 2)  # dq in float32, and one launch's in 16 bits
    shards = 2 * 8 * (SHAPE.token(2) + SHAPE.token(4))  # of keys, and of their gradients
    assert peak_bytes(schedule, SHAPE, backward=True, one_sided=False) == results + running + shards


def test_a_wave_holds_whole_shards_and_one_sided_a_window_instead() -> None:
    schedule = causal(zigzag, waves(2), 4, 32)[3]
    assert schedule.steps[1].fetched == 4 + 4 + 4 + 0
    two_sided, one_sided = (peak_bytes(schedule, SHAPE, backward=False, one_sided=side) for side in (False, True))
    shards, window = 3, 1 + 3  # the others', against the own one and a slot for each other rank's gradients
    assert two_sided - one_sided == (shards - window) * schedule.shard_size * SHAPE.token(2)


def test_more_sources_at_once_need_more_memory_and_more_head_groups_less() -> None:
    shape = replace(SHAPE, num_kv_heads=4)
    of_a_group = replace(shape, num_heads=shape.num_heads // 4, num_kv_heads=1)
    in_a_ring, gathered = (Case(zigzag, route, (0, 4096), (0, 4096), 8).plan()[0] for route in (ring, gather))
    asked = (in_a_ring, shape), (gathered, of_a_group), (gathered, shape)
    needed = [peak_bytes(*each, backward=True, one_sided=False) for each in asked]
    assert needed == sorted(set(needed))


def test_a_rank_without_tokens_needs_its_buffers_only() -> None:
    schedule = causal(contiguous, ring, 8, 3)[0]
    assert schedule.query_length == 0
    assert peak_bytes(schedule, SHAPE, backward=False, one_sided=False) == 2 * schedule.shard_size * SHAPE.token(2)
