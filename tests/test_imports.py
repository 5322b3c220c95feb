"""The import rules of the house (docs/design.md): an extra edge or a cycle fails."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_sensprune"

# part -> parts of ours that it may import. A file may always import from its own part.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "records": {"errors"},
    "formulas": {"errors"},
    "networks": {"errors"},
    "arrays": {"errors"},
    "datasets": {"errors", "arrays"},
    "archive": {"errors", "arrays"},
    "recipes": {"errors", "records", "networks"},
    "results_folder": {"errors"},
    "training": {"errors", "archive", "records", "formulas"},
    "census": {"errors", "records", "formulas.counting", "training.targets", "training.regularizer"},
    # no export: bytes are counted by a function that is handed in
    "planning": {"errors", "archive", "records", "formulas", "training"},
    "untouched": set(),
    "compaction": {"errors", "records", "untouched", "census", "formulas.counting", "training.targets"},
    "export": {
        "errors",
        "untouched",
        "records",
        "census",
        "formulas.counting",
        "formulas.clustering",
        "training.targets",
    },
    "tfmot": {"errors", "untouched", "records", "census", "export", "formulas.counting", "training.targets"},
    "reports": {"errors", "records"},
    "pipeline": {
        "errors",
        "records",
        "formulas",
        "networks",
        "datasets",
        "training",
        "census",
        "export",
        "reports",
        "results_folder",
    },
    "recipe_run": {
        "archive",
        "errors",
        "records",
        "recipes",
        "networks",
        "datasets",
        "planning",
        "census",
        "export",
        "results_folder",
    },
    "keras_file": {"errors", "training.regularizer", "export.verify"},
    "commands": {"errors", "records", "arrays", "keras_file", "census", "compaction", "export"},
    "cli": {"__init__", "errors", "records", "pipeline", "recipe_run", "commands", "reports"},
}
# part -> packages that must not be imported, not even inside a function.
MUST_NOT = {
    "errors": {"numpy", "keras", "tensorflow"},
    "records": {"numpy", "keras", "tensorflow"},
    "formulas": {"tensorflow", "matplotlib"},
    "reports": {"keras", "tensorflow"},
    "cli": {"numpy", "keras", "tensorflow"},
}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__") or "__init__"


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path):
    """Dotted names of all imported modules, also inside functions and `if TYPE_CHECKING`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found.add(node.module)
    return found


def ours(name):
    """The modules of the package that a module imports."""
    prefix = "keras_sensprune"
    found = [m[len(prefix) :].lstrip(".") or "__init__" for m in imports(MODULES[name]) if m.split(".")[0] == prefix]
    return {m for m in found if m in MODULES}


def part(name):
    return name.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_part_may(name):
    allowed = MAY_IMPORT[part(name)]
    extra = {m for m in ours(name) if part(m) != part(name) and not {m, part(m)} & allowed}
    assert not extra, f"{name} imports {sorted(extra)}; allowed are {sorted(allowed)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_avoids_the_packages_that_its_part_must_not_see(name):
    packages = {m.split(".")[0] for m in imports(MODULES[name])}
    assert not packages & MUST_NOT.get(part(name), set())


def test_every_part_has_a_row():
    assert {part(name) for name in MODULES} == set(MAY_IMPORT)


def test_there_is_no_cycle():
    state = {}

    def visit(name, path):
        assert state.get(name) != "open", f"import cycle: {' -> '.join([*path, name])}"
        if name not in state:
            state[name] = "open"
            for other in ours(name):
                visit(other, [*path, name])
            state[name] = "done"

    for name in MODULES:
        visit(name, [])


def test_no_module_is_named_like_one_of_the_standard_library():
    assert not {name.split(".")[-1] for name in MODULES} - {"__init__"} & sys.stdlib_module_names


def test_tapes_live_in_one_file_only():
    def has_tape(path):
        nodes = ast.walk(ast.parse(path.read_text()))
        return any(isinstance(node, ast.Attribute) and node.attr == "GradientTape" for node in nodes)

    users = [name for name, path in MODULES.items() if has_tape(path)]
    assert users == ["training.gradients"]


def test_files_and_functions_stay_small():
    too_long = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in too_long.items() if n > 400} == {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                assert lines <= 60, f"{name}.{node.name} has {lines} lines without its docstring"
