"""The pages: generated ones are fresh, links lead somewhere, named tests exist, code parses."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# What belongs to one machine, or to an issue tracker. In pieces, so that this file does not contain it.
_FOLDERS = [f"/{first}{rest}/" for first, rest in (("wo", "rk"), ("ho", "me"), ("t", "mp"), ("ro", "ot"))]
FORBIDDEN = [*_FOLDERS, r"\bfac" + "ts/", "DES" + r"IGN\.md", r"#\d{2,}\b"]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def build_api():
    spec = importlib.util.spec_from_file_location("build_api", DOCS / "build_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_reference_is_what_the_docstrings_say():
    page = DOCS / "api.md"
    fresh = page.is_file() and page.read_text(encoding="utf-8") == build_api().page()
    assert fresh, "docs/api.md is not up to date. Repair it with: python docs/build_api.py"


def test_the_check_names_the_command_that_repairs(tmp_path, monkeypatch, capsys):
    builder = build_api()
    monkeypatch.setattr(builder, "PAGE", tmp_path / "api.md")
    assert builder.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/api.md is not up to date. Repair it with: python docs/build_api.py\n"
    assert builder.main([]) == 0
    assert builder.main(["--check"]) == 0


def test_a_docstring_becomes_readable_markdown():
    docstring = (
        "Adds.\n\nMore text.\n\nArgs:\n    a: the first,\n        and its end.\n    b: the second.\n\n"
        "Returns:\n    A sum\n    of both.\n\nRaises:\n    Nothing.\n\n"
        "Example:\n    >>> 1 + 1\n    2\n\nReference: Peano."
    )
    assert "\n".join(build_api().markdown(docstring)) == (
        "Adds.\n\nMore text.\n\n**Args**\n\n- **a**: the first, and its end.\n- **b**: the second.\n\n"
        "**Returns**: A sum of both.\n\n**Raises**\n\n- Nothing.\n\n**Example**\n\n```pycon\n>>> 1 + 1\n2\n```\n\n"
        "**Reference**: Peano."
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_to_files_and_headings_that_exist(page):
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The names that headings get on a web page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_tests_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tests|docs|keras_sensprune)/[\w/]+\.py\b", text):
        assert (ROOT / name).is_file(), name
    existing = set().union(*(functions(path) for path in (ROOT / "tests").rglob("test_*.py")))
    missing = set(re.findall(r"`(test_\w+)`", text)) - existing
    assert not missing
    # "`tests/x.py`: `test_a`, `test_b`" promises that they are in that file
    for name, tests in re.findall(r"`(tests/[\w/]+\.py)`:((?:,?\s+`test_\w+`)+)", text):
        assert set(re.findall(r"test_\w+", tests)) <= functions(ROOT / name), name


def test_the_method_names_a_test_for_every_formula():
    rows = [line for line in (DOCS / "method.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for path in sorted((ROOT / "keras_sensprune" / "formulas").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert any(f"`{node.name}`" in row and "test_" in row for row in rows), node.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_parse(page):
    for _, language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            assert ast.parse(textwrap.dedent(block)).body, "an empty block"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_pages_speak_of_the_project_alone(page):
    text = page.read_text(encoding="utf-8")
    assert not [pattern for pattern in FORBIDDEN if re.search(pattern, text)]


@pytest.mark.parametrize("name", ["choosing", "export", "performance", "optimizers", "reliability"])
def test_pages_made_from_results_are_fresh(name, monkeypatch):
    """Words, tables and results of a page belong together."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    maker = importlib.import_module(f"make_{name}_page")
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == maker.page()


@pytest.mark.parametrize("page", [DOCS / "sparsify.md", ROOT / "README.md"], ids=lambda page: page.name)
def test_the_tables_of_budgets_are_fresh(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("sparsify")
    assert script.fresh(page) == page.read_text(encoding="utf-8"), (
        "Repair it with: python benchmarks/sparsify.py --page"
    )


def test_the_page_on_rules_says_what_the_controller_did():
    text = (DOCS / "rules.md").read_text(encoding="utf-8")

    def result(network, kind=""):
        file = ROOT / "benchmarks" / "results" / f"strength-control-{network}-seed0{kind}.json"
        return json.loads(file.read_text(encoding="utf-8"))

    def share(*which):
        return f"{100 * result(*which)['within a tenth']:.0f} %"

    dense, convolutional, cifar = map(share, ("lenet-300-100", "lenet-5", "cifar"))
    assert f"{dense} of the epochs of\nLeNet-300-100, {convolutional} of LeNet-5, and {cifar} of a CIFAR-10" in text
    apart = [abs(row[-1] - 1) for row in result("cifar")["epochs"]]
    outside = [value for value in apart[len(apart) // 2 :] if value > 0.1]
    assert len(outside) == 4
    assert f"where the four others were within {100 * max(outside):.0f} %" in text
    before = [share(network, "-fixed-gain") for network in ("lenet-5", "cifar")]
    assert f"it was {before[0]} on LeNet-5 and {before[1]} on CIFAR-10" in text
