"""Builds docs/api.md from the docstrings of the public names.

python docs/build_api.py          writes the page
python docs/build_api.py --check  exits with 1 if the page is not up to date
"""

from __future__ import annotations

import argparse
import inspect
import pathlib
import re
import sys
import textwrap
from typing import Any

import keras_sensprune
from keras_sensprune import errors, records

PAGE = pathlib.Path(__file__).with_name("api.md")
COMMAND = "python docs/build_api.py"
# What the public functions return, in the order of first need.
RECORDS = (
    "SparsityReport",
    "LayerRecord",
    "PruneRecord",
    "SparsifyRecord",
    "PhaseRecord",
    "ExportRecord",
    "TensorRecord",
    "CandidateRecord",
    "CompactionRecord",
    "CompactedLayer",
    "CompactionStop",
    "TfliteRecord",
    "ConstantRecord",
    "OperatorCount",
    "LatencyRecord",
    "ThreadLatency",
    "FileTiming",
    "SparseInferenceRecord",
    "ObstacleRecord",
    "KeptZerosRecord",
    "CrossValidationRecord",
    "SettingRecord",
    "FoldTraining",
    "SearchRecord",
    "SearchTrial",
    "SearchRange",
    "FitSettings",
)
_LISTS = ("Args", "Attributes", "Raises")
_HEADING = re.compile(r"(Args|Attributes|Returns|Raises|Example|Reference):(?: (.+))?$")
_NAME = re.compile(r"^([A-Za-z_][^:]*): ")
_WIDTH = 100

_INTRODUCTION = f"""# API reference

Everything that `import keras_sensprune` offers. This page is made from the docstrings by `{COMMAND}`;
to change it, change them. How the functions hang together is told in [method.md](method.md), what they cannot do
in [limits.md](limits.md).
"""

_RECORDS_INTRODUCTION = """## Records

Frozen results, in `keras_sensprune.records`; `to_json` and `from_json` there write and read them.
"""
_ERRORS_INTRODUCTION = """## Errors

All are in `keras_sensprune.errors`.

| error | is also a | when |
|---|---|---|"""


def page() -> str:
    """The whole page."""
    names = [name for name in keras_sensprune.__all__ if not name.startswith("__")]
    parts = [_INTRODUCTION, _contents(names)]
    parts += [_entry(name, getattr(keras_sensprune, name)) for name in names]
    parts += [_RECORDS_INTRODUCTION]
    parts += [_record(records.RECORD_TYPES[name]) for name in RECORDS]
    parts += [_errors()]
    return "\n".join(parts)


def _contents(names: list[str]) -> str:
    lines = [f"- [`{name}`](#{name.lower()}): {_summary(getattr(keras_sensprune, name))}" for name in names]
    lines += ["- [Records](#records): what the functions return", "- [Errors](#errors): what they raise"]
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any) -> str:
    lines = [f"## {name}", "", "```text", signature_text(name, value), "```", "", *markdown(_doc(value)), ""]
    lines.append(f"Defined in `{value.__module__}`.\n")
    return "\n".join(lines)


def _record(kind: type) -> str:
    lines = [f"### {kind.__name__}", "", *markdown(_doc(kind))]
    computed = [(name, item) for name, item in vars(kind).items() if isinstance(item, property)]
    if computed:
        lines += ["", "Computed:", ""]
        lines += [f"- **{name}**: {_one_line(inspect.getdoc(item) or '')}" for name, item in computed]
    return "\n".join(lines) + "\n"


def _errors() -> str:
    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    lines = [_ERRORS_INTRODUCTION]
    for kind in kinds:
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        lines.append(f"| `{kind.__name__}` | {bases} | {_summary(kind)} |")
    return "\n".join(lines) + "\n"


def signature_text(name: str, value: Any) -> str:
    """The call as one writes it, with types; one argument per line where it is long."""
    signature = inspect.signature(value)
    pieces, starred = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            pieces.append("*")
            starred = True
        kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        pieces.append(parameter.name + kind + default)
    result = "" if inspect.isclass(value) else f" -> {signature.return_annotation}"
    line = f"{name}({', '.join(pieces)}){result}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {piece},\n" for piece in pieces) + f"){result}"


def markdown(docstring: str) -> list[str]:
    """A docstring as Markdown lines: its text, lists of arguments and errors, the example as a console session."""
    lines: list[str] = []
    for title, body in _sections(docstring):
        if title == "":
            lines += body
        elif title in _LISTS:
            lines += ["", f"**{title}**", "", *_items(body)]
        elif title == "Example":
            lines += ["", "**Example**", "", "```pycon", *body, "```"]
        else:
            lines += ["", f"**{title}**: {_one_line(' '.join(body))}"]
    return lines


def _sections(docstring: str) -> list[tuple[str, list[str]]]:
    """(title, lines without their common indent and without empty lines around), the first with an empty title."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in docstring.splitlines():
        heading = _HEADING.match(line)
        if heading:
            found.append((heading[1], [heading[2]] if heading[2] else []))
        else:
            found[-1][1].append(line)
    return [(title, textwrap.dedent("\n".join(body)).strip("\n").splitlines()) for title, body in found]


def _items(body: list[str]) -> list[str]:
    """`name: text` items whose further lines are indented, as a Markdown list."""
    items: list[str] = []
    for line in body:
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(line.strip())
    return ["- " + _NAME.sub(r"**\1**: ", item) for item in items]


def _doc(value: Any) -> str:
    return inspect.getdoc(value) or ""


def _summary(value: Any) -> str:
    """The first sentence or line."""
    return _one_line(_doc(value).split("\n\n")[0]).split(". ")[0].rstrip(".")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the page; 1 if a check fails."""
    parser = argparse.ArgumentParser(description="Build docs/api.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    text = page()
    if not parser.parse_args(argv).check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"docs/api.md is not up to date. Repair it with: {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
