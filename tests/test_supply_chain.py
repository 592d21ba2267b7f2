"""What the lab installs, loads and talks to: pinned packages, no pickle, no code out of data, no network."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "models", "bench", "analysis", "profiles")
SOURCES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {"urllib.request", "urllib3", "requests", "httpx", "aiohttp", "http", "socketserver"}
CALLS_CODE = {"eval", "exec"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
NOT_LOCKED = {"torch": "its builds differ in hash", "future": "unused, and a source distribution"}


def dotted(node):
    """`torch.load` of the syntax tree of that name; "" of anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def misdeeds(tree):
    """Sentences about what a module must not do."""
    for node in ast.walk(tree):
        for name in imports(node):
            if name.split(".")[0] in PICKLES or name in NETWORK or name.split(".")[0] in NETWORK:
                yield f"imports {name}"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        said = {k.arg: getattr(k.value, "value", "?") for k in node.keywords}
        if called in CALLS_CODE | SHELLS or called.endswith(("yaml.load", "yaml.unsafe_load")):
            yield f"calls {called}"
        if called == "torch.load" and said.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if said.get("trust_remote_code", False) is not False:
            yield "trust_remote_code"
        if said.get("shell", False) is not False:
            yield "shell=True"
        if said.get("allow_pickle", False) is not False:
            yield "allow_pickle"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_fetched(file):
    assert list(misdeeds(ast.parse(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "eval('1')", "torch.load(f)", "import urllib.request",
     "torch.load(f, weights_only=False)", "f(trust_remote_code=True)", "subprocess.run(c, shell=True)",
     "np.load(f, allow_pickle=True)", "yaml.load(f)", "os.system('ls')", "from requests import get"],
)  # fmt: skip
def test_what_is_looked_for_is_found(text):
    assert len(list(misdeeds(ast.parse(text)))) == 1


def test_models_are_only_loaded_from_folders():
    """`from_pretrained` would take weights and tokenizers by the name of a hub, unless it gets `local_files_only`."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = dotted(node.func) if isinstance(node, ast.Call) else ""
            if called.endswith(".from_pretrained") and not called.endswith(
                "config_class.from_pretrained"
            ):
                said = {k.arg: getattr(k.value, "value", "?") for k in node.keywords}
                assert said.get("local_files_only") is True, f"{file.name}, line {node.lineno}"


def locked():
    """{package: (version, hashes)} of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, text.splitlines()):
        name, version = re.match(r"([a-z0-9-]+)==([\w.]+)", line).groups()
        found[name] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})", line)
    return found


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_package_has_hashes_and_the_version_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonical(name): version for name, version in pinned.items()}
    found = locked()
    assert all(hashes for _, hashes in found.values())
    differing = {n: (v, pinned[n]) for n, (v, _) in found.items() if n in pinned and pinned[n] != v}
    assert not differing, "make lock"
    assert pinned.keys() - found.keys() == NOT_LOCKED.keys(), "make lock"


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {canonical(re.match(r"[\w.-]+", line).group()) for line in wanted}
    assert names - locked().keys() <= NOT_LOCKED.keys(), "make lock"


def test_no_file_of_packages_names_a_host():
    for name in ("requirements.lock", "constraints.txt", "Makefile", "pyproject.toml"):
        text = (ROOT / name).read_text()
        assert "index-url" not in text
        assert not re.search(r"files\.pythonhosted|/simple", text)


def offline(log, *command):
    """Run a command in which every attempt to reach a network is noted in `log` and fails."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "HF_HUB_OFFLINE")}
    path = os.pathsep.join([str(Path(__file__).parent / "offline"), str(ROOT)])
    env = kept | {"PYTHONPATH": path, "NETWORK_LOG": str(log), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_the_guard_sees_attempts(tmp_path):
    log = tmp_path / "log"
    for text in ("s.create_connection(('127.0.0.1', 9))", "s.getaddrinfo('localhost', 80)",
                 "s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))"):  # fmt: skip
        assert offline(log, "-c", f"import socket as s; {text}").returncode == 1
    assert len(log.read_text().splitlines()) == 3
    done = offline(log, "-c", "import socket; a, b = socket.socketpair(); a.send(b'x')")
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_with_metrics_and_report_touches_no_network(tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    sweep = ["--preset", "tiny", "--impl", "torch", "--seqlens", "32,64", "--rounds", 1]
    sweep += ["--budget", 0.02, "--device", "cpu", "--profile", "none", "--out", run]
    done = offline(log, "-m", "bench.sweep", *sweep)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()
    assert (run / "metrics.jsonl").exists()
    assert not log.exists(), log.read_text()
