"""The arrows of import point one way, and no module shadows one that everybody needs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "kernels": {"kernels"},
    "models": {"kernels", "models"},
    "bench": {"kernels", "models", "bench"},
    "analysis": {"kernels", "models", "bench", "analysis"},
    "profiles": {"kernels", "models", "bench", "analysis", "profiles"},
}
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imported(path):
    """Names of the modules of the lab that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name for name in names if name.split(".")[0] in MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        if name == "profiles.ranges":
            assert path.name != "ranges.py"
        elif path == ROOT / "bench" / "sweep.py" and name.startswith("analysis"):
            continue  # the command line prints and writes the results
        elif path == ROOT / "models" / "train.py" and name in ("bench.sessions", "bench.cli"):
            continue  # a command line: it trains on the text that the lab measures with
        else:
            assert name.split(".")[0] in MAY_IMPORT[folder], f"{path.name} imports {name}"


def test_no_module_shadows_a_library():
    shadows = {"triton", "torch", "profile", "types", "utils", "statistics", "random"}
    assert not [path for path in MODULES if path.stem in shadows]
