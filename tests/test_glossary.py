"""The glossary: sorted, of words that the documentation has, each said in one way."""

import ast
import re

from test_readme import PACKAGE, README, REPO

GLOSSARY = (REPO / "docs/glossary.md").read_text(encoding="utf-8")
PAGES = [REPO / "README.md", *REPO.glob("docs/**/*.md"), *REPO.glob("egs2/*/*/*.md")]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def rows(heading: str) -> list[list[str]]:
    """The cells of each row of the table below a heading, without the table's own head."""
    part = GLOSSARY.split(f"# {heading}\n")[1].split("\n#")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return lines[2:]


def messages() -> list[str]:
    """Every string of the package that is no docstring and has more than one word: help, reports, messages."""
    found = []
    for path in [*PACKAGE.rglob("*.py"), *REPO.glob("local/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [node.value for node in strings if id(node) not in docstrings and " " in node.value.strip()]
    return found


def pages(code: str = "``") -> dict[str, str]:
    """The text of each page but the glossary, lines joined, and of the messages; ``code`` stands for code."""
    texts = {path.relative_to(REPO): path.read_text(encoding="utf-8") for path in PAGES if path.name != "glossary.md"}
    texts["messages"] = "\n".join(messages())
    return {name: " ".join(CODE.sub(code, text).split()) for name, text in texts.items()}


def test_the_glossary_is_sorted_and_linked():
    terms = [term for term, _ in rows("Glossary")]
    assert len(terms) > 30 and terms == sorted(set(terms), key=str.casefold)
    assert "(docs/glossary.md)" in README


def test_every_term_is_in_the_documentation():
    text = " ".join(pages(r"\g<0>").values())
    missing = [term for term, _ in rows("Glossary") if not re.search(rf"\b{re.escape(term)}", text, re.I)]
    assert not missing


def test_what_has_a_term_is_not_called_otherwise():
    terms, refused = {term for term, _ in rows("Glossary")}, rows("Not said")
    assert refused and {say for _, say in refused} <= terms
    for name, text in pages().items():
        for other, _ in refused:
            assert not re.search(rf"\b{re.escape(other)}", text, re.I), f"{name}: {other}"


def test_a_delay_is_said_to_be_of_what():
    """Four things are called delay: never by that word alone."""
    kinds = [term.removesuffix("delay") for term, _ in rows("Glossary") if term.endswith("delay")]
    assert len(kinds) == 4
    bare = [
        f"{name}: ...{text[match.start() - 60 : match.end()]}"
        for name, text in pages().items()
        for match in re.finditer(r"\bdelays?\b", text, re.I)
        if not text[: match.start()].lower().endswith((*kinds, "paper, ", "chunking_conf "))
    ]
    assert not bare
