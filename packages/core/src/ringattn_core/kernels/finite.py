"""Whether the tensors of a launch and their products are finite: if not, a masked cell may still spread NaN.

In a product of matrices a masked cell has the weight 0, and 0 * NaN and 0 * inf are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ringattn_core.run.kernel import accumulator_dtype


def finite(rows: Sequence[Tensor], columns: Sequence[Tensor], scale: float) -> bool:
    """No NaN and no inf, and no product of a row with a column, scaled, that leaves the accumulator's range.

    Norms bound the products (Cauchy-Schwarz), and are the fastest way to read every number once. On a GPU the host
    would have to wait for them, so there the answer is always True.
    """
    if rows[0].device.type != "cpu":
        return True
    dtype = accumulator_dtype(rows[0].dtype)
    of_rows, of_columns = (
        sum(float(torch.linalg.vector_norm(x, dtype=dtype)) for x in tensors) for tensors in (rows, columns)
    )
    return of_rows * of_columns * max(scale, 1.0) <= torch.finfo(dtype).max
