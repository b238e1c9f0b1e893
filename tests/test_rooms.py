"""The rooms of the package: which may import which, and what each says of itself."""

import ast
from pathlib import Path

import pytest

import espnet_speechllm_xl

PACKAGE = Path(espnet_speechllm_xl.__file__).parent
NAME = PACKAGE.name
# What each room may import beside itself and the files at the top of the package.
ROOMS = {
    "corpus": set(),
    "model": {"corpus"},
    "decoding": {"corpus", "model"},
    "training": {"corpus", "model"},
    "systems": {"corpus", "model", "decoding", "training"},
    "language_models": {"model", "systems"},
    "evaluation": {"corpus"},
    "paper_tables": {"corpus", "evaluation"},
    "sets": {"corpus", "model", "decoding", "evaluation"},
    "server": {"corpus", "decoding"},
    "benchmarks": {"corpus", "model", "decoding", "training", "systems", "language_models", "evaluation"},
    "bin": {
        *("corpus", "model", "decoding", "training", "systems", "evaluation", "paper_tables", "sets", "server"),
        *("benchmarks", "language_models"),
    },
}
# The files at the top that join rooms; the others import none.
JOINING = {
    "__init__": {"training"},
    "__main__": {"bin"},
    "trained_model": {"model", "systems"},
    "inference": {"corpus", "decoding", "systems"},
}


def imports(file):
    """What a file imports of the package, at its top or within functions: ("room", "file", "name") and shorter ones."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {tuple(module.split(".")[1:]) for module in modules if module.split(".")[0] == NAME}
    return found


def imported_rooms(file):
    return {path[0] for path in imports(file) if path and path[0] in ROOMS}


def test_every_folder_is_a_known_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_below_it(room):
    files = sorted((PACKAGE / room).glob("*.py"))
    strange = {file.name: extra for file in files if (extra := imported_rooms(file) - {room} - ROOMS[room])}
    assert strange == {}
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and len(docstring.split()) >= 8, "it says what lives there"


def test_files_at_the_top_import_no_room_but_those_that_join_them():
    for file in PACKAGE.glob("*.py"):
        assert imported_rooms(file) <= JOINING.get(file.stem, set()), file.name


def test_of_the_systems_only_their_tasks_import_training():
    """A trained model loads without it, see tests/test_startup.py."""
    for file in (PACKAGE / "systems").glob("*.py"):
        found = {path[1] for path in imports(file) if path[0] == "training"}
        assert found <= {"compat"} or file.stem == "base_task", file.name
        found = {path[:2] for path in imports(file)}
        assert ("systems", "base_task") not in found or file.stem in ("base_system", "__init__"), file.name
