"""What the documentation names exists: files, options, commands, messages.  All pages: README.md and docs/."""

import argparse
import ast
import importlib
import re
from pathlib import Path

import pytest
import soundfile
import test_rooms
import tiny
import versions
import yaml

from espnet_speechllm_xl import config
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.systems import SYSTEMS, chunked_aed, ctc_prompt_lm, find_task

REPO = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(REPO)): path.read_text(encoding="utf-8")
    for path in [REPO / "README.md", *sorted(REPO.glob("docs/**/*.md"))]
}
README = PAGES["README.md"]
TEMPLATE = REPO / "egs2/TEMPLATE/speechllm_xl1"
DRIVER = (TEMPLATE / "speechllm_xl.sh").read_text(encoding="utf-8")
PACKAGE = REPO / "espnet_speechllm_xl"
CODE_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.M | re.S)
INLINE_CODE = re.compile(r"`([^`\n]+)`")
# Options of other programs that the pages call: sbatch, pip, pytest, mkdocs, TensorBoard, arecord, curl, hf.
FOREIGN_OPTIONS = {"extras", "gres", "local-dir", "logdir", "nodes", "ntasks-per-node", "pdb", "strict", "wait"}
every_page = pytest.mark.parametrize("page", PAGES)


def section(page, title):
    return PAGES[page].split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(text):
    """The rows of all tables of a text, without their heads."""
    lines = text.splitlines()
    body = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if "|---" not in f"{line}{after}"]
    return [line.strip("| ").split(" | ") for line in body if line.startswith("|")]


def prose(page):
    """A page without its blocks of code."""
    return CODE_BLOCK.sub("", PAGES[page])


def code(page):
    """All code of a page, in blocks or within lines."""
    return [block for _, block in CODE_BLOCK.findall(PAGES[page])] + INLINE_CODE.findall(prose(page))


def strings():
    """Every string of the package, parts joined as Python joins them and values cut out, and the shell scripts."""
    pieces = [
        path.read_text(encoding="utf-8") for path in (*REPO.glob("local/*.sh"), *REPO.glob("egs2/TEMPLATE/*/*.sh"))
    ]
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                pieces.append("".join(parts))
    return "\n".join(pieces)


def declared(script):
    """Names of the options that a script of the driver declares between its two marks."""
    marked = re.findall(r"# options begin(.*?)# options end", script, re.S)
    return {name for part in marked for name in re.findall(r"^([a-z_]+)=", part, re.M)}


def driver_options():
    """Names of the driver's options, with hyphens."""
    scripts = [path.read_text(encoding="utf-8") for path in TEMPLATE.glob("*.sh")]
    return {name.replace("_", "-") for script in scripts for name in declared(script)} | {"help"}


def options_of(parser):
    """Names of the options of a parser and of its subparsers."""
    found = {string[2:] for string in parser._option_string_actions if string.startswith("--")}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {name for sub in action.choices.values() for name in options_of(sub)}
    return found


def command_options(command):
    """Names of the options of a command of speechllm-xl."""
    if command in ("train", "train-aligner"):
        systems = SYSTEMS if command == "train" else ["ctc"]
        return {name for system in systems for name in options_of(find_task(system).get_parser())} | {"task"}
    parser = argparse.ArgumentParser()
    importlib.import_module(f"espnet_speechllm_xl.bin.{command.replace('-', '_')}").add_arguments(parser)
    return options_of(parser)


def slug(heading):
    """The anchor of a heading, as GitHub and MkDocs have it."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1800


@pytest.mark.parametrize("name", ["run.sh", "tests/run.sh"])
def test_the_two_commands_stand_in_the_first_screen(name):
    assert name in "\n".join(README.splitlines()[:25])


def test_every_page_is_in_the_readme_and_on_the_site():
    pages = {page.removeprefix("docs/") for page in PAGES} - {"README.md"}
    site = yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))
    navigation = re.findall(r"[\w/]+\.md", str(site["nav"]))
    assert pages <= set(navigation) and len(navigation) == len(set(navigation))
    linked = set(re.findall(r"\(docs/([\w/]+\.md)", README))
    assert {page for page in pages if not page.startswith("api/")} - {"index.md"} <= linked


@every_page
def test_a_page_says_first_what_it_is_for(page):
    title, empty, first = PAGES[page].splitlines()[:3]
    assert title.startswith("# ") and not empty and re.match(r"[A-Z][^|]+", first)


@every_page
def test_lists_stand_apart(page):
    """MkDocs takes a list that follows a line of text at once for a part of it."""
    before = ""
    for line in prose(page).splitlines():
        if re.match(r"(-|\d+\.) ", line):
            assert not before or re.match(r"(-|\d+\.| ) *", before), line
        before = line


def test_versions_are_those_of_a_tested_environment():
    """The row of this Python, as far as it gives each version; .ci/run has it tested in both environments."""
    lines = [line.strip("| ").split(" | ") for line in section("docs/installation.md", "Versions").splitlines()]
    header = next(line for line in lines if line[0] == "Python")
    found = versions.found()
    row = next((row for row in lines if found["Python"].startswith(f"{row[0]}.")), None)
    if row is None:
        pytest.skip(f"Python {found['Python']} is none of those that .ci/run tests")
    compared = [name for name in header if name in found]
    assert len(compared) >= 6
    for name, wanted in zip(header, row, strict=True):
        assert name not in found or f"{found[name]}.".startswith(f"{wanted}."), name


def test_every_module_is_in_the_table():
    table = section("docs/architecture.md", "Rooms")
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]:
        name = f"{path.parent.name}/" if path.parent != PACKAGE else path.name
        if not name.startswith("__"):
            assert f"`{name}`" in table, f"{name} has no place in docs/architecture.md"


def test_rooms_import_what_the_table_says():
    for room, imports in test_rooms.ROOMS.items():
        (row,) = (row for row in cells(section("docs/architecture.md", "Rooms")) if row[0] == f"`{room}/`")
        named = set(re.findall(r"`(\w+)/`", row[2]))
        assert named == imports or row[2] == "all", room


@every_page
def test_python_files_exist(page):
    for name in re.findall(r"(?<![\w<>*./$-])([\w/]+\.py)\b", "\n".join(code(page))):
        assert [*PACKAGE.rglob(name)] or (REPO / name).exists() or [*REPO.glob(f"egs2/*/*/{name}")], name


def test_messages_are_those_of_the_code():
    source = strings()
    rows = re.findall(r"^\| (`.*?`) \|", section("docs/troubleshooting.md", "Messages").replace("\\`", "\1"), re.M)
    assert len(rows) > 20
    for row in rows:
        for fragment in row.strip("`").replace("\1", "`").split("…"):
            assert fragment.strip() in source, f"no message of the code holds: {fragment!r}"


@every_page
def test_options_of_the_driver_exist(page):
    calls = [
        call for text in code(page) for call in re.findall(r"(?:\./run\.sh|speechllm_xl\.sh)((?:[^\n#\\]|\\\n)*)", text)
    ]
    # Options in quotes are handed on to ESPnet or to a command.
    calls = [re.sub(r'"[^"]*"', "", call) for call in calls]
    named = {name for call in calls for name in re.findall(r"--([a-z][a-z-]+)", call)}
    assert named <= driver_options()


def test_no_option_of_the_driver_is_declared_twice():
    scripts = {path.name: declared(path.read_text(encoding="utf-8")) for path in TEMPLATE.glob("*.sh")}
    for name, options in scripts.items():
        for other, others in scripts.items():
            assert name == other or not options & others


@every_page
def test_commands_and_their_options_exist(page):
    for text in code(page):
        for command, rest in re.findall(r"speechllm-xl ([a-z-]+)((?:[^\n#|&\\]|\\\n)*)", text):
            assert command in cli.COMMANDS, f"speechllm-xl {command}"
            named = set(re.findall(r" --([a-z][a-z_-]+)", rest)) - {"help"}
            assert not named or named <= command_options(command), f"{command}: {named - command_options(command)}"


def test_every_option_belongs_to_something():
    known = driver_options() | FOREIGN_OPTIONS
    for command in cli.COMMANDS:
        known |= command_options(command)
    patterns = ("local/*.sh", "local/*.py", "tests/*.sh", "egs2/*/*/*.sh", "egs2/*/*/local/*.py")
    for path in (path for pattern in patterns for path in REPO.glob(pattern)):
        known |= set(re.findall(r"--([a-z][\w-]*)", path.read_text(encoding="utf-8")))
    for page in PAGES:
        named = {name for text in code(page) for name in re.findall(r"(?<![\w-])--([a-z][\w-]*\w)", text)}
        assert not named - known, page


def test_stages_are_those_of_the_driver():
    stages = re.search(r"^stages=\((.*)\)", DRIVER, re.M)[1].split()
    rows = [tuple(row[:2]) for row in cells(section("docs/recipes.md", "Stages"))]
    assert rows == [(str(number), name) for number, name in enumerate(stages, 1)]


def test_systems_are_those_of_the_driver():
    known = re.findall(r"^system_(\w+)\(\)", (TEMPLATE / "systems.sh").read_text(encoding="utf-8"), re.M)
    rows = [re.match(r"`(\w+)`", row[0])[1] for row in cells(section("docs/recipes.md", "Systems")) if row[0][0] == "`"]
    assert sorted(rows) == sorted(known)
    named = {name for page in PAGES for text in code(page) for name in re.findall(r"--system ([a-z_]+)", text)}
    assert named - {"espnet_"} <= set(known)


def sections_of_the_configuration():
    """``{section: dataclass}`` of the table."""
    classes = {**vars(ctc_prompt_lm), **vars(chunked_aed), **vars(config)}
    first = PAGES["docs/configuration.md"].split("\n## ")[0]
    return {row[0].strip("`"): classes[row[1].strip("`")] for row in cells(first) if row[0].endswith("_conf`")}


def test_settings_exist():
    """Those that a page names with their section: ``concat_conf: max_seconds``, ``--encoder_conf segment=16``."""
    classes = sections_of_the_configuration()
    assert len(classes) > 10
    for page in PAGES:
        for text in code(page):
            for name, setting in re.findall(r"(\w+_conf)(?:: (?=\w+)| (?=\w+[:=]))(\w+)", text):
                assert name not in classes or setting in classes[name].__dataclass_fields__, f"{page}: {name} {setting}"


def test_all_commands_are_in_the_table():
    text = PAGES["docs/commands.md"].split("\n## ")[0]
    assert {name for row in cells(text) for name in re.findall(r"`([a-z-]+)`", row[0])} == set(cli.COMMANDS)


@every_page
def test_files_and_links_exist(page):
    here = (REPO / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (here / path).resolve() if path else REPO / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", file.read_text(encoding="utf-8")), re.M)
            assert anchor in [slug(heading) for heading in headings], target
    for path in re.findall(r"(?<![\w/.$])((?:egs2|local|tests|conf|\.ci)/[\w./]*\w)(?![\w<*])", PAGES[page]):
        if not re.search(r"/(exp|data|dump)\b", path):
            places = [REPO / path, *REPO.glob(f"egs2/*/speechllm_xl1/{path}")]
            assert any(place.exists() for place in places), path


def test_the_reference_names_what_there_is():
    names = [name for text in PAGES.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.M)]
    assert len(names) > 30 and len(names) == len(set(names))
    for name in names:
        path = REPO / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), name


def test_the_python_example_runs(tmp_path, tiny_model_dir, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(block.splitlines()) <= 12
    replacement, replaced = re.subn(r'from_pretrained\("[^"]*"\)', f"from_pretrained({str(tiny_model_dir)!r})", block)
    assert replaced == 1
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", tiny.speech(7, 64000), 16000, subtype="PCM_16")
    values = {}
    exec(compile(replacement, "README.md", "exec"), values)
    printed = capsys.readouterr().out.split()
    offline = values["s2t"].transcribe_batch([values["samples"]])[0][0].words
    assert len(offline) > 1
    # A line of four for each word, and then the words that the stream settled.
    timed, streamed = printed[: 4 * len(offline)], printed[4 * len(offline) :]
    assert timed == [str(value) for word in offline for value in (word.text, word.start, word.end, word.confidence)]
    assert len(streamed) > 1
