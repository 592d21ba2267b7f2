"""Speaks the worker's side of the protocol and misbehaves where the length of a cell says so.

    python fake_worker.py RUN

Lengths: 666 kills the process in the cell, 667 in the warm-up of its implementation, 669 kills its parent, 777 never
ends, 888 prints to both streams, 999 is found to be unavailable, those from 5000 take 0.2 s, from 6000 1 s. `once`
files in RUN make a trouble happen a single time. Its device is the GPU in CUDA_VISIBLE_DEVICES on the node of its Ray
daemon, as far as there are such.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def send(**event):
    print(json.dumps(event), flush=True)


def follow_parent():
    os.read(0, 1)
    os._exit(1)


def device():
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES") or None
    node = os.environ.get("RAY_RAYLET_PID", "here")
    return {"node": node, "gpu": gpu and "Fake GPU", "uuid": gpu, "cpu": "Fake CPU"}


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
    threading.Thread(target=follow_parent, daemon=True).start()
    here = device()
    send(event="device", device=here)
    if (run / f"dead-{here['uuid']}").exists():
        sys.exit(1)
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
    again = [[i, o] for i, o, where in job["measured"] if where != (here["uuid"] or here["node"])]
    todo = sorted(job["cells"] + again, key=lambda pair: pair[1])
    cells = [(index, order, plan["cells"][index]) for index, order in todo]
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
        if cell["seqlen"] == 669 or once(run, "parent"):
            time.sleep(1)  # the parent has passed on that this cell began
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if cell["seqlen"] == 777:
            time.sleep(60)
        if cell["seqlen"] >= 5000:
            time.sleep(1.0 if cell["seqlen"] >= 6000 else 0.2)
        if cell["seqlen"] == 888:
            print("a warning of some library", file=sys.stderr)
        status = "unavailable" if cell["seqlen"] == 999 else "ok"
        record = {
            "cell": cell,
            "round": job["round"],
            "order": order,
            "status": status,
            "reason": "",
            "device": here,
            "started": time.time(),
        }
        send(event="record", index=index, record=record)
    send(event="done")


main()
