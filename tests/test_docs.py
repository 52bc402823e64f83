"""The pages: README is short, links lead somewhere, and commands exist with their options."""

import re
import shlex
import subprocess
import sys

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


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", sorted((ROOT / "web" / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_help_page_says_what_bypassing_does(page):
    assert len(re.findall(r"^Bypassed\b", page.read_text("utf-8"), re.M)) == 1


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
                    build_parser().parse_args([rest[0], "--help"])
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


def test_the_page_of_the_library_has_the_table_of_its_options():
    """Made of the fields themselves: after a change, this test prints it."""
    rows = [f"| `{o.name}` | `{flag_of(o)}` | `{o.default!r}` | {o.metadata['help']} |" for o in OPTIONS]
    table = "\n".join(["| option | flag | default | what it is |", "|---|---|---|---|", *rows])
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    assert re.findall(r"<!-- options -->\n(.*?)\n<!-- end of options -->", page, re.S) == [table], table
