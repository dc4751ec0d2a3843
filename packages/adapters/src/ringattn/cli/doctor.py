"""`ringattn doctor`: what is installed, which kernels and backends work here, and why the others do not."""

from rich.console import Console


def doctor() -> None:
    """Say what is installed, which kernels and backends work on this machine, and why the others do not.

    Example: ringattn doctor
    """
    from ringattn.cli.report import report  # which imports PyTorch

    report(Console(highlight=False))
