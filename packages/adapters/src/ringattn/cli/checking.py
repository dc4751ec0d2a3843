"""`ringattn check`: is attention exact on this machine, for every layout, route and kernel?"""

import typer


def check() -> None:
    """Compare attention with float64 on this machine: every layout, route and kernel, forward and backward.

    Four ranks, which are threads, take some seconds. It fails if anything is wrong. Example: ringattn check
    """
    from ringattn.check import main  # which imports PyTorch

    raise typer.Exit(main())
