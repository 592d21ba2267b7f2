"""One long prefill: its proof on a prefix, its time chunk by chunk, its memory; in one process or over several."""

import ctypes
import gc
import time
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from bench import memory, memory_model, parity
from bench.forward import ChunkedForward, precision
from bench.plan import Cell
from kernels.implementations import recording
from models.bind import use
from models.chunked import cache_tensors, prefill
from models.parallel import Ranks, forward

PROOF = {"cpu": 1024, "cuda": 8192}  # tokens that are compared with a float64 reference
SHARE = 0.9  # of the free memory that a case may be predicted to take


class OverTime(RuntimeError):
    """A case that was given up; the message says how far it came."""


@dataclass(frozen=True)
class Case:
    """What is read, by what, and how: with several processes each reads a segment in one pass, without chunks."""

    arch: str
    impl: str
    preset: str
    dtype: str
    batch: int
    seqlen: int
    chunk: int | None
    processes: int = 1

    @property
    def cell(self):
        """The prefill that it is, apart from how it is read."""
        return Cell(self.arch, self.impl, self.preset, self.seqlen, self.batch, self.dtype)

    def __str__(self):
        how = f"chunk {self.chunk}" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.arch} {self.impl} {self.preset} {self.dtype} b{self.batch} {self.seqlen:,} tokens, {how}"


def new_row(case, device):
    """A row with every field; what was not measured is empty."""
    return asdict(case) | {
        "device": device, "status": "ok", "reason": "", "kernels": {}, "parity": None, "chunk_ms": [],
        "seconds": None, "tokens_per_s": None, "memory_bytes": {},
    }  # fmt: skip


def predicted(case, size):
    """{"cache", "passing"}: bytes beyond the weights, on one device, counted before the case is tried.

    `cache` is what a prefill leaves behind; over several processes what LLaMA gathers of one layer, twice.

    Args:
        size: as `bench.cost.sizes` gives it.
    """
    at_once = min(case.chunk or -(-case.seqlen // case.processes), case.seqlen)
    cache = memory_model.cache_bytes(case.cell, size)
    passing = memory_model.peak_bytes(case.cell, size, chunk=at_once)
    passing -= size["total"] * memory_model.BYTES[case.dtype]
    if at_once < case.seqlen:
        passing -= cache
    if case.processes > 1:
        cache = 2 * cache // size["layers"] if case.arch == "llama" else 0
    return {"cache": cache, "passing": passing}


def too_large(needs, device, processes=1):
    """Why a case that needs so many bytes beyond the weights is not tried; empty if it may be.

    Several processes agree on it: the one with the least free memory decides.
    """
    needs, free = sum(needs.values()), memory.free_bytes(device)
    if processes > 1:
        everywhere = [None] * processes
        dist.all_gather_object(everywhere, free)
        free = min(everywhere)
    if needs <= SHARE * free:
        return ""
    return f"it would take about {needs / 2**30:.1f} of {free / 2**30:.1f} GiB that are free"


class Proof:
    """The references of a model's first tokens, computed once.

    Args:
        model: on its device, not bound.
        ids: (batch, seqlen).
    """

    def __init__(self, model, ids, dtype):
        self.ids = ids[:, : PROOF[ids.device.type]]
        self.reference = parity.compute(model, self.ids, [self.ids.shape[1]], dtype)

    def chunked(self, model, case):
        """The `parity` of a prefill whose chunks carry over at least twice, the last one ragged, and the kernels."""
        length = min(case.seqlen, self.reference.length)
        chunk = min(case.chunk, length // 3 + 1)
        with use(model, case.impl):
            hidden, logits, kernels = ChunkedForward(
                model, self.ids[:, :length], chunk, "last"
            ).outputs()
        found = parity.check(self.reference, hidden, logits, length)
        return found | {"chunk": chunk}, kernels

    def parallel(self, model, case, split):
        """The same of a forward over the processes of the group."""
        length = min(case.seqlen, self.reference.length)
        ranks = split(length)
        with recording() as kernels:
            own = forward(model, ranks.take(self.ids[:, :length]), ranks, case.impl)
        hidden = ranks.gather_sequence(own, 1)
        head = model.get_output_embeddings()
        with torch.no_grad():
            logits = head(hidden[:, -1].to(head.weight.dtype))
        return parity.check(self.reference, hidden, logits, length), dict(kernels)


def measure(row, model, ids, case, proof, limit_s):
    """Prove, warm up and time a case in this process, into its row.

    Raises:
        OverTime: it takes longer than `limit_s`; the row has the chunks until then.
    """
    with precision(case.dtype):
        row["parity"], row["kernels"] = proof.chunked(model, case)
        if not row["parity"]["passed"]:
            row.update(status="error", reason=parity.failure(row["parity"]))
            return
        with use(model, case.impl):
            if case.seqlen > case.chunk:
                prefill(model, ids[:, : case.chunk + 1], case.chunk)
            gauge = _Peak(ids.device)
            clock = _Chunks(row["chunk_ms"], ids.device, limit_s)
            cache = prefill(model, ids, case.chunk, after_chunk=clock).cache
            _conclude(row, gauge, case)
            row["memory_bytes"]["cache"] = memory.storage_bytes(cache_tensors(cache))


def measure_parallel(row, model, ids, case, proof, balanced):
    """The same over all processes, each of which calls it: the proof is the warm-up, and there is no time limit."""
    split = Ranks.zigzag if balanced and case.arch == "llama" else Ranks.contiguous
    with precision(case.dtype):
        row["parity"], row["kernels"] = proof.parallel(model, case, split)
        if not row["parity"]["passed"]:
            row.update(status="error", reason=parity.failure(row["parity"]))
            return
        ranks = split(case.seqlen)
        own = ranks.take(ids)
        gauge = _Peak(ids.device)
        dist.barrier()
        start = time.perf_counter()
        forward(model, own, ranks, case.impl)
        _synchronize(ids.device)
        dist.barrier()
        row["chunk_ms"].append(1e3 * (time.perf_counter() - start))
        _conclude(row, gauge, case)
    peaks = [None] * case.processes
    dist.all_gather_object(peaks, row["memory_bytes"]["peak"])
    row["memory_bytes"]["peak"] = None if None in peaks else max(peaks)


def _conclude(row, gauge, case):
    row["seconds"] = sum(row["chunk_ms"]) / 1e3
    row["tokens_per_s"] = case.batch * case.seqlen / row["seconds"]
    row["memory_bytes"]["peak"] = gauge.read()


class _Chunks:
    """Notes the milliseconds of every chunk; called after each."""

    def __init__(self, found, device, limit_s):
        self.found, self.device, self.limit_s = found, device, limit_s
        _synchronize(device)
        self.begun = self.last = time.perf_counter()

    def __call__(self, done):
        _synchronize(self.device)
        now = time.perf_counter()
        self.found.append(1e3 * (now - self.last))
        self.last = now
        if now - self.begun > self.limit_s:
            raise OverTime(f"{done:,} tokens were read in {now - self.begun:.0f} s")


class _Peak:
    """Bytes beyond what is held when it is made: of torch's allocator on a GPU, of the resident size on a CPU."""

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        gc.collect()
        if self.on_gpu:
            memory.CudaPeak().start()
            self.before = torch.cuda.memory_allocated()
        else:
            # what was freed before, and is still resident, would be used again and seen by nobody
            getattr(ctypes.CDLL(None), "malloc_trim", lambda keep: None)(0)
            self.before = memory.peak_rss() if memory.reset_peak_rss() else None

    def read(self):
        if self.on_gpu:
            return memory.CudaPeak().read()["peak_allocated"] - self.before
        return None if self.before is None else memory.peak_rss() - self.before


def _synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
