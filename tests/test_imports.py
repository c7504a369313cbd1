"""Who may import whom. Each module belongs to a room, each room to a layer, and imports point down.

Within a layer, modules of one room may use one another. Rooms of layers 0, 1, 2 and 4 may also use a room beside them
as long as no circle comes about; the rooms of layer 3 may not.
"""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "flashvideo"

LAYERS = (
    ("presets", "shapes", "flow", "schedule"),
    ("text", "refine", "video", "vae", "degradations", "models", "data"),
    ("pipelines", "evaluation.metrics", "evaluation.readers"),
    ("training", "enhance", "evaluation"),
    ("serving", "cli", "__main__"),
)
LAYER_OF_ROOM = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
LAYER_WITHOUT_NEIGHBOURS = 3

# What a module of layer 0 may use beyond the standard library; all else of the project rests on them.
FOUNDATION_MAY_USE = {
    "presets": set(),
    "shapes": {"torch"},
    "flow": {"torch"},
    "schedule": {"torch", "numpy", "diffusers"},  # a scheduler of diffusers by its base classes
}


def module_name(path: Path) -> str:
    """`src/flashvideo/models/rope.py` is `flashvideo.models.rope`, and an `__init__.py` is its folder."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SOURCE / PACKAGE).rglob("*.py"))}


def room_of(module: str) -> str | None:
    """The most particular room whose name leads the module's name; None if there is none."""
    inner = module.removeprefix(PACKAGE).lstrip(".").split(".")
    prefixes = [".".join(inner[:length]) for length in range(len(inner), 0, -1)]
    return next((prefix for prefix in prefixes if prefix in LAYER_OF_ROOM), None)


def imported_modules(module: str, path: Path, tree: ast.AST | None = None) -> Iterator[str]:
    """Every module that the file imports, at its top or inside a function, with its full name.

    Of `from package import name` both are given, `package.name` only where that is a module.
    """
    for node in ast.walk(tree or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


@functools.cache
def room_imports() -> list[tuple[str, str, str]]:
    """(module, its room, room it imports) for every import of one room by another."""
    found = []
    for module, path in MODULES.items():
        room = room_of(module)
        for imported in set(imported_modules(module, path)):
            other = room_of(imported) if imported.startswith(PACKAGE + ".") else None
            if room and other and other != room:
                found.append((module, room, other))
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name != PACKAGE])
def test_every_module_is_in_a_known_room(module):
    assert room_of(module), f"{module} is in none of the rooms of {LAYERS}"


def test_imports_point_down():
    upward = [
        f"{module} (layer {LAYER_OF_ROOM[room]}) imports {other} (layer {LAYER_OF_ROOM[other]})"
        for module, room, other in room_imports()
        if LAYER_OF_ROOM[other] > LAYER_OF_ROOM[room]
    ]
    assert not upward, upward


def test_training_enhancement_and_evaluation_never_import_one_another():
    across = [
        f"{module} imports {other}"
        for module, room, other in room_imports()
        if LAYER_OF_ROOM[other] == LAYER_OF_ROOM[room] == LAYER_WITHOUT_NEIGHBOURS
    ]
    assert not across, across


def test_rooms_do_not_import_in_circles():
    below = {room: {other for _, one, other in room_imports() if one == room} for room in LAYER_OF_ROOM}

    def reaches(room: str, seen: frozenset[str]) -> set[str]:
        return below[room].union(*(reaches(other, seen | {other}) for other in below[room] - seen))

    circles = [room for room in below if room in reaches(room, frozenset({room}))]
    assert not circles, f"these rooms import themselves through others: {circles}"


def test_modules_import_one_another_directly_and_not_through_the_public_face():
    # The version is the exception: it is a plain string of the package itself.
    through_face = [
        f"{module}: from {PACKAGE} import {alias.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE and not node.level
        for alias in node.names
        if alias.name != "__version__" and f"{PACKAGE}.{alias.name}" not in MODULES
    ]
    assert not through_face, through_face


@pytest.mark.parametrize("room", FOUNDATION_MAY_USE)
def test_the_foundation_rests_on_torch_alone(room):
    module = f"{PACKAGE}.{room}"
    roots = {name.split(".")[0] for name in imported_modules(module, MODULES[module])}
    others = roots - {PACKAGE} - sys.stdlib_module_names - FOUNDATION_MAY_USE[room]
    assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.cli"])
def test_importing_it_does_not_load_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import torch.nn", ["torch.nn"]),
        ("from flashvideo import flow", ["flashvideo.flow"]),
        ("from flashvideo.flow import euler", ["flashvideo.flow"]),
        ("from ..flow import euler", ["flashvideo.flow"]),
        ("from .. import flow", ["flashvideo.flow"]),
        ("def f():\n    from . import stage1", ["flashvideo.pipelines.stage1"]),
    ],
)
def test_every_way_of_importing_is_seen(line, expected):
    path = SOURCE / PACKAGE / "pipelines" / "stage2.py"
    assert list(imported_modules(f"{PACKAGE}.pipelines.stage2", path, ast.parse(line))) == expected
