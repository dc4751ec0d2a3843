"""What runs from a terminal: `python -m ringattn.cli.demo`."""
