"""The pages: README is short, links lead somewhere, and commands exist with their options."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dasheng_core.cli.arguments import build_parser
from dasheng_core.options import OPTIONS, flag_of
from tools.comfyui import ROOT

PAGES = sorted(
    page for page in ROOT.rglob("*.md") if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def links(text: str) -> list[str]:
    """The relative links of a page, without anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.split("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


def commands(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """The words of each command that a page has in blocks, and of each that it names in a sentence."""
    block = re.compile(r"^```[a-z]*\n(.*?)^```", re.M | re.S)
    lines = "".join(block.findall(text)).replace("\\\n", " ").splitlines()
    return words_of(lines), words_of(re.findall(r"`([^`]+)`", block.sub("", text)))


def words_of(lines: list[str]) -> list[list[str]]:
    lines = [re.sub(r"^([A-Z_]+=\S+ )+", "", line.strip()) for line in lines]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(python3?|dasheng) ", line)]


def test_readme_is_short_and_each_help_page_says_what_bypassing_does():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130
    for page in (ROOT / "web" / "docs").glob("*.md"):
        assert len(re.findall(r"^Bypassed\b", page.read_text("utf-8"), re.M)) == 1, page


@pytest.mark.parametrize("page", sorted((ROOT / "web" / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_help_page_begins_with_what_one_gets_and_an_example_with_numbers(page):
    first, _, rest = page.read_text("utf-8").partition("## Inputs")
    example = first.partition("**Example:**")[2]
    assert re.search(r"\d", example), "no example"
    # How it is computed stands at the end.
    assert not re.search(r"arXiv|velocity|v − v", first) and rest


@each_page
def test_links_lead_somewhere(page):
    assert not [link for link in links(page.read_text("utf-8")) if not (page.parent / link).exists()]


@each_page
def test_commands_exist(page, capsys):
    whole, named = commands(page.read_text("utf-8"))
    for words in [*whole, *named]:
        program, *rest = words
        if program == "dasheng" or rest[:2] == ["-m", "dasheng_core"]:
            rest = rest if program == "dasheng" else rest[2:]
            if words in whole:
                build_parser().parse_args(rest)
            if rest:
                with pytest.raises(SystemExit, match="0"):
                    build_parser().parse_args([*rest[:1], "--help"] if rest[0][0] != "-" else ["--help"])
                check_options(rest, capsys.readouterr().out)
        elif rest[0] == "dev.py":
            shown = subprocess.run([sys.executable, ROOT / "dev.py", rest[1], "--help"], capture_output=True, text=True)
            assert shown.returncode == 0, shown.stderr
            check_options(rest, shown.stdout)
            assert all((ROOT / argument).exists() for argument in rest if argument.endswith(".py")), rest
        elif rest[:2] == ["-m", "pytest"]:
            assert (ROOT / rest[2]).exists(), words
        elif rest[:2] != ["-m", "pip"]:
            file = ROOT / (rest[1].replace(".", "/") + ".py" if rest[0] == "-m" else rest[0])
            assert file.exists(), words


def check_options(words: list[str], shown: str) -> None:
    missing = [word for word in words if word.startswith("--") and not re.search(rf"{word}\b", shown)]
    assert not missing, words


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def defined(source: str) -> set[str]:
    """Names of the functions and classes in a module, methods too."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)}


def place_of(path: str) -> Path | None:
    """A path as the page writes it: of the repository, or of a package in it."""
    return next((ROOT / base / path for base in ("", "dasheng_core", "nodes") if (ROOT / base / path).exists()), None)


def test_every_path_of_the_architecture_exists():
    paths = re.findall(r"`([\w/.]+(?:/|\.(?:py|md|json)))`", ARCHITECTURE)
    assert "dasheng_core/control/nest.py" in paths and "web/docs/" in paths
    # Folders, and modules in the text, may stand relative to the package.
    assert not [
        path for path in paths if not any((ROOT / base / path).exists() for base in ("", "dasheng_core", "nodes"))
    ]


def test_every_name_of_the_architecture_is_where_it_says():
    found = re.findall(r"((?:`\w+`(?:, | and )?)+(?: and others)?) in `([\w/]+\.py)`", ARCHITECTURE)
    assert len(found) > 5
    for names, path in found:
        assert {*re.findall(r"`(\w+)`", names)} <= defined(place_of(path).read_text("utf-8")), path


def test_every_module_stands_in_a_room_of_the_architecture():
    core, nodes = re.search(r"<!-- rooms -->\n(.*?)\n\n(.*?)\n<!--", ARCHITECTURE, re.S).groups()
    for place, table in (("dasheng_core", core), ("nodes", nodes)):
        rows = [row.split("|")[2:4] for row in table.splitlines()[2:]]
        named = [name for files, _ in rows for name in re.findall(r"`([\w/]+)`", files)]
        there = {path.stem for path in (ROOT / place).glob("*.py") if path.stem[:2] != "__"}
        there |= {f"{path.parent.name}/" for path in (ROOT / place).glob("*/__init__.py")}
        assert len(named) == len({*named}) and {*named} <= there
        assert place == "nodes" or {*named} == there
        modules = [*(ROOT / place).rglob("*.py")]
        known = {path.stem for path in modules}.union(*(defined(path.read_text("utf-8")) for path in modules))
        assert {*re.findall(r"`(\w+)`", " ".join(text for _, text in rows))} <= known | {place}


def test_the_glossary_has_each_word_once():
    words = re.findall(r"^- \*\*(.*?)\*\*", ARCHITECTURE, re.M)
    assert len(words) > 30 and words == sorted({*words}, key=str.casefold)


def test_the_page_of_the_library_has_the_table_of_its_options():
    """Made of the fields themselves: after a change, this test prints it."""
    rows = [f"| `{o.name}` | `{flag_of(o)}` | `{o.default!r}` | {o.metadata['help']} |" for o in OPTIONS]
    table = "\n".join(["| option | flag | default | what it is |", "|---|---|---|---|", *rows])
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    assert re.findall(r"<!-- options -->\n(.*?)\n<!-- end of options -->", page, re.S) == [table], table
