"""Small captures with planted events, written as Nsight Systems and as torch.profiler write them."""

import gzip
import json
import sqlite3
from dataclasses import dataclass, field

PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75
COPIES = {"Memcpy HtoD": 1, "Memcpy DtoH": 2, "Memcpy DtoD": 8}
DEVICE = "start end deviceId contextId streamId correlationId globalPid"
GRID = "registersPerThread gridX gridY gridZ blockX blockY blockZ gridId"
NVTX = ("start end eventType rangeId category color text globalTid endGlobalTid textId domainId "
        "uint64Value int64Value doubleValue uint32Value int32Value floatValue")  # fmt: skip

# the columns of each version; a table is made only when something is in it
SCHEMAS = {
    "2020.3": {
        "EXPORT_META_DATA": "name value",
        "StringIds": "id value",
        "NVTX_EVENTS": NVTX,
        "CUPTI_ACTIVITY_KIND_RUNTIME": "start end eventClass globalTid correlationId nameId returnValue",
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{DEVICE} demangledName shortName launchType {GRID}",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{DEVICE} bytes copyKind srcKind dstKind",
        "CUPTI_ACTIVITY_KIND_MEMSET": f"{DEVICE} value bytes memKind",
    },
    "2022.4": {
        "EXPORT_META_DATA": "name value",
        "StringIds": "id value",
        "NVTX_EVENTS": f"{NVTX} jsonTextId jsonText",
        "CUPTI_ACTIVITY_KIND_RUNTIME": "start end eventClass globalTid correlationId nameId returnValue callchainId",
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{DEVICE} demangledName shortName mangledName launchType {GRID} graphNodeId",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{DEVICE} bytes copyKind deprecatedSrcId srcKind dstKind graphNodeId",
        "CUPTI_ACTIVITY_KIND_MEMSET": f"{DEVICE} value bytes graphNodeId memKind",
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": f"{DEVICE} graphId graphExecId",
    },
    "2025.1": {
        "META_DATA_EXPORT": "name value",
        "META_DATA_CAPTURE": "name value",
        "StringIds": "id value",
        "NVTX_EVENTS": f"{NVTX} jsonTextId jsonText binaryData",
        "CUPTI_ACTIVITY_KIND_RUNTIME": "start end eventClass globalTid correlationId nameId returnValue callchainId",
        "CUPTI_ACTIVITY_KIND_KERNEL": f"{DEVICE} greenContextId demangledName shortName mangledName launchType {GRID} "
        "graphNodeId qmdLastCtaDone graphId clusterX clusterY clusterZ",
        "CUPTI_ACTIVITY_KIND_MEMCPY": f"{DEVICE} greenContextId bytes copyKind srcKind dstKind graphNodeId copyCount",
        "CUPTI_ACTIVITY_KIND_MEMSET": f"{DEVICE} greenContextId value bytes graphNodeId memKind",
        "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": f"{DEVICE} greenContextId graphId graphExecId",
        "CUDA_GRAPH_NODE_EVENTS": "start end eventClass globalTid nameId graphNodeId originalGraphNodeId",
    },
}
TABLES = {"kernel": "KERNEL", "memcpy": "MEMCPY", "memset": "MEMSET", "graph": "GRAPH_TRACE"}


def _without_self(arguments):
    return {name: value for name, value in arguments.items() if name != "self"}


@dataclass
class Capture:
    """Events by hand; times in ns. `pid` and `tid` are small numbers, packed as each format does."""

    ranges: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    work: list = field(default_factory=list)
    ops: list = field(default_factory=list)
    last: int = 0

    def range(self, name, start, end, tid=1, pid=1, domain="crossover", kind=PUSH_POP, as_id=True):
        self.ranges.append(_without_self(locals()))

    def call(self, name, start, end, correlation, tid=1, pid=1):
        self.calls.append(_without_self(locals()))

    def launch(
        self,
        name,
        at,
        start,
        end,
        tid=1,
        pid=1,
        kind="kernel",
        stream=7,
        correlation=None,
        made=True,
        node=None,
    ):
        """Device work from start to end, and its call, which takes 2 ns from `at`."""
        if correlation is None:
            self.last += 1
            correlation = self.last
        if made:
            self.call("cudaLaunchKernel_v7000", at, at + 2, correlation, tid, pid)
        self.work.append(_without_self(locals()))

    def op(self, name, start, end, tid=1, pid=1):
        self.ops.append(_without_self(locals()))


def write_nsight(capture, path, version="2022.4"):
    """The SQLite export of a version; `path`."""
    strings = {}
    string = lambda text: strings.setdefault(text, len(strings) + 1)
    process = lambda pid: (0x0100 << 48) | (pid << 24)
    thread = lambda event: process(event["pid"]) | event["tid"]
    rows = []  # (table, values)
    meta = next(name for name in SCHEMAS[version] if name.endswith(("_EXPORT", "META_DATA")))
    rows.append((meta, {"name": "EXPORT_PRODUCT_VERSION", "value": version}))
    numbers = {}
    for event in capture.ranges:
        known = numbers.setdefault(event["pid"], {})
        if event["domain"] not in known and event["domain"]:
            known[event["domain"]] = len(known) + 1
            made = {
                "eventType": DOMAIN_CREATE,
                "text": event["domain"],
                "domainId": known[event["domain"]],
                "start": 0,
            }
            rows.append(("NVTX_EVENTS", made | {"globalTid": thread(event)}))
        text = {"textId": string(event["name"])} if event["as_id"] else {"text": event["name"]}
        values = {
            "start": event["start"],
            "end": event["end"],
            "eventType": event["kind"],
            "globalTid": thread(event),
        }
        rows.append(("NVTX_EVENTS", values | text | {"domainId": known.get(event["domain"])}))
    for event in capture.calls:
        values = {
            "start": event["start"],
            "end": event["end"],
            "globalTid": thread(event),
            "eventClass": 0,
        }
        values |= {
            "correlationId": event["correlation"],
            "nameId": string(event["name"]),
            "returnValue": 0,
        }
        rows.append(("CUPTI_ACTIVITY_KIND_RUNTIME", values))
    for event in capture.work:
        values = {"start": event["start"], "end": event["end"], "streamId": event["stream"]}
        values |= {"correlationId": event["correlation"], "globalPid": process(event["pid"])}
        name = {"demangledName": string(event["name"]), "shortName": string(event["name"])}
        values |= {
            "kernel": name,
            "memcpy": {"copyKind": COPIES.get(event["name"])},
            "memset": {},
            "graph": {"graphId": event["name"].split()[-1]},
        }[event["kind"]]
        values |= {"graphNodeId": event["node"]} if event["node"] is not None else {}
        rows.append((f"CUPTI_ACTIVITY_KIND_{TABLES[event['kind']]}", values))
    rows += [("StringIds", {"id": i, "value": text}) for text, i in strings.items()]
    _write_rows(path, SCHEMAS[version], rows)
    return path


def _write_rows(path, schema, rows):
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table in dict.fromkeys(table for table, _ in rows):
            columns = ", ".join(f'"{name}"' for name in schema[table].split())
            connection.execute(f"CREATE TABLE {table} ({columns})")
        for table, values in rows:
            names = ", ".join(f'"{name}"' for name in values)
            marks = ", ".join("?" * len(values))
            connection.execute(
                f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values())
            )
    connection.close()


def write_kineto(capture, path):
    """The Chrome trace of torch.profiler, .json or .json.gz; `path`."""
    times = lambda event: {
        "ts": event["start"] / 1000,
        "dur": (event["end"] - event["start"]) / 1000,
    }
    host = lambda event: (
        {"ph": "X", "pid": event["pid"], "tid": event["tid"], "name": event["name"]} | times(event)
    )
    linked = lambda event: {"args": {"correlation": event["correlation"]}}
    events = [{"ph": "M", "name": "process_name", "pid": 1, "ts": 0.0, "args": {"name": "python"}}]
    events += [host(event) | {"cat": "user_annotation"} for event in capture.ranges]
    events += [host(event) | {"cat": "cpu_op"} for event in capture.ops]
    events += [host(event) | {"cat": "cuda_runtime"} | linked(event) for event in capture.calls]
    for event in capture.work:
        kind = {"kernel": "kernel", "memcpy": "gpu_memcpy", "memset": "gpu_memset"}[event["kind"]]
        detail = {"memcpy": " (Pageable -> Device)", "memset": " (Device)"}.get(event["kind"], "")
        made = host(event) | {
            "cat": kind,
            "name": event["name"] + detail,
            "pid": 0,
            "tid": event["stream"],
        }
        events.append(made | linked(event))
    events += [
        host(event) | {"cat": "gpu_user_annotation", "pid": 0, "tid": 7} for event in capture.ranges
    ]
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        json.dump({"schemaVersion": 1, "traceEvents": events, "displayTimeUnit": "ms"}, file)
    return path
