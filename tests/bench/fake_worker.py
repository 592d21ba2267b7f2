"""Speaks the worker's side of the protocol and misbehaves where the length of a cell says so.

    python fake_worker.py RUN

Lengths: 666 kills the process in the cell, 667 in the warm-up of its implementation, 777 never ends, 888 prints to both
streams, 999 is found to be unavailable. `once` files in RUN make a trouble happen a single time.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def send(**event):
    print(json.dumps(event), flush=True)


def once(run, name):
    file = run / f"once-{name}"
    if not file.exists():
        return False
    file.unlink()
    return True


def main():
    run = Path(sys.argv[1])
    job = json.loads(sys.stdin.readline())
    plan = json.loads((run / "plan.json").read_text())
    (run / f"interpret-{job['task']}").write_text(json.dumps(os.environ.get("TRITON_INTERPRET")))
    if (run / "never-start").exists() or once(run, "start"):
        sys.exit(1)
    if job["task"] == "prepare":
        for arch in ("mamba", "llama"):
            if ["reference", arch, "fp32"] not in job["skip"]:
                send(event="step", step=["reference", arch, "fp32"])
                if (run / f"no-reference-{arch}").exists():
                    os.kill(os.getpid(), signal.SIGKILL)
        for index in job["memory"]:
            send(event="step", step=["memory", str(index)])
        (run / "prepared").write_text(json.dumps([job["skip"], job["memory"]]))
    cells = [(index, order, plan["cells"][index]) for index, order in job["cells"]]
    kind = lambda c: (c["arch"], c["impl"], c["dtype"], c["mode"])
    groups = {kind(c) for _, _, c in cells}
    for group in sorted(groups):
        send(event="step", step=["warm", *group])
        own = {c["seqlen"] for _, _, c in cells if kind(c) == group}
        if 667 in own or once(run, "warm"):
            os.kill(os.getpid(), signal.SIGKILL)
    for index, order, cell in cells:
        send(event="cell", index=index)
        with (run / "ran").open("a") as file:
            file.write(f"{job['round']} {index}\n")
        if cell["seqlen"] == 666 or once(run, "cell"):
            os.kill(os.getpid(), signal.SIGKILL)
        if cell["seqlen"] == 777:
            time.sleep(60)
        if cell["seqlen"] == 888:
            print("a warning of some library", file=sys.stderr)
        status = "unavailable" if cell["seqlen"] == 999 else "ok"
        record = {
            "cell": cell,
            "round": job["round"],
            "order": order,
            "status": status,
            "reason": "",
        }
        send(event="record", index=index, record=record)
    send(event="done")


main()
