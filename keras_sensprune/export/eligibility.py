"""`check_sparse_inference`: would XNNPACK run the 1x1 convolutions of a `.tflite` file sparsely, and if not, why.

XNNPACK changes a part of a graph to channels-first layout, if that part runs from a 3x3 convolution on an image to a
mean over the picture, consists of operators that have such a form, and more than two thirds of the weights of its 1x1
convolutions are zero. `channels_first.py` knows the operators; here the part is found.
"""

from __future__ import annotations

import os

from keras_sensprune.errors import argument_error
from keras_sensprune.export.channels_first import END, OUTSIDE, STEM, STEM_CHANGE, Graph, Verdict
from keras_sensprune.export.inspection import Constants
from keras_sensprune.export.reader import read_tflite
from keras_sensprune.records.inspection import ObstacleRecord, SparseInferenceRecord

NOTE = (
    "Rules read from the source of XNNPACK and LiteRT and probed on x86 with a patched copy of the library; not "
    "measured on ARM. On x86 processors with AVX this path is switched off, whatever the file: convolutions run dense."
)


def check_sparse_inference(path: str | os.PathLike[str] | bytes) -> SparseInferenceRecord:
    """Whether XNNPACK, LiteRT's default delegate, would run a file's 1x1 convolutions by its sparse kernels.

    This concerns processors without AVX, in practice ARM; on other x86 processors the path is switched off. The file
    is read, not run.

    Args:
        path: a `.tflite` file, or its content.

    Returns:
        A `SparseInferenceRecord`: the operators that would run sparsely, or what is in the way and what to change.

    Raises:
        ArgumentError: if `path` is neither a file name nor bytes.
        DataError: if it is not a valid `.tflite` file.

    Example:

    >>> import os, tempfile
    >>> import keras
    >>> from keras_sensprune import check_sparse_inference, export_tflite
    >>> layers = [keras.layers.Conv2D(4, 3, padding="same"), keras.layers.GlobalAveragePooling2D()]
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "model.tflite")
    ...     written = export_tflite(model, file)
    ...     record = check_sparse_inference(file)
    >>> record.eligible, record.obstacles[0].kind
    (False, 'CONV_2D')
    """
    if not isinstance(path, (str, bytes, os.PathLike)) or not path:
        raise argument_error("path", "the name of a .tflite file, or its content", path)
    file = read_tflite(path)
    graph = Graph(file, file.subgraphs[0])
    operators = graph.subgraph.operators
    verdicts = [graph.verdict(number) for number in range(len(operators))]
    clusters = _clusters(graph, verdicts)
    found = [obstacle for _, obstacles in clusters for obstacle in obstacles]
    counted = [_pointwise(graph, members) for members, _ in clusters]
    for (_, obstacles), (weights, zeros) in zip(clusters, counted, strict=True):
        found += [] if obstacles else _too_dense(weights, zeros)
    free = [i for i, (_, obstacles) in enumerate(clusters) if not obstacles and not _too_dense(*counted[i])]
    if not clusters:
        found += _without_end(graph, verdicts)
    if not any(operator.name == "DENSIFY" for operator in operators):
        reason = "no weight is stored sparse, and only for such files the delegate asks for sparse inference"
        found.append(ObstacleRecord(-1, "file", "", reason, "Export so that convolutions are stored as csr + densify."))
        free = []
    members = set().union(*(clusters[i][0] for i in free))
    weights, zeros = _pointwise(graph, members or set(range(len(operators))))
    unique = {(item.operator < 0, item.operator, item.reason): item for item in found}
    return SparseInferenceRecord(
        path="" if isinstance(path, bytes) else os.fspath(path),
        eligible=bool(free),
        cluster=tuple(f"{operators[n].name} {n}" for n in sorted(members)),
        weights=weights,
        zeros=zeros,
        obstacles=tuple(unique[key] for key in sorted(unique)),
        note=NOTE,
    )


def _data_inputs(graph: Graph, number: int) -> list[int]:
    """The tensors that operator `number` reads and that are computed; a padding that it takes over is skipped."""
    operator = graph.subgraph.operators[number]
    found = [t for t in operator.inputs if not graph.constant(t)]
    if found and operator.name.endswith("CONV_2D") and operator.options.get("padding") == 1:
        pad = graph.fused_padding(number)
        if pad is not None:
            found[0] = graph.subgraph.operators[graph.subgraph.producers[found[0]]].inputs[0]
    return found


def _clusters(graph: Graph, verdicts: list[Verdict]) -> list[tuple[set[int], list[ObstacleRecord]]]:
    """The connected parts that end in a mean, each with what is in its way; nothing is, if all of it can be changed."""
    ends = [number for number, verdict in enumerate(verdicts) if verdict.role == END]
    leader = {number: number for number in ends}
    waiting, problems = list(ends), []
    while waiting:
        number = waiting.pop()
        if verdicts[number].role == STEM:
            continue
        for tensor in _data_inputs(graph, number):
            producer = graph.subgraph.producers.get(tensor, -1)
            if producer < 0:
                reason = "it is reached from the model's input without a first convolution that changes the layout"
                problems.append((number, _obstacle(graph, number, Verdict(OUTSIDE, reason, STEM_CHANGE))))
            elif verdicts[producer].role == OUTSIDE:
                problems.append((number, _obstacle(graph, producer, verdicts[producer])))
            else:
                if producer not in leader:
                    leader[producer] = producer
                    waiting.append(producer)
                leader[_find(leader, producer)] = _find(leader, number)
    problems += _other_consumers(graph, verdicts, set(leader))
    parts: dict[int, tuple[set[int], list[ObstacleRecord]]] = {}
    for number in sorted(leader):
        parts.setdefault(_find(leader, number), (set(), []))[0].add(number)
    for number, obstacle in problems:
        parts[_find(leader, number)][1].append(obstacle)
    return [parts[key] for key in sorted(parts)]


def _find(leader: dict[int, int], number: int) -> int:
    while leader[number] != number:
        leader[number] = leader[leader[number]]
        number = leader[number]
    return number


def _other_consumers(graph: Graph, verdicts: list[Verdict], members: set[int]) -> list[tuple[int, ObstacleRecord]]:
    """Values inside of a part that something outside of it reads too."""
    inside = {t: n for n in members if verdicts[n].role != STEM for t in _data_inputs(graph, n)}
    absorbed = {n for n in members if verdicts[n].role != STEM}
    outputs, found = set(graph.subgraph.outputs), []
    for tensor in sorted(inside):
        producer = graph.subgraph.producers.get(tensor, -1)
        if producer not in members:
            continue
        if tensor in outputs:
            verdict = Verdict(
                OUTSIDE, "its result is also an output of the model", "Give out only what follows the mean."
            )
            found.append((producer, _obstacle(graph, producer, verdict)))
        for consumer in graph.subgraph.consumers.get(tensor, ()):
            if consumer not in absorbed and not _absorbed_padding(graph, consumer, absorbed):
                verdict = verdicts[consumer]
                reason = verdict.reason or "it leads to no mean over height and width (nor DEPTH_TO_SPACE)"
                change = verdict.change or "End the convolutions with GlobalAveragePooling2D."
                found.append((producer, _obstacle(graph, consumer, Verdict(OUTSIDE, reason, change))))
    return found


def _absorbed_padding(graph: Graph, number: int, members: set[int]) -> bool:
    operator = graph.subgraph.operators[number]
    readers = graph.subgraph.consumers.get(operator.outputs[0], []) if operator.outputs else []
    single = operator.name == "PAD" and len(readers) == 1 and readers[0] in members
    return single and graph.fused_padding(readers[0]) is not None


def _pointwise(graph: Graph, members: set[int]) -> tuple[int, int]:
    """Weights of the 1x1 convolutions among `members`, and how many of them are zero."""
    constants, weights, zeros = Constants(graph.file), 0, 0
    for number in sorted(members):
        operator = graph.subgraph.operators[number]
        shape = graph.shape(operator.inputs[1]) if operator.name == "CONV_2D" and len(operator.inputs) > 1 else ()
        if len(shape) == 4 and shape[1:3] == (1, 1) and graph.constant(operator.inputs[1]):
            entries, found = constants.count(graph.subgraph.tensors[graph.source(operator.inputs[1])])
            weights, zeros = weights + entries, zeros + found
    return weights, zeros


def _too_dense(weights: int, zeros: int) -> list[ObstacleRecord]:
    if not weights:
        reason, change = "the part has no 1x1 convolution, the only kind with a sparse kernel", "Use 1x1 convolutions."
    elif zeros * 3 <= weights * 2:
        reason = f"{zeros} of the {weights} weights of its 1x1 convolutions are zero; more than two thirds must be"
        change = "Prune the 1x1 convolutions further."
    else:
        return []
    return [ObstacleRecord(-1, "file", "", reason, change)]


def _without_end(graph: Graph, verdicts: list[Verdict]) -> list[ObstacleRecord]:
    """What to say of a graph in which no sparse part could end: that, and every convolution that would not fit."""
    operators = graph.subgraph.operators
    found = [
        _obstacle(graph, n, verdict)
        for n, verdict in enumerate(verdicts)
        if verdict.role == OUTSIDE and operators[n].name in ("CONV_2D", "DEPTHWISE_CONV_2D")
    ]
    reason = "no mean over height and width (nor DEPTH_TO_SPACE), at which a sparse part could end"
    return [*found, ObstacleRecord(-1, "file", "", reason, "End the convolutions with GlobalAveragePooling2D.")]


def _obstacle(graph: Graph, number: int, verdict: Verdict) -> ObstacleRecord:
    operator = graph.subgraph.operators[number]
    name = graph.subgraph.tensors[operator.outputs[0]].name if operator.outputs and operator.outputs[0] >= 0 else ""
    return ObstacleRecord(number, operator.name, name, verdict.reason, verdict.change)
