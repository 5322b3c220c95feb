"""Bytes and milliseconds of each way to export, against the dense float32 file: one JSON file per network.

    KERAS_SENSPRUNE_DATA=folder python benchmarks/export_networks.py --models folder
    KERAS_SENSPRUNE_DATA=folder python benchmarks/export_gain.py --models folder --files folder

First all files of a network are written and checked, then they are timed, each run in a fresh process, in rounds of
random order. Networks whose result exists are skipped. Afterwards `python benchmarks/make_export_page.py`.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras", "tensorflow", "ai-edge-litert", "numpy", "keras-sensprune")
UNSTRUCTURED = (0.9, 0.95, 0.99)
AS_PRUNED = (
    ("as pruned, dense encoding", "pruned", {"sparse": False}),
    ("as pruned, converter's encoding", "pruned", {"converter": True}),
    ("as pruned, CSR", "pruned", {}),
    ("as pruned, CSR, 16 clusters", "pruned", {"clusters": 16}),
    ("as pruned, dynamic int8", "pruned", {"quantize": "dynamic"}),
    ("as pruned, full int8", "pruned", {"quantize": "int8"}),
    ("as pruned, compacted, CSR", "pruned+compact", {}),
    ("as pruned, compacted, CSR, 16 clusters", "pruned+compact", {"clusters": 16}),
    ("as pruned, compacted, dynamic int8", "pruned+compact", {"quantize": "dynamic"}),
)


def variants(network: str, trained: bool):
    """(label, preparation, options of the export) in the order of the table."""
    from export_models import zero_blocks, zero_units, zero_weights

    def zeros(share):
        return lambda model: zero_weights(model, share)

    def blocks(share, size):
        return lambda model: zero_blocks(model, share, size)

    def units(share, then=None):
        def prepare(model):
            zero_units(model, share)
            return "compact", then

        return prepare

    yield "dense", None, {"sparse": False}
    yield "dense, dynamic int8", None, {"sparse": False, "quantize": "dynamic"}
    if network != "lstm":
        yield "dense, full int8", None, {"sparse": False, "quantize": "int8"}
    if trained:
        yield from AS_PRUNED
    for share in (0.99,) if trained else UNSTRUCTURED:
        yield f"{share:.0%} unstructured, CSR", zeros(share), {}
        if not trained:
            yield f"{share:.0%} unstructured, converter's encoding", zeros(share), {"converter": True}
        if not trained:
            yield f"{share:.0%} unstructured, dynamic int8", zeros(share), {"quantize": "dynamic"}
    if network != "mobilenet":  # its one Dense layer is small
        yield "90% in 1x4 blocks", blocks(0.9, 4), {}
        yield "90% in 1x16 blocks, dynamic int8", blocks(0.9, 16), {"quantize": "dynamic"}
    yield "50% of the units, compacted", units(0.5), {"sparse": False}
    yield "75% of the units, compacted", units(0.75), {"sparse": False}
    if not trained:
        yield "50% of the units, compacted, 90% of the rest zero, CSR", units(0.5, zeros(0.9)), {}
    yield "75% of the units, compacted, dynamic int8", units(0.75), {"quantize": "dynamic"}


def prepared(network: str, models: Path, prepare):
    """The model of a variant, and the record of its compaction if there was one."""
    from export_models import load

    from keras_sensprune import compact

    if isinstance(prepare, str):
        model = load(network, models, "pruned")
        return compact(model) if prepare.endswith("compact") else (model, None)
    model = load(network, models)
    todo = prepare(model) if prepare else None
    if not todo:
        return model, None
    small, record = compact(model)
    if todo[1]:
        todo[1](small)
    return small, record


def converter_file(model, path: Path) -> None:
    """The converter's own sparse mode, which `export_tflite` never uses; here to be compared with."""
    import keras
    import tensorflow as tf

    if any(isinstance(layer, keras.layers.RNN) for layer in model.layers):  # converts with a fixed batch only
        x = keras.Input(batch_shape=(1, *model.input_shape[1:]))
        model = keras.Model(x, model(x))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    path.write_bytes(converter.convert())


def examples(network: str, trained: bool):
    """Inputs to compare on, labels (trained networks: the test images), and inputs for the ranges of int8."""
    import numpy as np
    from export_models import NETWORKS

    if trained:
        from keras_sensprune.datasets import load_dataset

        data = load_dataset("mnist", seed=0)
        return data.x_test, data.y_test, data.x_train[:500]
    values = np.random.default_rng(0).normal(size=(64, *NETWORKS[network][0])).astype("float32")
    return values, None, values


def build(network: str, models: Path, folder: Path) -> list[dict]:
    """All files of a network, and what is known of each without timing it."""
    import gzip

    from export_models import NETWORKS

    from keras_sensprune import export_tflite
    from keras_sensprune.errors import SensPruneError
    from keras_sensprune.records import to_dict

    trained = NETWORKS[network][1]
    x, labels, representative = examples(network, trained)
    rows = []
    for number, (label, prepare, options) in enumerate(variants(network, trained)):
        path = folder / f"{network}-{number:02d}.tflite"
        model, compaction = prepared(network, models, prepare)
        options = dict(options)
        row = {"variant": label, "file": path.name, "compaction": compaction and to_dict(compaction)}
        if options.pop("converter", False):
            converter_file(model, path)
            size = len(path.read_bytes())
            row |= {"bytes": size, "gzip_bytes": len(gzip.compress(path.read_bytes(), 9, mtime=0))}
        else:
            if options.get("quantize") == "int8":
                options["representative_data"] = representative
            try:
                record = export_tflite(model, path, data=x, labels=labels, overwrite=True, **options)
            except SensPruneError as error:
                row["failed"] = str(error)
                rows.append(row)
                print(f"{network}: {label}: {error}", flush=True)
                continue
            row |= {"bytes": record.bytes, "gzip_bytes": record.gzip_bytes, "export": to_dict(record)}
        rows.append(row)
        print(f"{network}: {label}: {row['bytes']:,} bytes, {row['gzip_bytes']:,} gzipped", flush=True)
    return rows


def measure(rows: list[dict], folder: Path, rounds: int, batches: tuple[int, ...]) -> None:
    """Adds the latencies to the rows: against the dense file, 1 and 2 threads, per batch size."""
    from keras_sensprune.export.latency import benchmark_files
    from keras_sensprune.records import to_dict

    there = [row for row in rows if "failed" not in row]
    paths = [folder / row["file"] for row in there]
    for batch in batches:
        settings = (
            {"threads": (1, 2), "pairs": rounds} if batch == 1 else {"threads": (1,), "pairs": max(3, rounds // 2)}
        )
        found = benchmark_files(paths, batch=batch, seconds=0.2, **settings)
        for row, record in zip(there[1:], found, strict=True):
            row.setdefault("latency", []).append(to_dict(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder that export_networks.py has filled")
    parser.add_argument("--files", type=Path, required=True, help="folder for the .tflite files")
    parser.add_argument(
        "--networks", nargs="+", default=["lenet-300-100", "mlp", "lenet-5", "vgg", "mobilenet", "lstm"]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--build-only", action="store_true", help="write and check the files, do not time them")
    options = parser.parse_args()
    options.files.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        result, built = RESULTS / f"export-{network}.json", options.files / f"{network}.json"
        if result.exists():
            continue
        started, begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
        if not built.exists():
            rows = build(network, options.models, options.files)
            built.write_text(json.dumps(rows, indent=1))
        if options.build_only:
            continue
        rows = json.loads(built.read_text())
        batches = (1, 16) if network in ("mlp", "lenet-300-100") else (1,)
        measure(rows, options.files, options.rounds, batches)
        content = {
            "command": f"python benchmarks/export_gain.py --models MODELS --files FILES --networks {network}",
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "started": started,
            "seconds": round(time.perf_counter() - begun, 1),
            "seed": 0,
            "data": "MNIST test images" if network.startswith("lenet") else "seeded random inputs, synthetic weights",
            "rows": rows,
        }
        temporary = result.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, result)
        print(f"{result.name} written", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
