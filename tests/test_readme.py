"""What the README names exists: files, options, commands, messages."""

import ast
import re
from pathlib import Path

import pytest
import soundfile
import tiny
import versions

from espnet_speechllm_xl import config
from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.systems import chunked_aed, ctc_prompt_lm

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text(encoding="utf-8")
TEMPLATE = REPO / "egs2/TEMPLATE/speechllm_xl1"
DRIVER, SHARED, ESPNET = (
    (TEMPLATE / f"{name}.sh").read_text(encoding="utf-8") for name in ("speechllm_xl", "options", "espnet_asr")
)
PACKAGE = REPO / "espnet_speechllm_xl"


def section(title):
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


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


def test_versions_are_those_of_a_tested_environment():
    """The row of this Python, as far as it gives each version; .ci/run has it tested in both environments."""
    header, _, *rows = (
        line.strip("| ").split(" | ") for line in section("Installation").splitlines() if line[:1] == "|"
    )
    found = versions.found()
    row = next((row for row in rows if found["Python"].startswith(f"{row[0]}.")), None)
    if row is None:
        pytest.skip(f"Python {found['Python']} is none of those that .ci/run tests")
    compared = [name for name in header if name in found]
    assert len(compared) >= 6
    for name, wanted in zip(header, row, strict=True):
        assert name not in found or f"{found[name]}.".startswith(f"{wanted}."), name


def test_every_module_is_in_the_table():
    table = section("Data flow")
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]:
        name = f"{path.parent.name}/" if path.parent != PACKAGE else path.name
        if not name.startswith("__"):
            assert f"`{name}`" in table, f"{name} has no place in the README"
    for name in re.findall(r"[\w/]+\.py", table):
        assert [*PACKAGE.rglob(name)], name


def test_messages_are_those_of_the_code():
    source = strings()
    rows = re.findall(r"^\| (`.*?`) \|", section("When something fails").replace("\\`", "\1"), re.M)
    assert len(rows) > 20
    for row in rows:
        for fragment in row.strip("`").replace("\1", "`").split("…"):
            assert fragment.strip() in source, f"no message of the code holds: {fragment!r}"


def declared(script):
    """Names of the options that a script declares between its two marks."""
    return set(re.findall(r"^([a-z_]+)=", script.split("# options begin")[1].split("# options end")[0], re.M))


def test_options_of_the_driver_exist():
    options = declared(DRIVER) | declared(SHARED)
    calls = re.findall(r"(?:\./run\.sh|speechllm_xl\.sh) ((?:[^`\n#\\]|\\\n)*)", README)
    # What stands in quotes is handed on to ESPnet or to a command.
    calls = [re.sub(r'"[^"]*"', "", call) for call in calls]
    named = {name for call in calls for name in re.findall(r"--([a-z][a-z-]+)", call)} - {"help"}
    for title in ("Your own data", "GPUs and clusters"):
        named.update(re.findall(r"`--([a-z-]+)[ `]", section(title)))
    assert len(named) > 15
    assert not {name for name in named if name.replace("-", "_") not in options}


def test_options_of_the_espnet_driver_exist():
    calls = re.findall(r"run_espnet\.sh ([^`\n#]*)", README)
    named = {name.replace("-", "_") for call in calls for name in re.findall(r"--([a-z][a-z-]+)", call)} - {"help"}
    assert named and named <= declared(ESPNET) | declared(SHARED)


def test_no_option_is_declared_twice():
    for driver in (DRIVER, ESPNET):
        assert not declared(driver) & declared(SHARED)


def test_stages_are_those_of_the_driver():
    stages = re.search(r"^stages=\((.*)\)", DRIVER, re.M)[1].split()
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", section("Recipes and stages"), re.M)
    assert rows == [(str(number), name) for number, name in enumerate(stages, 1)]


def test_sections_of_the_configuration():
    for name, dataclass in re.findall(r"^\| `(\w+_conf)` \| `(\w+)` \|", section("Configuration"), re.M):
        assert any(dataclass in vars(module) for module in (config, chunked_aed, ctc_prompt_lm)), name


def test_commands():
    rows = re.findall(r"^\| (`[a-z`, -]+`) \|", section("Commands and exit codes"), re.M)
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    assert named == set(cli.COMMANDS)


def test_files_and_links_exist():
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-")
        for line in README.splitlines()
        if line[:3] == "## "
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (REPO / target).exists(), target
    for path in re.findall(r"(?<![\w/.$])((?:egs2|local|tests|conf|\.ci)/[\w./]*\w)", README):
        if not re.search(r"/(exp|data|dump)\b", path) and "<" not in path:
            assert (REPO / path).exists() or (REPO / "egs2/an4/speechllm_xl1" / path).exists(), path


def test_the_python_example_runs(tmp_path, tiny_model_dir, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(block.splitlines()) <= 12
    code, replaced = re.subn(r'from_pretrained\("[^"]*"\)', f"from_pretrained({str(tiny_model_dir)!r})", block)
    assert replaced == 1
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", tiny.speech(7, 64000), 16000, subtype="PCM_16")
    values = {}
    exec(compile(code, "README.md", "exec"), values)
    printed = capsys.readouterr().out.split()
    offline = values["s2t"].transcribe_batch([values["samples"]])[0][0].words
    assert len(offline) > 1
    # A line of four for each word, and then the words that the stream settled.
    timed, streamed = printed[: 4 * len(offline)], printed[4 * len(offline) :]
    assert timed == [str(value) for word in offline for value in (word.text, word.start, word.end, word.confidence)]
    assert len(streamed) > 1


@pytest.mark.parametrize("name", ["run.sh", "tests/run.sh"])
def test_the_two_commands_stand_in_the_first_screen(name):
    assert name in "\n".join(README.splitlines()[:25])
