"""A profiling session: it starts `profiles.captured` under a profiler, follows it, and leaves a folder for every cell.

A folder holds manifest.json, the profile itself, timeline.csv and work.csv (profiles.timeline), and memory.csv and
memory_by_range.csv where they were asked for. It appears whole or not at all; that of a cell that failed holds a
manifest that says why.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import save_file

from bench.engines.node import environment, worker_settings
from bench.machine import describe
from bench.plan import Plan
from bench.profilers import Profiler
from bench.records import now
from bench.tokens import Tokens
from profiles import nsight, timeline
from profiles.captured import ANSWER
from profiles.events import ProfileError
from profiles.nsight import CaptureError

FILES = {
    "report": "capture.ncu-rep", "trace": "trace.json.gz", "tree": "proton.hatchet", "timeline": "timeline.csv",
    "work": "work.csv", "memory": "memory.csv", "memory_by_range": "memory_by_range.csv",
}  # fmt: skip
TAIL = 3  # lines of the log that explain why a process ended


@dataclass(frozen=True)
class Session:
    """How cells are captured.

    Attributes:
        run: the folder with plan.json and references/tokens.safetensors; None: of a plan that has no run.
        plan: what is in plan.json.
        tokens: those of a plan that has no run, else None.
        out: where the folders of cells go.
        profiler: one that can be used here.
        reps: of every cell; None lets `profiles.captured` choose.
        memory: also the memory timeline.
        asked: the command line that asked for the session.
    """

    run: Path | None
    plan: Plan
    tokens: Tokens | None
    out: Path
    profiler: Profiler
    reps: int | None = None
    memory: bool = False
    asked: str = ""

    def folder(self, cell):
        """Where a cell's capture goes."""
        return self.out / f"{cell.id}.{self.profiler.name}"

    def holds(self, cell):
        """Whether a cell was captured already, without an error."""
        try:
            manifest = json.loads((self.folder(cell) / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return manifest.get("status") == "ok"

    def capture(self, cells, say):
        """Capture the cells one after the other; yields (cell, its manifest) as they come.

        Args:
            say: called with (cell, text) when a step begins.
        """
        with self._scratch() as scratch:
            todo = list(cells)
            while todo:
                # one process for all that record themselves; each cell has its own under a profiler from outside
                group = todo[:1] if self.profiler.name in ("nsys", "ncu") else todo
                answers, command = self._run(group, scratch, say)
                for cell, fields in answers.items():
                    yield cell, self._finish(cell, fields, scratch / cell.id, command)
                todo = todo[len(answers) :]

    @contextmanager
    def _scratch(self):
        """A folder in `out` for what is not whole yet."""
        path = self.out / f".{os.getpid()}"
        try:
            path.mkdir(parents=True)
            if self.run is None:
                (path / "references").mkdir()
                self.plan.write(path / "plan.json")
                save_file({"ids": self.tokens.ids}, path / "references" / "tokens.safetensors")
        except OSError as error:
            raise CaptureError(f"--out {self.out}: cannot be written: {error.strerror}") from None
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _run(self, cells, scratch, say):
        """({cell: what the process wrote of it}, command line), up to the cell in which the process died."""
        by_id, answers = {cell.id: cell for cell in cells}, {}
        command = self._command(cells, scratch)
        say(cells[0], "starts")
        env = environment(worker_settings(self.plan.options.get("threads")))
        log = self.out / "log.txt"
        with log.open("a", encoding="utf-8") as said:
            start = said.tell()
            for event in followed(command, env, said):
                say(by_id[event["cell"]], event["text"])
        for cell in cells:
            answer = scratch / cell.id / ANSWER
            if not answer.exists():
                answers[cell] = {"reason": died(log, start)}
                break
            answers[cell] = json.loads(answer.read_text(encoding="utf-8"))
            answer.unlink()
        # as a person would type it: a record should not hold the paths of a machine
        words = ["python" if word == sys.executable else word for word in command]
        return answers, shlex.join(words)

    def _command(self, cells, scratch):
        command = [
            sys.executable,
            "-m",
            "profiles.captured",
            str(self.run or scratch),
            str(scratch),
        ]
        command += [cell.id for cell in cells] + ["--profiler", self.profiler.name]
        command += ["--reps", str(self.reps)] if self.reps else []
        command += ["--memory"] if self.memory else []
        part = scratch / cells[0].id
        if self.profiler.name in ("nsys", "ncu"):
            part.mkdir()
        if self.profiler.name == "nsys":
            return nsight.nsys_command(part, self.plan.options["device"] == "cuda", command)
        return nsight.ncu_command(part, command) if self.profiler.name == "ncu" else command

    def _finish(self, cell, fields, part, command):
        """Complete the folder of a cell and put it in its place; returns the manifest."""
        part.mkdir(exist_ok=True)
        manifest = {
            "cell": asdict(cell),
            "id": cell.id,
            "profiler": self.profiler.name,
            "profiler_version": self.profiler.version,
            "command": command,
            "started": now(),
            "reps": self.reps,
            "device": self.plan.options["device"],
            "machine": None,
            "kernels": {},
            "wall_ms": [],
            "files": {},
            "notes": [],
            "status": "error",
            "reason": "",
        } | fields
        manifest["notes"] = [*manifest["notes"], f"Asked for by: {self.asked}"]
        manifest["machine"] = manifest["machine"] or describe(peaks=False)
        if not manifest["reason"]:
            try:
                files, notes = self._read(cell, manifest["reps"], part)
                manifest |= {"files": files, "notes": manifest["notes"] + notes, "status": "ok"}
            except (CaptureError, ProfileError) as error:
                manifest["reason"] = str(error)
        text = json.dumps(manifest, indent=1) + "\n"
        (part / "manifest.json").write_text(text, encoding="utf-8")
        final = self.folder(cell)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        return manifest

    def _read(self, cell, reps, part):
        """(files, notes) of a recorded cell, after writing its tables by range."""
        files, notes = {}, []
        if self.profiler.name == "nsys":
            files = nsight.complete(part)
        if self.profiler.name in ("nsys", "torch"):
            found = timeline.read(part)
            check(found, cell, reps)
            timeline.write(found, part)
            notes = list(found.notes)
        files |= {kind: name for kind, name in FILES.items() if (part / name).exists()}
        if not files:
            raise CaptureError(f"{self.profiler.name} left no file")
        return files, notes


def check(found, cell, reps):
    """CaptureError unless a timeline holds the cell and all of its repetitions."""
    path, rows = f"cell/{cell.id}", zip(found.ranges.level, found.ranges.path, strict=True)
    has_reps = any(level == "rep" and name.startswith(path) for level, name in rows)
    recorded = found.reps[path] if has_reps else 0
    if recorded == 0:
        raise CaptureError("the profile holds no named range: nothing recorded what the lab marks")
    if recorded != reps:
        raise CaptureError(f"the profile is unfinished: it holds {recorded} of {reps} repetitions")


def died(log, start):
    """Why a process left no answer: what the log says last, from a position on."""
    said = log.read_bytes()[start:].decode(errors="replace").split("\n")
    last = " ".join(" ".join(list(filter(None, said))[-TAIL:]).split())[-300:]
    return f"the process ended before the recording did; it said last: {last or 'nothing'}"


def followed(command, env, log):
    """Run a command and yield the events on its standard output; all else that it says goes into the log."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then ends all of them
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith('{"event"'):
                yield json.loads(line)
            else:
                log.write(line)
                log.flush()
        process.wait()
    finally:
        process.stdin.close()
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
