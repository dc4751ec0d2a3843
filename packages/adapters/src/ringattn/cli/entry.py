"""Where the command `ringattn` begins: it says what to install where the extra `cli` is missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from ringattn.cli.main import app
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(f"The command line needs {error.name}: python -m pip install 'ringattn[cli]'")
    app()
