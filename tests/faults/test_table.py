"""The table of promises in CONTRIBUTING.md names tests that exist, and every test of this folder stands in it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_FAULTS = {"test_table.py"}


def promised():
    """{(file, test)} that the table names."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## What survives what")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row) for row in rows]
    assert all(named), [row for row, tests in zip(rows, named, strict=True) if not tests]
    return {pair for tests in named for pair in tests}


def functions_of(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {
        n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")
    }


def test_every_promise_has_its_test():
    for file, test in promised():
        assert test in functions_of(file), f"{file} has no {test}"


def test_every_injected_fault_is_promised():
    files = {f.relative_to(ROOT).as_posix() for f in Path(__file__).parent.glob("test_*.py")}
    files -= {f"tests/faults/{name}" for name in NOT_FAULTS}
    found = {(file, test) for file in files for test in functions_of(file)}
    units = {
        pair
        for pair in found
        if pair[0].endswith("test_changed.py") and "run" not in arguments(*pair)
    }
    assert found - units == {pair for pair in promised() if pair[0] in files}


def arguments(file, test):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    (found,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == test]
    return {argument.arg for argument in found.args.args}
