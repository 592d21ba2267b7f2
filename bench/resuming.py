"""What `--resume` asks before a run goes on: the same options, the same machine, the same code and versions.

Records of one run are compared with each other, so what measured them must not change between them. Another machine
or other options are refused; changed code or versions too, unless `--resume-anyway` says so: then `resumed` in
machine.json tells what changed and when, `started` in each record tells on which side of it the record is, and the
report warns.
"""

import json
import os
import shlex
from pathlib import Path

from bench import listing
from bench.machine import describe
from bench.options import resolved_subset
from bench.plan import PlanError, changed_options, read_plan
from bench.records import check_machine as check_types
from bench.records import now

NONE = "none"
NEEDS = (
    "device",
    "threads",
    "budget",
    "preset",
    "logits",
    "seqlens",
    "batch",
)  # options that cells are run with


def reopen(said, options):
    """(path, plan) of the run that --resume names; PlanError if it cannot go on with these options, here and now."""
    if "out" not in said:
        raise PlanError("--resume: name the run with --out DIR")
    path = said["out"]
    if not path.is_dir():
        raise PlanError(f"--resume: there is no run {path}")
    plan = read_plan(path / "plan.json", needs=NEEDS)
    changed = changed_options(plan.options, resolved_subset(options, said))
    if changed:
        name, planned, asked = changed[0]
        raise PlanError(
            f"--{name.replace('_', '-')}: the run {path} was planned with {listing.plain(planned)}, not "
            f"{listing.plain(asked)}; leave the option out, or start another run"
        )
    machine, here = read_machine(path), describe(plan.options["device"], peaks=False)
    check_machine(path, machine, here)
    found = changes(last_state(machine), state(here))
    if found and not said.get("resume_anyway"):
        raise PlanError(
            f"--resume: since {path} was begun, this changed: {'; '.join(found)}; its records would not compare: start "
            "another run, or go on with --resume-anyway, and the report will say so"
        )
    if "rounds" in said and said["rounds"] > plan.rounds:
        plan.rounds = plan.options["rounds"] = said["rounds"]
    return path, plan


def read_machine(path):
    """The machine.json of a run; PlanError if it is none."""
    file = Path(path) / "machine.json"
    try:
        machine = json.loads(file.read_text(encoding="utf-8"))
        if not {"cpu", "gpu"} <= machine.keys():
            raise ValueError("it names no processor")
        check_types(machine)
        if lacking := state(machine).keys() - last_state(machine).keys():
            raise ValueError(f"the last entry of resumed lacks {', '.join(sorted(lacking))}")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise PlanError(f"{file}: not readable: {error}") from None
    return machine


def check_machine(path, then, here):
    """Refuse to finish on one machine what was begun on another."""
    before, now_here = ((m["cpu"], (m["gpu"] or {}).get("name")) for m in (then, here))
    if before != now_here:
        raise PlanError(
            f"--resume: the run {path} was measured on {before[1] or before[0]}, and this is "
            f"{now_here[1] or now_here[0]}; start another run"
        )


def state(machine):
    """The part of a machine.json that may change on the same machine, and that decides what is measured."""
    kept = {name: machine.get(name) for name in ("python", "versions", "code", "git")}
    return kept | {"driver": (machine["gpu"] or {}).get("driver")}


def last_state(machine):
    """The state that the newest records of a run were measured in."""
    resumed = machine.get("resumed")
    return resumed[-1] if resumed else state(machine)


def changes(then, here):
    """What differs between two states, a phrase each: packages, Python, the driver, folders of code."""
    old, new = (
        (s["versions"] or {}) | {k: s[k] for k in ("python", "driver")} for s in (then, here)
    )
    found = [
        f"{name} {old.get(name) or NONE} -> {new.get(name) or NONE}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    before, code = then["code"] or {}, here["code"]
    if folders := [f"{name}/" for name in code if code[name] != before.get(name)]:
        revisions = (((s["git"] or {}).get("revision") or "unknown")[:7] for s in (then, here))
        found.append(f"the code of {', '.join(folders)} (revision {' -> '.join(revisions)})")
    return found


def note_changes(path, plan):
    """Append to `resumed` in the machine.json of a run what changed since its newest records, if anything did."""
    machine = read_machine(path)
    here = state(describe(plan.options["device"], peaks=False))
    if not (found := changes(last_state(machine), here)):
        return
    machine.setdefault("resumed", []).append({"when": now(), "changed": found} | here)
    part = Path(path) / "machine.part"
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(machine, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(Path(path) / "machine.json")


def resume_command(path):
    """What a person types to finish a run."""
    return shlex.join(["python", "-m", "bench.sweep", "--out", str(path), "--resume"])


def stopped(error, path):
    """The line about an OSError that ended a run, such as a full disk."""
    what = f"{error.filename or path}: {error.strerror or error}"
    return (
        f"error: {what}; all records before are safe; when that is mended: {resume_command(path)}"
    )
