r"""Groups of weights that are pruned together: units, blocks along the inputs, and N of M.

A *group* $g$ is a set of weights of one tensor (of two for a recurrent unit); $A_g$ are its surviving (nonzero)
weights and $n_g$ their number. What the rule needs of it:

    sensitivity   S_g = 1/n_g sum_{i in A_g} S_i
    penalty       R_g = 1/2 ||w_g||^2 max(0, 1 - S_g),   with S_g held: dR_g/dw_i = w_i max(0, 1 - S_g)
    score         q_g = sqrt(1/n_g sum_{i in A_g} w_i^2); the group goes if q_g < T

A group of one weight gives back the rule for weights: S, w^2/2 max(0, 1 - S), |w| < T. `docs/structure.md` says why
the mean. Under N of M the weights of a group compete with each other, so sensitivity and penalty stay those of
single weights (a common factor would never change their order), and the score is |w|.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from keras_sensprune.errors import argument_error, integer_argument, number_argument

STRUCTURES = "'weight', 'unit', Block(1, 4), Block(1, 16) or NofM(kept, of)"


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Block:
    """Structure: 4 or 16 consecutive inputs of one unit live and die together.

    These are the shapes for which TFLite has sparse kernels: 1x4 for float32, 1x16 for int8.

    Args:
        units: 1; no kernel takes blocks over several units.
        inputs: 4 or 16 consecutive inputs (Keras kernel axis 0). If the inputs of a layer are not a multiple of it,
            its last block is shorter.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(structure=...)`.

    Raises:
        ArgumentError: for any other shape.

    Example:
        >>> from keras_sensprune import Block
        >>> str(Block(1, 4))
        'Block(1, 4)'
    """

    units: int
    inputs: int

    def __post_init__(self) -> None:
        if not _integer(self.units) or self.units != 1:
            raise argument_error("units", "1", self.units, "Blocks run along the inputs of one unit.")
        if not _integer(self.inputs) or self.inputs not in (4, 16):
            raise argument_error("inputs", "4 or 16", self.inputs, "TFLite has sparse kernels for 1x4 and 1x16 only.")

    def __str__(self) -> str:
        return f"Block({self.units}, {self.inputs})"


@dataclasses.dataclass(frozen=True)
class NofM:
    """Structure: of every `of` consecutive inputs of a unit, the `kept` largest weights survive.

    Args:
        kept: N, the number of weights that a group keeps, at least 1.
        of: M, the length of a group along the inputs (Keras kernel axis 0), more than `kept`. If the inputs of a
            layer are not a multiple of it, its last group is shorter and keeps at most `kept` too.

    Returns:
        A frozen configuration object, for `PruneAtEpochEnd(structure=...)`.

    Raises:
        ArgumentError: if `kept` or `of` is no such integer.

    Example:
        >>> from keras_sensprune import NofM
        >>> str(NofM(kept=2, of=4))
        'NofM(kept=2, of=4)'
    """

    kept: int
    of: int

    def __post_init__(self) -> None:
        integer_argument("kept", self.kept, 1)
        if not _integer(self.of) or self.of <= self.kept:
            raise argument_error("of", f"an integer above kept={self.kept}", self.of)

    def __str__(self) -> str:
        return f"NofM(kept={self.kept}, of={self.of})"


def structure_argument(structure: object) -> str | Block | NofM:
    """`structure` if it is one of the structures.

    Args:
        structure: `"weight"`, `"unit"`, a `Block` or an `NofM`.

    Returns:
        The value.

    Raises:
        ArgumentError: if it is anything else.
    """
    if isinstance(structure, (Block, NofM)) or (isinstance(structure, str) and structure in ("weight", "unit")):
        return structure
    raise argument_error("structure", STRUCTURES, structure)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the entries of one tensor form groups: pad axis 0, reshape, reduce over some axes.

    Attributes:
        shape: of the tensor.
        padding: entries to be added at the end of axis 0; they belong to no group.
        folded: shape after the padding, in which a group is what lies along `axes`.
        axes: the axes of a group in `folded`.
        kept: N of `NofM`; 0 where groups are pruned whole.
    """

    shape: tuple[int, ...]
    padding: int
    folded: tuple[int, ...]
    axes: tuple[int, ...]
    kept: int = 0

    @property
    def reduced(self) -> tuple[int, ...]:
        """Shape of one value per group, with ones along `axes`."""
        return tuple(1 if axis in self.axes else size for axis, size in enumerate(self.folded))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return math.prod(self.reduced)

    def fold(self, values: Any, lib: Any = np) -> Any:
        """`values` of the tensor's shape in the shape `folded`; `lib` is NumPy or keras.ops."""
        if self.padding:
            values = lib.pad(values, [(0, self.padding)] + [(0, 0)] * (len(self.shape) - 1))
        return lib.reshape(values, self.folded)

    def unfold(self, values: Any, lib: Any = np) -> Any:
        """The inverse of `fold`; one value per group (shape `reduced`) is given to all its members."""
        values = lib.reshape(lib.broadcast_to(values, self.folded), (self.shape[0] + self.padding, *self.shape[1:]))
        return values[: self.shape[0]] if self.padding else values

    def sum(self, values: Any, lib: Any = np) -> Any:
        """Sum over each group, of shape `reduced`."""
        return lib.sum(self.fold(values, lib), axis=self.axes, keepdims=True)


def block_layout(shape: tuple[int, ...], size: int, kept: int = 0) -> Layout:
    """Groups of `size` consecutive entries along axis 0 of a matrix (inputs, units); the last may be shorter.

    Args:
        shape: (inputs, units).
        size: entries per group.
        kept: see `Layout`.

    Returns:
        The layout.

    Example:
        >>> from keras_sensprune.formulas.structures import block_layout
        >>> block_layout((6, 3), 4).groups
        6
    """
    inputs, units = shape
    blocks = -(-inputs // size)
    return Layout((inputs, units), blocks * size - inputs, (blocks, size, units), (1,), kept)


def unit_layout(shape: tuple[int, ...], axes: tuple[int, ...] = (-1,), gates: int = 1) -> Layout:
    """One group per output unit or filter.

    Args:
        shape: of the kernel.
        axes: the axes that number the units: (-1,) for Dense and convolutions, (-2,) for transposed convolutions,
            (-2, -1) for depthwise ones.
        gates: how many gates lie one after the other along the last axis (4 for LSTM); a unit spans all of them.

    Returns:
        The layout.

    Example:
        >>> from keras_sensprune.formulas.structures import unit_layout
        >>> unit_layout((5, 12), gates=4).groups
        3
    """
    shape = tuple(shape)
    if gates > 1:
        return Layout(shape, 0, (*shape[:-1], gates, shape[-1] // gates), tuple(range(len(shape))))
    numbered = {axis % len(shape) for axis in axes}
    return Layout(shape, 0, shape, tuple(axis for axis in range(len(shape)) if axis not in numbered))


def group_sensitivity(layouts: list[Layout], weights: list[Any], sensitivities: list[Any]) -> Any:
    r"""Mean sensitivity of the surviving weights of each group.

    $$S_g = \frac{1}{n_g} \sum_{i \in A_g} S_i,$$ with $A_g$ the nonzero weights of the group, $n_g$ their number, and
    $S_i$ what takes the place of the sensitivity (see `scaled_sensitivity`). $n_g S_g$ bounds the derivative of the
    outputs along every direction that moves no weight of the group by more than 1.

    Args:
        layouts: of the tensors over which a group extends: one, or two for a recurrent unit.
        weights: the tensors.
        sensitivities: $S_i$, of the same shapes.

    Returns:
        float32 tensor, one value per group, of the shape `layouts[0].reduced`; 0 where no weight survives, NaN where
        the S of a surviving weight is NaN.

    Example:
        >>> from keras_sensprune.formulas.structures import block_layout, group_sensitivity
        >>> layout = block_layout((4, 2), 4)
        >>> weight = [[1.0, 1.0], [0.0, 1.0], [2.0, 1.0], [0.0, 1.0]]
        >>> mean = group_sensitivity([layout], [weight], [[[0.2, 0.0], [9.0, 0.4], [0.4, 0.4], [9.0, 0.0]]])
        >>> [round(float(value), 4) for value in mean[0, 0]]
        [0.3, 0.2]

    Reference: reduces to S of Tartaglione et al., NeurIPS 2018, for groups of one weight.
    """
    from keras import ops

    total, count = 0.0, 0.0
    for layout, weight, sensitivity in zip(layouts, weights, sensitivities, strict=True):
        alive = ops.not_equal(weight, 0)
        value = ops.cast(sensitivity, "float32")
        total = total + layout.sum(ops.where(alive, value, ops.zeros_like(value)), ops)
        count = count + layout.sum(ops.cast(alive, "float32"), ops)
    return total / ops.maximum(count, 1)


def group_score(layouts: list[Layout], weights: list[Any], alive: list[Any]) -> np.ndarray:
    r"""Root mean square of the living weights of each group.

    $$q_g = \sqrt{\frac{1}{n_g} \sum_{i \in A_g} w_i^2}$$

    Args:
        layouts: of the tensors over which a group extends.
        weights: NumPy arrays.
        alive: which entries are alive, boolean, of the same shapes.

    Returns:
        One value per group, of the shape `layouts[0].reduced`, in the dtype of the first weight (computed in
        float64); -1 where no weight lives.

    Example:
        >>> from keras_sensprune.formulas.structures import block_layout, group_score
        >>> group_score([block_layout((2, 1), 4)], [[[3.0], [4.0]]], [[[True], [True]]]).round(4).tolist()
        [[[3.5355]]]
    """
    living = [np.asarray(mask, bool) for mask in alive]
    count = np.sum([layout.sum(mask.astype(float)) for layout, mask in zip(layouts, living, strict=True)], axis=0)
    squares = [
        layout.sum(np.where(mask, np.asarray(weight).astype(float) ** 2, 0.0))
        for layout, weight, mask in zip(layouts, weights, living, strict=True)
    ]
    score = np.sqrt(np.sum(squares, axis=0) / np.maximum(count, 1.0))
    return np.where(count > 0, score, -1.0).astype(np.asarray(weights[0]).dtype)


def group_masks(
    layouts: list[Layout], weights: list[Any], threshold: float, alive: list[Any]
) -> tuple[list[np.ndarray], list[bool]]:
    r"""Masks that remove whole groups whose root mean square is below the threshold.

    $$m_i = \mathrm{alive}_i \wedge \neg\,(q_{g(i)} < T)$$ with $q$ the `group_score`: smaller groups go, equal ones
    stay, NaN stays. A tensor that would be emptied keeps its best living group (among equals the one with the lowest
    index), in all tensors over which that group extends.

    Args:
        layouts: of the tensors over which a group extends.
        weights: the tensors, NumPy arrays.
        threshold: $T \ge 0$, finite, in units of the weights.
        alive: boolean or 0/1 arrays; what is dead stays dead.

    Returns:
        The masks, boolean, and for each tensor whether it needed the floor.

    Raises:
        ArgumentError: if `threshold` is no finite number of at least 0, or a tensor has no living entry.

    Example:
        >>> import numpy as np
        >>> from keras_sensprune.formulas.structures import group_masks, unit_layout
        >>> weight = np.array([[0.3, 0.01, 0.0], [0.0, -0.02, 0.2]])
        >>> masks, floored = group_masks([unit_layout((2, 3))], [weight], 0.1, [weight != 0])
        >>> masks[0].tolist(), floored
        ([[True, False, False], [False, False, True]], [False])
    """
    limit = number_argument("threshold", threshold, "a finite number of at least 0")
    living = [np.asarray(mask, bool) for mask in alive]
    for mask in living:
        if not mask.any():
            raise argument_error("alive", "true for at least one entry of each tensor", mask)
    score = group_score(layouts, weights, living)
    keep = ~(score < limit) & ~(score == -1)
    floored = []
    for layout, mask in zip(layouts, living, strict=True):
        inside = layout.sum(mask.astype(float)) > 0  # the groups that live in this tensor
        floored.append(not (keep & inside).any())
        if floored[-1]:
            keep.flat[np.argmax(np.where(inside, score, -1))] = True
    return [mask & layout.unfold(keep) for layout, mask in zip(layouts, living, strict=True)], floored


def n_of_m_mask(layout: Layout, weight: Any, alive: Any) -> np.ndarray:
    r"""Mask that keeps the `layout.kept` largest $|w|$ of each group.

    In a group of $m$ entries exactly $\max(0, m - N)$ are removed, the lowest magnitudes first, whatever their size;
    among equals the lower index goes first. What is dead counts as the lowest, so a group that has more zeros already
    loses nothing. A NaN stays.

    Args:
        layout: from `block_layout` with `kept`.
        weight: NumPy array of the layout's shape.
        alive: boolean or 0/1 array; what is dead stays dead.

    Returns:
        The mask, a boolean array of the weight's shape.

    Example:
        >>> from keras_sensprune.formulas.structures import block_layout, n_of_m_mask
        >>> weight = [[0.1], [-0.4], [0.3], [0.1], [0.2], [0.2], [0.2]]
        >>> n_of_m_mask(block_layout((7, 1), 4, kept=2), weight, [[True]] * 7)[:, 0].tolist()
        [False, True, True, False, False, True, True]
    """
    living = np.asarray(alive, bool)
    size = np.abs(np.asarray(weight)).astype(float)
    size = np.where(np.isnan(size), np.inf, size)
    inside = layout.fold(np.ones(layout.shape, bool))
    folded = np.where(inside, layout.fold(np.where(living, size, -1.0)), -2.0)  # padding is lower than the dead
    order = np.argsort(folded, axis=layout.axes[0], kind="stable")
    rank = np.argsort(order, axis=layout.axes[0], kind="stable")
    return living & layout.unfold(rank >= folded.shape[layout.axes[0]] - layout.kept)
