"""`python -m ringattn` is the command `ringattn`."""

from ringattn.cli.entry import main

main()
