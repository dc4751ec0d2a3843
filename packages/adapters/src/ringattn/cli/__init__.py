"""What runs from a terminal: `ringattn demo`, `plan`, `draw`, `doctor` and `check`."""
