"""Which points no other point beats in every objective."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error


def pareto_front(points: Any) -> list[int]:
    r"""Numbers of the points that are dominated by no other point; less is better in every objective.

    $$F = \{i : \nexists\, j : p_j \preceq p_i\}, \qquad p_j \preceq p_i \iff (\forall k : p_{jk} \le p_{ik}) \wedge
    (\exists k : p_{jk} < p_{ik}),$$ with $p_{ik}$ objective $k$ of point $i$. Of equal points only the first is in
    the front.

    Args:
        points: array of shape (points, objectives); infinite values are allowed.

    Returns:
        The numbers, ordered by the first objective, then by the second, and so on. With two objectives the second one
        falls strictly along the front.

    Raises:
        ArgumentError: if `points` has another shape or holds NaN.

    Example:
        >>> from keras_sensprune.formulas.pareto import pareto_front
        >>> pareto_front([(3.0, 1.0), (1.0, 2.0), (2.0, 2.0), (2.0, 1.5)])
        [1, 3, 0]
    """
    values = np.asarray(points, float)
    if values.size == 0:
        return []
    if values.ndim != 2 or np.isnan(values).any():
        raise argument_error("points", "an array of shape (points, objectives) without NaN", points)
    # What dominates a point, or equals it and comes first, stands before it in this order.
    order = np.lexsort(values.T[::-1])
    front: list[int] = []
    for number in order.tolist():
        if not (values[front] <= values[number]).all(axis=1).any():
            front.append(number)
    return front
