"""The index arrays of a sparse tensor: whether they are sound, and what such an encoding is called."""

from __future__ import annotations

import numpy as np

from keras_sensprune.export.graph import Dimension, Sparsity

OTHER = "other sparse"


def stored_entries(shape: tuple[int, ...], sparsity: Sparsity) -> int | str:
    """How many entries the tensor stores, or what is wrong with its index arrays.

    The levels are walked in their order: a dense level multiplies what is above it, a compressed one has for each
    entry above it a segment of increasing indices.

    Args:
        shape: of the tensor.
        sparsity: how it is stored.

    Returns:
        The number of entries that its buffer must hold; a string if the arrays are not sound.
    """
    sizes = _level_sizes(shape, sparsity)
    if isinstance(sizes, str):
        return sizes
    entries = 1
    for level, (size, dimension) in enumerate(zip(sizes, sparsity.dimensions, strict=True)):
        if not dimension.compressed:
            if dimension.size != size:
                return f"level {level} has {dimension.size} entries where the shape wants {size}"
            entries *= size
            continue
        wrong = _wrong_segments(dimension, entries, size)
        if wrong:
            return f"level {level} {wrong}"
        entries = len(dimension.indices)
    return entries


def encoding_name(shape: tuple[int, ...], sparsity: Sparsity) -> str:
    """ "csr", "1x4" and the like, or "other sparse"; for arrays that `stored_entries` found sound."""
    rank, blocks = len(shape), block_sizes(sparsity, len(shape))
    levels = sparsity.dimensions
    compressed = [level for level, dimension in enumerate(levels) if dimension.compressed]
    in_order = sparsity.traversal == tuple(range(len(levels)))
    if compressed != [rank - 1]:
        return OTHER
    if not blocks:
        return "csr" if in_order else "csr, transposed"
    if not in_order or len(sparsity.block_map) != 1 or sparsity.block_map[0] != rank - 1:
        return OTHER
    return f"1x{blocks[0]}"


def block_sizes(sparsity: Sparsity, rank: int) -> tuple[int, ...]:
    """Size of the block along each axis of the block map."""
    by_axis = dict(zip(sparsity.traversal, sparsity.dimensions, strict=False))
    return tuple(by_axis[rank + i].size for i in range(len(sparsity.block_map)))


def _level_sizes(shape: tuple[int, ...], sparsity: Sparsity) -> tuple[int, ...] | str:
    """The size that each level has by the shape and the blocks, in the order of the levels."""
    rank, blocked = len(shape), len(sparsity.block_map)
    if sorted(sparsity.traversal) != list(range(rank + blocked)) or len(sparsity.dimensions) != rank + blocked:
        return f"its {len(sparsity.dimensions)} levels do not fit its {rank} axes and {blocked} blocks"
    if len(set(sparsity.block_map)) != blocked or not all(0 <= axis < rank for axis in sparsity.block_map):
        return "its block map names no axis of its own"
    blocks = block_sizes(sparsity, rank)
    by_axis = dict(zip(sparsity.traversal, sparsity.dimensions, strict=True))
    if any(by_axis[rank + i].compressed for i in range(blocked)):
        return "the inside of its blocks is compressed, which ends the process that runs it"
    if not all(size > 0 for size in blocks) or not all(size >= 0 for size in shape):
        return "it has a size below zero, or an empty block"
    sizes = [*shape, *blocks]
    for axis, block in zip(sparsity.block_map, blocks, strict=True):
        sizes[axis] //= block
    return tuple(sizes[axis] for axis in sparsity.traversal)


def _wrong_segments(dimension: Dimension, above: int, size: int) -> str:
    segments, indices = dimension.segments.astype(np.int64), dimension.indices.astype(np.int64)
    if len(segments) != above + 1:
        return f"has {len(segments)} segment limits for {above} segments"
    if segments[0] != 0 or segments[-1] != len(indices) or np.any(np.diff(segments) < 0):
        return f"has segment limits that do not rise from 0 to its {len(indices)} indices"
    if len(indices) and not 0 <= indices.min() <= indices.max() < size:
        return f"has indices outside of 0 to {size - 1}"
    rises = np.diff(indices) > 0
    starts = segments[1:-1]
    rises[starts[(starts > 0) & (starts < len(indices))] - 1] = True  # from one segment to the next it may fall
    return "" if np.all(rises) else "has indices that do not increase within a segment"


def trailing_inputs(shape: tuple[int, ...], encoding: str) -> int:
    """Inputs of the last axis that whole blocks cannot hold; a blocked tensor does not store them."""
    width = encoding.removeprefix("1x")
    return shape[-1] % int(width) if shape and width.isdigit() and all(shape) else 0
