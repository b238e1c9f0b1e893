"""What mkdocs.yml needs beyond MkDocs: files outside of docs/ in the site, and references of docstrings as links."""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parent.parent
OUTSIDE = "repository/"  # where the site has the files that are not in docs/
LINK = re.compile(r"(\]\()(?![a-z]+:|[#/])([^)#\s]+)((?:#[^)\s]*)?\))")
EXAMPLE = re.compile(r"^((?:(?:>>>|\.\.\.) .*\n)(?:.+\n)*)", re.M)
FIELD = re.compile(r'\boption\(.*?, "(.*)"\)$|  # (.*)$', re.M)
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc|obj):`(~?)([\w.]+)`")


def in_repository(uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"


def in_site(path: str) -> str:
    """Return the URI in the site of a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def linked(uri: str, text: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to, as URIs of the site."""
    for _, target, _ in LINK.findall(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(uri)), target))
        if (REPO / path).is_file():
            yield in_site(path)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ to which pages link, and those to which these link."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        uri = waiting.pop()
        for target in linked(uri, (REPO / in_repository(uri)).read_text(encoding="utf-8")):
            if target.startswith(OUTSIDE) and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(REPO / in_repository(target))))
                if target.endswith(".md"):
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/, or come from outside, point to where the site has these files."""
    uri = page.file.src_uri
    # Who searches for a term wants the page that explains it.
    if uri.startswith(("api/", OUTSIDE)):
        page.meta.setdefault("search", {"boost": 0.5 if uri.startswith("api/") else 0.2})

    def moved(match: re.Match[str]) -> str:
        for target in linked(uri, match[0]):
            return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".") + match[3]
        return match[0]

    return LINK.sub(moved, markdown)


def described_fields(found: griffe.Class) -> Iterator[str]:
    """Yield ``name: comment`` of each field of a dataclass that has a comment, or the help of an option."""
    if any("dataclass" in str(decorator.value) for decorator in found.decorators):
        for name, field in found.attributes.items():
            comment = FIELD.search(field.source)
            if comment and not field.has_docstring:
                yield f"{name}: {comment[1] or comment[2]}"


class DocstringMarkup(griffe.Extension):
    """Brings the markup of docstrings into Markdown: Sphinx's roles, blocks after two colons, Python examples.

    A role (:class:`~package.Name`) becomes a link where the site has its target. The fields of a dataclass are listed
    with their comments.
    """

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object."""

        def link(match: re.Match[str]) -> str:
            shown = match[2].rpartition(".")[2] if match[1] else match[2]
            target = match[2] if "." in match[2] else f"{obj.module.path}.{match[2]}"
            return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'

        if obj.docstring:
            fields = list(described_fields(obj)) if isinstance(obj, griffe.Class) else []
            if fields and "Attributes:" not in obj.docstring.value:
                obj.docstring.value += "\n\nAttributes:\n" + "\n".join(f"    {line}" for line in fields)
            text = EXAMPLE.sub(r"```pycon\n\1```\n", obj.docstring.value + "\n")
            obj.docstring.value = ROLE.sub(link, text.replace("::\n\n    ", ":\n\n    ")).rstrip()
