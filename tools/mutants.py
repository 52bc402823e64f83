"""Whether tests notice a fault: ``python -m tools.mutants SEED COUNT FILE [FILE ...] -- PYTEST_ARGUMENTS``.

Makes COUNT mutants of the files, spread evenly over them, one after the other in a copy of the tree, and runs the
tests until the first one fails. A mutant has one comparison flipped, constant changed, condition negated, statement
removed, or + and - swapped. The same seed makes the same mutants; a run beyond TIMEOUT seconds
counts as killed. Exits with 0; prints survivors and the killed share.
"""

import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.comfyui import ROOT

TIMEOUT = 900
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
}  # fmt: skip


def spoken(tree: ast.Module) -> set[int]:
    """Ids of the nodes that only speak: docstrings, annotations, and what an error or a warning says."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            parts.append(node)
        if isinstance(node, ast.JoinedStr):
            parts.append(node)
        found |= {id(inner) for part in parts if part for inner in ast.walk(part)}
    return found


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that a mutant can change, always in the same order."""
    silent = spoken(tree)
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        number = isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float))
        swapped = type(getattr(node, "op", None)) in OTHER or (isinstance(node, ast.Compare) and len(node.ops) == 1)
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if number or swapped or call or isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield node


def mutate(node: ast.AST) -> None:
    """Changes the node in place."""
    if isinstance(node, ast.Compare):
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        node.op = OTHER[type(node.op)]()
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Expr):
        node.value = ast.Constant(None)
    else:
        node.test = ast.UnaryOp(ast.Not(), node.test)


def mutant(text: str, draw: random.Random) -> tuple[int, str, str, str]:
    """Line, its code before and after, and the mutant's whole text. Lines are one statement each, as Python prints."""
    tree = ast.parse(text)
    node = draw.choice(list(places(tree)))
    before = ast.unparse(node).splitlines()[0]
    mutate(node)
    return node.lineno, before, ast.unparse(node).splitlines()[0], ast.unparse(ast.fix_missing_locations(tree))


def passes(tree: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        return not subprocess.run(command, cwd=tree, stdout=subprocess.DEVNULL, timeout=TIMEOUT).returncode
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    split = sys.argv.index("--")
    (seed, count, *files), tests = sys.argv[1:split], sys.argv[split + 1 :]
    killed = 0
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".dev", ".git", "__pycache__"))
        if not passes(tree, tests):
            sys.exit("The tests fail without a mutant.")
        for number in range(int(count)):
            path = tree / files[number % len(files)]
            text = path.read_text("utf-8")
            line, before, after, changed = mutant(text, random.Random(f"{seed} {number}"))
            try:
                path.write_text(changed, "utf-8")
                survived = passes(tree, tests)
            finally:
                path.write_text(text, "utf-8")
            killed += not survived
            sys.stdout.write(
                f"{'SURVIVED' if survived else 'killed'} {path.relative_to(tree)}:{line} {before} -> {after}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {count} killed\n")


if __name__ == "__main__":
    main()
