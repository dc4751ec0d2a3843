"""Tests mirror the sources, file for file; a source without a test of that name says here what tests it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "core": ROOT / "packages/core/src/ringattn_core",
    "comms": ROOT / "packages/comms/src/ringattn_comms",
    "adapters": ROOT / "packages/adapters/src/ringattn",
}
# A new source file has a test of its name. What is in these lists is tested together with others, and they only get
# shorter.
TESTED_BY = {
    "core": {
        "tests/adapters/test_bad_input.py": ["errors.py"],
        "tests/comms/test_transports.py": ["run/transport.py"],
        "tests/core/kernels/test_choose.py": ["kernels/torch_flash.py"],
        "tests/core/kernels/test_package_kernels.py": [
            *(
                "kernels/flash_attn_2.py",
                "kernels/flash_attn_3.py",
                "kernels/flash_attn_4.py",
                "kernels/lengths.py",
                "optional.py",
            ),
        ],
        "tests/core/kernels/test_reference.py": ["kernels/finite.py", "run/kernel.py"],
        "tests/core/look/test_verify.py": ["look/sound.py", "look/table.py"],
        "tests/core/plan/test_band.py": ["plan/band_join.py", "plan/stretches.py"],
        "tests/core/plan/test_launch_counts.py": ["plan/launches.py"],
        "tests/core/plan/test_many.py": ["plan/chunks.py", "plan/columns.py"],
        "tests/core/plan/test_mask_planner.py": [
            *("look/mask_cells.py", "plan/mask_schedule.py", "plan/mask_step.py", "plan/placed.py"),
        ],
        "tests/core/plan/test_planner.py": ["plan/alive.py", "plan/arrange.py", "plan/lines.py", "plan/local_rows.py"],
        "tests/core/run/test_execute.py": ["run/gradient.py"],
        "tests/core/run/test_fused.py": ["run/fused_merge.py", "run/fused_parts.py", "run/row_flags.py"],
    },
    "comms": {
        "tests/adapters/test_agree.py": ["header.py"],
        "tests/adapters/test_processes.py": ["backends/host_channel.py", "backends/objects.py"],
        "tests/comms/test_communicator.py": ["backends/threads.py"],
        "tests/comms/test_transports.py": [
            *("coalesced_rows.py", "connect.py", "packed_kv.py", "ring.py", "shared_buffer.py", "waves.py"),
        ],
        "tests/gpu/test_processes.py": ["backends/symmetric.py"],
    },
    "adapters": {
        "tests/adapters/cli": [
            *("cli/checking.py", "cli/choices.py", "cli/comparison.py", "cli/doctor.py", "cli/drawing.py"),
            *("cli/entry.py", "cli/exact.py", "cli/group.py", "cli/main.py", "cli/pictures.py"),
            *("cli/plan.py", "cli/progress.py", "cli/reference.py", "cli/report.py", "cli/sizes.py"),
            *("cli/smollm.py", "cli/worker.py"),
        ],
        "tests/adapters/compat": [
            *("compat/alias.py", "compat/ring_flash_attn/llama3_flash_attn_varlen.py"),
            *("compat/ring_flash_attn/ring_flash_attn.py",),
            *("compat/ring_flash_attn/ring_flash_attn_varlen.py",),
            *("compat/ring_flash_attn/stripe_flash_attn.py", "compat/ring_flash_attn/triton_utils.py"),
            *("compat/ring_flash_attn/zigzag_ring_flash_attn.py",),
            *("compat/ring_flash_attn/zigzag_ring_flash_attn_varlen.py",),
        ],
        "tests/adapters/hf": [
            *("hf/batch.py", "hf/cache_layer.py", "hf/data_parallel.py", "hf/hook.py", "hf/hybrid.py"),
            *("hf/inputs.py", "hf/layers.py", "hf/logits.py", "hf/logprobs.py", "hf/neftune.py"),
            *("hf/mask_patterns.py", "hf/outputs.py", "hf/packing.py", "hf/parallel.py", "hf/partial.py"),
            *("hf/positions.py", "hf/seen.py", "hf/shared_prompts.py", "hf/temperature.py"),
            *("hf/random_state.py", "hf/register.py", "hf/relay.py", "hf/rope.py", "hf/states.py"),
            *("hf/towers.py",),
        ],
        "tests/adapters/test_attention.py": [
            *("checks.py", "choice.py", "compiled.py", "conventions.py", "extras.py", "family.py"),
            *("functions.py", "native.py", "no_compile.py", "planned.py", "tensors.py", "unshard.py"),
            *("version.py",),
        ],
    },
}


def has_test(package: str, source: Path) -> bool:
    """Is there a test of this name in the folder of tests that mirrors the source's, or in one above it?"""
    folders = [ROOT / "tests" / package / folder for folder in source.parents]
    return any((folder / f"test_{source.name}").exists() for folder in folders)


def untested(package: str) -> set[str]:
    """The source files without a test of their name."""
    base = SOURCES[package]
    sources = [path.relative_to(base) for path in base.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(sources) > 15
    return {source.as_posix() for source in sources if not has_test(package, source)}


@pytest.mark.parametrize("package", SOURCES)
def test_every_source_has_a_test_of_its_name_or_says_what_tests_it(package: str) -> None:
    listed = {source for sources in TESTED_BY[package].values() for source in sources}
    found = untested(package)
    assert not found - listed, "each of these needs a test of its name: tests/<package>/<folder>/test_<name>.py"
    assert not listed - found, "these have a test of their name, or are gone: take them off the list"


def test_what_is_named_exists() -> None:
    for tests in TESTED_BY.values():
        assert all((ROOT / path).exists() for path in tests)


def test_a_new_source_without_a_test_is_noticed() -> None:
    assert has_test("core", Path("plan/layout.py")) and has_test("comms", Path("backends/exchange.py"))
    assert not has_test("core", Path("plan/newest.py")) and not has_test("core", Path("look/layout.py"))
