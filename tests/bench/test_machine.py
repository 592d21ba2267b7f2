import json
import subprocess

from bench import machine


def test_a_description_is_plain_json_and_names_what_decides_a_result():
    described = machine.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["versions"]["torch"]
    assert described["gpu"] is None
    assert described["tf32"] is False
    assert described["peaks"]["copy_bytes_per_s"] > 0
    assert described["peaks"]["matmul_flops"]["fp32"] > 0


def test_revision_is_that_of_the_checkout():
    state = machine.git_state()
    root = machine.Path(machine.__file__).parent
    found = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert state["revision"] == (found.stdout.strip() or None)


def test_outside_a_checkout_the_revision_is_unknown(monkeypatch):
    def no_git(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(machine.subprocess, "run", no_git)
    assert machine.git_state() == {"revision": None, "dirty": None}
