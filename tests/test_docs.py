"""What the README and the docs show runs and prints what they say, and what they link to exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperprune.cli.main import EXAMPLES, build_parser
from hyperprune.labels import registered, unregister
from tests.docs_worlds import WORLDS, ordinary, use_weights_on_disk
from tests.pages import (
    PAGES,
    ROOT,
    Block,
    anchors_of,
    blocks_of,
    commands_of,
    differences,
    inline_code_of,
    links_of,
)

LANGUAGES = {"python", "pycon", "sh", "text", "json", "html", "toml"}
REDIRECT = re.compile(r"\s+[|>].*$")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    """Return the blocks of Python of a page."""
    return [block.text for block in blocks_of(page) if block.language == "python"]


RUN_ELSEWHERE = {
    "README.md": "tests/test_docs.py",
    "docs/deploy.md": "tests/onnx_export/test_page.py",
}
WITH_PYTHON = [page for page in PAGES if blocks(page)]
HERE = [page for page in WITH_PYTHON if name_of(page) not in RUN_ELSEWHERE]
WITH_COMMANDS = [page for page in PAGES if commands_of(page)]


@pytest.fixture
def rules_as_before() -> Iterator[None]:
    """Take back the rules that a page registers."""
    before = set(registered())
    yield
    for name in set(registered()) - before:
        unregister(name)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules_as_before: None) -> Path:
    """An empty folder to run in, and timm's pretrained weights without a download."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    use_weights_on_disk(tmp_path / "weights", monkeypatch)
    return tmp_path / "here"


def run(page: Path, block: Block, above: int, space: dict[str, Any], says: pytest.CaptureFixture[str]) -> str:
    """Run one block as if it stood below ``above`` lines in a file named after the page; return what it prints."""
    code = block.text.replace("224, 224", "64, 64") if page == ROOT / "README.md" else block.text
    says.readouterr()
    try:
        exec(compile("\n" * above + code, f"{page.stem}.py", "exec"), space)
    except Exception as error:
        raise AssertionError(f"{name_of(page)}: the block of line {block.line} fails: {error!r}") from error
    return says.readouterr().out


def run_page(page: Path, space: dict[str, Any], says: pytest.CaptureFixture[str]) -> str:
    """Run a page's Python in order; compare what is shown as printed with what was; return all that was printed."""
    everything = said = ""
    above = 0
    for block in blocks_of(page):
        if block.language == "python":
            said += run(page, block, above, space, says)
            above += len(block.text.splitlines())
        elif block.printed:
            wrong = list(differences(block.text, said))
            assert not wrong, f"{name_of(page)}, line {block.line}: {wrong}"
            everything, said = everything + said, ""
    return everything + said


@pytest.mark.slow
def test_what_the_readme_shows_prunes_saves_loads_exports_and_reports(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = WORLDS["README.md"](world)
    said = run_page(ROOT / "README.md", space, capsys)
    loaded = torch.load(world.parent / "weights" / "resnet50.pth", weights_only=True)
    assert torch.equal(space["model"].conv1.weight, loaded["conv1.weight"])
    assert "groups" in said
    assert "relative error" in said
    assert space["search"].done
    assert 0.499 < space["search"].progress().macs_fraction <= 0.5
    assert type(space["slim"]) is type(space["model"])
    assert {file.name for file in world.iterdir()} == {"slim.safetensors", "slim.onnx", "slim.pt2", "report.html"}


@pytest.mark.parametrize("page", HERE, ids=name_of)
def test_the_python_of_every_page_runs_in_order_and_prints_what_is_shown(
    page: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"__name__": "page", **WORLDS.get(name_of(page), ordinary)(world)}
    run_page(page, space, capsys)
    assert len(space) > 1, "a page whose code defines nothing shows nothing"


def test_a_page_that_shows_what_is_not_printed_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "tutorials" / "first-prune.md"
    shown = "step 300/300: 1.16 M MACs (48.8%)"
    assert not list(differences(shown, "step 300/300: 1.17 M MACs (49.0%)"))
    assert list(differences(shown, "step 300/300: 1.90 M MACs (48.8%)"))
    assert list(differences(shown, "step 300/300: 1.16 G MACs (48.8%)"))
    assert list(differences(shown, "step 300/300:"))
    assert any(block.printed for block in blocks_of(page))


@pytest.mark.parametrize(("page", "place"), RUN_ELSEWHERE.items())
def test_pages_that_run_elsewhere_do(page: str, place: str) -> None:
    parts = " / ".join(f'"{part}"' for part in Path(page).parts)
    assert f"ROOT / {parts}" in (ROOT / place).read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_a_language_that_is_checked(page: Path) -> None:
    strange = [f"line {b.line}: {b.language!r}" for b in blocks_of(page) if b.language not in LANGUAGES]
    assert strange == []


def parse(line: str) -> None:
    """Let argparse read a documented command.

    Raises:
        AssertionError: it would refuse it.
    """
    words = shlex.split(REDIRECT.sub("", line), comments=True)
    try:
        build_parser().parse_args(words[1:])
    except SystemExit as end:  # also how argparse ends after --help, with status 0
        if end.code:
            raise AssertionError(f"hyperprune refuses: {line}") from end


def check_command(line: str) -> None:
    """Check one shell command: of hyperprune, make, python or pip."""
    program, *words = shlex.split(line, comments=True)
    if program == "hyperprune":
        parse(line)
    elif program == "make":
        targets = {word for word in words if "=" not in word}
        assert targets <= make_targets(), line
    elif program == "python" and words[0] != "-m":
        assert (ROOT / words[0]).exists(), line
    elif program == "pip":
        extras = {extra for group in re.findall(r"(?:hyperprune|\.)\[([\w,]+)\]", line) for extra in group.split(",")}
        assert extras <= known_extras(), line
    else:
        assert program in ("git", "cd", "python", "docker"), f"nobody checks {line!r}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def known_extras() -> set[str]:
    """Return the extras that pyproject.toml names (Python 3.10 has no tomllib)."""
    part = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    return set(re.findall(r"^([a-z]+) = \[", part.partition("\n[")[0], re.M))


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_every_command_of_every_page_would_be_understood(page: Path) -> None:
    commands = commands_of(page)
    for _, line in commands:
        check_command(line)
    assert commands


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_running_text_would_be_understood_too(page: Path) -> None:
    for text in inline_code_of(page):
        if re.match(r"(?:make [a-z-]+$|pip install |python [\w/]+\.py)", text):
            check_command(text)
        elif re.match(r"hyperprune [a-z]+ .", text) and "..." not in text:
            parse(text)


def test_the_examples_that_help_shows_would_be_understood() -> None:
    lines = [line.split("  ")[1] for line in EXAMPLES.splitlines() if line.startswith("  hyperprune ")]
    assert len(lines) >= 4
    for line in lines:
        parse(line)


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in ("hyperprune prune --macs", "make nothing-of-the-kind", "pip install 'hyperprune[nothing]'"):
        with pytest.raises(AssertionError):
            check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere_and_every_anchor_to_a_heading(page: Path) -> None:
    assert [link for link in links_of(page) if not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    """Say whether a link's file and heading exist; of an address on the web only whether it is one."""
    if link.startswith(("http:", "https:")):
        return re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", link) is not None
    target, _, anchor = link.partition("#")
    file = (page.parent / target).resolve() if target else page
    return file.exists() and (not anchor or anchor in anchors_of(file))


def test_a_dead_link_and_a_dead_anchor_are_found() -> None:
    page = ROOT / "docs" / "architecture.md"
    assert leads_somewhere(page, "#labels")
    assert not leads_somewhere(page, "#no-such-heading")
    assert not leads_somewhere(page, "no-such-page.md")


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links_of(page) if "://" not in link]
        waiting += [target for target in targets if target.suffix == ".md" and target not in seen and target.exists()]
    assert [name_of(page) for page in PAGES if page not in seen] == []


def test_the_reference_is_what_the_docstrings_say() -> None:
    pytest.importorskip("griffe")
    from docs.scripts.api_pages import out_of_date, reference

    assert out_of_date(reference()) == [], "run make docs"
