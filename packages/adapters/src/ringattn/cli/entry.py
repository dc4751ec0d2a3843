"""Where the command `ringattn` begins: it says what to install where the extra `cli` is missing."""

from __future__ import annotations

import sys

from ringattn.extras import missing


def main() -> None:
    """Run the command line."""
    reason = missing("The command line", "cli", "rich", "typer")
    if reason:
        sys.exit(reason)
    from ringattn.cli.main import app

    app()
