"""`python -m ringattn.cli` is the command `ringattn`."""

from ringattn.cli.entry import main

main()
