"""Write the API reference, docs/api/*.md, from signatures and docstrings.

    python docs/scripts/api_pages.py           write every page
    python docs/scripts/api_pages.py --check   say which pages are out of date; status 1 if any is

griffe reads the sources without running them, so the pages are the same on every version of Python and torch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "api"
MODULES = (
    "hyperprune",
    "hyperprune.export",
    "hyperprune.sparsifiers",
    "hyperprune.generators",
    "hyperprune.labels",
    "hyperprune.cost",
    "hyperprune.verify",
    "hyperprune.latency",
    "hyperprune.plots",
    "hyperprune.loading",
    "hyperprune.hub",
    "hyperprune.integrations.lightning",
    "hyperprune.errors",
)
CROSS_REFERENCE = re.compile(r"``([^`]+)``")
SPECIAL = re.compile(r"([\\*_<\[|])")
CODE = re.compile(r"(`[^`]*`)")


def main() -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    pages = reference()
    if parser.parse_args().check:
        stale = out_of_date(pages)
        print("\n".join(f"docs/api/{name} is out of date: run make docs" for name in stale) or "docs/api is up to date")
        return int(bool(stale))
    write(pages)
    return 0


def write(pages: dict[str, str]) -> None:
    """Write the pages, and drop those that nothing generates any more."""
    PAGES.mkdir(exist_ok=True)
    for name, text in pages.items():
        (PAGES / name).write_text(text, encoding="utf-8")
    for page in PAGES.glob("*.md"):
        if page.name not in pages:
            page.unlink()


def out_of_date(pages: dict[str, str]) -> list[str]:
    """Return the names of pages that are missing, differ, or should not be there."""
    found = {page.name: page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")}
    return sorted(name for name in found.keys() | pages.keys() if found.get(name) != pages.get(name))


def reference() -> dict[str, str]:
    """Return every page by its file name."""
    package = griffe.load(
        "hyperprune", search_paths=[str(ROOT)], docstring_parser="google", resolve_aliases=True, resolve_external=False
    )
    package_pages = {name: package if name == "hyperprune" else package[name.partition(".")[2]] for name in MODULES}
    pages = {f"{name}.md": module_page(name, module) for name, module in package_pages.items()}
    return {"README.md": index(package_pages), **pages}


def index(modules: dict[str, griffe.Module]) -> str:
    """Return the page that lists all others."""
    rows = [f"| [{name}]({name}.md) | {summary(module)} |" for name, module in modules.items()]
    lines = [
        "# API reference",
        "",
        "Made from the docstrings by `make docs`; the examples run as doctests in `make test`. Names that start with",
        "an underscore, and modules that are not listed, may change without notice.",
        "",
        "| module | what it is for |",
        "|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def module_page(name: str, module: griffe.Module) -> str:
    """Return the page of one module: its docstring, a list of names, then each of them."""
    members = public(module)
    listed = [f"* [`{member.name}`](#{anchor(member.name)}): {summary(member)}" for member in members]
    parts = [f"# {name}", *sections(module), "\n".join(listed)]
    for member in members:
        parts += entry(member, member.name, "##")
    return "\n\n".join(part for part in parts if part) + "\n"


def public(module: griffe.Module) -> list[griffe.Object]:
    """Return the functions and classes of a module: those of ``__all__``, or else those it defines, in order."""
    if module.exports is not None:
        members = [module[str(name)] for name in module.exports]
    else:
        members = [member for member in module.members.values() if not member.is_alias and member.is_public]
    targets = [member.final_target if member.is_alias else member for member in members]
    return [target for target in targets if target.is_function or target.is_class]


def entry(thing: griffe.Object, title: str, level: str) -> Iterator[str]:
    """Yield the parts of one function or class, and of the public methods of a class."""
    yield f"{level} {title}"
    yield f"```text\n{signature(thing, title)}\n```"
    yield from sections(thing)
    if thing.is_class:
        for member in thing.members.values():
            if documented_method(member):
                yield from entry(member, f"{title}.{member.name}", level + "#")


def documented_method(member: griffe.Object | griffe.Alias) -> bool:
    """Say whether a member of a class is a public method or property with a docstring."""
    is_callable = member.is_function or (member.is_attribute and "property" in member.labels)
    return not member.is_alias and member.is_public and is_callable and member.docstring is not None


def signature(thing: griffe.Object, title: str) -> str:
    """Write how to call it; of a property only its type."""
    if thing.is_attribute:
        return f"{title}: {thing.annotation}"
    if thing.is_class:
        title = f"class {title}"
        if not has_constructor(thing):
            return f"{title}({', '.join(map(str, thing.bases))})" if thing.bases else title
    arguments = listed_parameters(thing.parameters)
    returns = f" -> {thing.returns}" if thing.is_function and thing.returns is not None else ""
    one_line = f"{title}({', '.join(arguments)}){returns}"
    if len(one_line) <= 100:
        return one_line
    return f"{title}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){returns}"


def has_constructor(thing: griffe.Object) -> bool:
    """Say whether a class has arguments of its own (a dataclass has: griffe writes its ``__init__``)."""
    return "__init__" in thing.members


def listed_parameters(parameters: griffe.Parameters) -> list[str]:
    """Write the parameters one by one, with the marks for positional-only and keyword-only ones."""
    written: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is griffe.ParameterKind.var_positional:
            starred = True
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            written.append("*")
            starred = True
        written.append(parameter_text(parameter))
    return written


def parameter_text(parameter: griffe.Parameter) -> str:
    """Write one parameter with its type and default."""
    kinds = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}
    text = f"{kinds.get(parameter.kind, '')}{parameter.name}"
    annotated = parameter.annotation is not None
    if annotated:
        text += f": {parameter.annotation}"
    if parameter.default is None or parameter.kind in kinds:
        return text
    return f"{text} = {parameter.default}" if annotated else f"{text}={parameter.default}"


def sections(thing: griffe.Object) -> Iterator[str]:
    """Yield the docstring's parts as markdown."""
    if thing.docstring is None:
        return
    for section in thing.docstring.parse("google", warn_unknown_params=False, warnings=False):
        yield section_text(section)


def section_text(section: griffe.DocstringSection) -> str:
    """Write one part of a docstring."""
    kind, value = section.kind, section.value
    if kind is griffe.DocstringSectionKind.text:
        return prose(value)
    if kind is griffe.DocstringSectionKind.examples:
        return "**Example**\n\n" + "\n\n".join(example(part, text) for part, text in value)
    if kind is griffe.DocstringSectionKind.admonition:
        return admonition(section)
    titles = {
        griffe.DocstringSectionKind.parameters: "Arguments",
        griffe.DocstringSectionKind.attributes: "Attributes",
        griffe.DocstringSectionKind.raises: "Raises",
        griffe.DocstringSectionKind.returns: "Returns",
        griffe.DocstringSectionKind.yields: "Yields",
    }
    return f"**{titles[kind]}**\n\n" + "\n".join(item(kind, entry) for entry in value)


def item(kind: griffe.DocstringSectionKind, entry: griffe.DocstringElement) -> str:
    """Write one argument, attribute, error or result."""
    text = " ".join(prose(entry.description).split())
    if kind in (griffe.DocstringSectionKind.returns, griffe.DocstringSectionKind.yields):
        return f"* {text}"
    name = entry.annotation if kind is griffe.DocstringSectionKind.raises else entry.name
    return f"* `{name}`: {text}"


def admonition(section: griffe.DocstringSection) -> str:
    """Write a titled part; "Example" is one to griffe, and its text is code."""
    text = section.value.description
    if ">>>" in text:
        return f"**{section.title}**\n\n```pycon\n{text}\n```"
    return f"**{section.title}**\n\n{prose(text)}"


def example(kind: griffe.DocstringSectionKind, text: str) -> str:
    """Write a doctest, or the words between two."""
    return f"```pycon\n{text}\n```" if kind is griffe.DocstringSectionKind.examples else prose(text)


def summary(thing: griffe.Object) -> str:
    """Return the first sentence's line, for lists."""
    text = thing.docstring.value.strip() if thing.docstring else ""
    return prose(" ".join(text.split("\n\n")[0].split())).removesuffix(".")


def prose(text: str) -> str:
    """Turn docstring prose into markdown: double backticks become single ones, special characters are escaped."""
    parts = CODE.split(CROSS_REFERENCE.sub(r"`\1`", text))
    return "".join(part if part.startswith("`") else escaped(part) for part in parts)


def escaped(text: str) -> str:
    """Escape what markdown would read as markup; bullets at the start of a line stay."""
    return "\n".join(
        line if line.lstrip().startswith("* ") and line.count("*") == 1 else SPECIAL.sub(r"\\\1", line)
        for line in text.split("\n")
    )


def anchor(title: str) -> str:
    """Return the anchor GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())
