"""What runs from a terminal: `ringattn demo`, `plan`, `draw` and `doctor`."""
