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
    "evaluation": {"corpus"},
    "paper_tables": {"corpus", "evaluation"},
    "sets": {"corpus", "model", "decoding", "evaluation"},
    "server": {"corpus", "decoding"},
    "benchmarks": {"model", "decoding", "systems", "evaluation"},
    "bin": {
        *("corpus", "model", "decoding", "training", "systems", "evaluation", "paper_tables", "sets", "server"),
        "benchmarks",
    },
}
# The files at the top that join rooms; the others import none.
JOINING = {
    "__init__": {"training"},
    "__main__": {"bin"},
    "trained_model": {"systems"},
    "inference": {"corpus", "decoding", "systems"},
}


def imported_rooms(file):
    """The rooms that a file imports from, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        paths = [module.split(".")[1:] for module in modules if module.split(".")[0] == NAME]
        found |= {parts[0] for parts in paths if parts and parts[0] in ROOMS}
    return found


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
