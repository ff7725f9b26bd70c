"""The house plan, held by the code itself: floors, walls, circles and file sizes."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vqdq"
MAX_LINES = 400

# A file imports from its own floor or a lower one. Longest matching name wins.
FLOORS = {
    "vqdq.errors": 0,
    "vqdq.progress": 0,
    "vqdq.params": 0,
    "vqdq.notation": 0,
    "vqdq.packing": 0,
    "vqdq.tensors": 0,
    "vqdq.waiting": 0,
    "vqdq.durable": 0,
    "vqdq.places": 0,
    "vqdq.quantities": 0,
    "vqdq.spreadsheet": 0,
    "vqdq.kernels": 1,
    "vqdq.codecs": 2,
    "vqdq.activations": 2,
    "vqdq.calibration": 3,
    "vqdq.allocation": 3,
    "vqdq.rules": 3,
    "vqdq.sections": 3,
    "vqdq.shapes": 3,
    "vqdq.recipe": 3,
    "vqdq.also": 3,
    "vqdq.layers": 3,
    "vqdq.capture": 3,
    "vqdq.models": 4,
    "vqdq.demo": 4,
    "vqdq.metrics": 4,
    "vqdq.jobs": 5,
    "vqdq.views": 5,
    "vqdq.ui": 6,
    "vqdq.report": 6,
    "vqdq": 6,  # the public face, the command line and what serves them
}
# A heavy library enters through one door only.
WALLS = {
    "gradio": ("vqdq.ui",),
    "matplotlib": ("vqdq.views",),
    "diffusers": ("vqdq.models", "vqdq.demo", "vqdq.capture.attention"),
    "transformers": ("vqdq.models", "vqdq.demo", "vqdq.capture.attention"),
    "ray": ("vqdq.jobs.cluster",),
    "fsspec": ("vqdq.jobs.sweep_store",),
    "triton": ("vqdq.kernels.triton",),
}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _floor(module: str) -> int:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS[module]


def _imports(tree: ast.AST, *, top_level_only: bool) -> set[str]:
    """Names of imported modules; `from a import b` counts as a and a.b (b may be a module)."""
    nodes = tree.body if top_level_only and isinstance(tree, ast.Module) else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}: write the full name"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


SOURCES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_and_walls_hold(module: str) -> None:
    for name in _imports(_tree(module), top_level_only=False):
        if name in SOURCES and name != "vqdq":
            assert _floor(name) <= _floor(module), f"{module} imports {name} from a higher floor"
        library = name.partition(".")[0]
        doors = WALLS.get(library)
        if doors is not None:
            inside = any(module == door or module.startswith(f"{door}.") for door in doors)
            assert inside, f"{module} imports {library}; only {', '.join(doors)} may"


@pytest.mark.parametrize("path", sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]))
def test_no_file_is_longer_than_it_can_be_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it"


def test_there_are_no_circles() -> None:
    graph = {
        name: {
            target
            for target in _imports(_tree(name), top_level_only=True)
            if target in SOURCES and target not in (name, "vqdq")
        }
        for name in SOURCES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_app_is_only_a_door() -> None:
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) < 60
