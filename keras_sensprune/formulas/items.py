"""What can be pruned in a tensor, one by one: its weights, or the groups of a structure. Scores in, masks out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_sensprune.formulas.structures import Layout, group_masks, group_score, n_of_m_mask
from keras_sensprune.formulas.thresholds import threshold_mask


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """The items of one tensor, or of several tensors with the same groups (both kernels of a recurrent layer).

    Attributes:
        values: the tensors, NumPy arrays.
        alive: boolean arrays of their shapes; what is dead stays dead.
        layouts: their groups, one per tensor; empty where weights are pruned one by one.
    """

    values: tuple[np.ndarray, ...]
    alive: tuple[np.ndarray, ...]
    layouts: tuple[Layout, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the structure itself says how many weights go (N of M), so that no score is compared."""
        return bool(self.layouts) and self.layouts[0].kept > 0

    @property
    def total(self) -> int:
        """Weights, dead ones included."""
        return sum(value.size for value in self.values)

    def scores(self) -> np.ndarray:
        """One float64 score per item, flat: |w|, or the root mean square of the group; -inf for what is dead."""
        if not self.layouts:
            size = np.abs(self.values[0]).astype(float).ravel()
            return np.where(self.alive[0].ravel(), size, -np.inf)
        score = group_score(list(self.layouts), list(self.values), list(self.alive)).astype(float).ravel()
        return np.where(score < 0, -np.inf, score)

    def sizes(self) -> np.ndarray:
        """How many weights each item holds, dead ones included, flat."""
        if not self.layouts:
            return np.ones(self.values[0].size, np.int64)
        return np.sum([layout.sum(np.ones(layout.shape, np.int64)) for layout in self.layouts], axis=0).ravel()

    def masks(self, keep: Any) -> list[np.ndarray]:
        """The mask of each tensor if these items, a flat boolean array, are kept."""
        kept = np.asarray(keep, bool)
        if not self.layouts:
            return [self.alive[0] & kept.reshape(self.alive[0].shape)]
        kept = kept.reshape(self.layouts[0].reduced)
        return [alive & layout.unfold(kept) for alive, layout in zip(self.alive, self.layouts, strict=True)]

    def at_least(self, threshold: float) -> tuple[list[np.ndarray], list[bool]]:
        """Masks that remove what is below a threshold, and for each tensor whether it needed the floor.

        Args:
            threshold: T >= 0. At 0 nothing is pruned, whatever the structure.

        Returns:
            See `threshold_mask`, `group_masks` and `n_of_m_mask`.

        Raises:
            ArgumentError: if the threshold is no finite number of at least 0, or a tensor is dead throughout.
        """
        if not self.layouts:
            mask, floor = threshold_mask(self.values[0], threshold, self.alive[0])
            return [mask], [floor]
        if self.fixed:
            mask = n_of_m_mask(self.layouts[0], self.values[0], self.alive[0]) if threshold > 0 else self.alive[0]
            return [mask], [False]
        return group_masks(list(self.layouts), list(self.values), threshold, list(self.alive))
