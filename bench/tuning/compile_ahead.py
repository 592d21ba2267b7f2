"""Triton kernels compiled in other processes before they are launched here.

A call under `collecting` runs the host's side of an operator and stops where Triton would compile: what it would have
compiled is a request, and nothing that lacks its code is launched, so the outputs are worthless. `Compiler` has
processes without a GPU compile requests into Triton's cache on the disk, where the real launch then finds them. They
also take the blow where a compiler dies of a configuration.
"""

import importlib
import json
import multiprocessing
import os
from contextlib import contextmanager

from bench.records import one_line

SECONDS = 90  # for one kernel; a process that its compiler killed never answers


@contextmanager
def collecting():
    """Gives a list that fills with the requests of what is called within it.

    A request is a tuple of plain values: (module, function, signature, constants, attributes, options, target).
    """
    from triton import knobs
    from triton.runtime import driver

    found = []

    def note(fn, compile, **_):
        options = json.loads(compile["specialization_data"])["options"]
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        target = driver.active.get_current_target()
        found.append((
            fn.module, fn.name, compile["signature"], compile["constants"], compile["configs"][0],
            options, (target.backend, target.arch, target.warp_size),
        ))  # fmt: skip
        return True  # nothing is compiled here, and nothing launched

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = before


def compile_request(request):
    """Compile into the cache on the disk; returns why that cannot be done, or nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, function, signature, constants, attributes, options, target = request
    try:
        kernel = getattr(importlib.import_module(module), function)
        source = ASTSource(kernel, signature, constants, attributes)
        triton.compile(source, target=GPUTarget(*target), options=options)
    except Exception as error:  # of Triton, LLVM or ptxas: a reason that stands in a table
        return one_line(error)
    return ""


class Compiler:
    """Processes that compile. Every request is compiled once, whoever asks for it."""

    def __init__(self, processes=None):
        # one core stays for the process that measures, and one for what cannot wait in line
        processes = processes or max(1, len(os.sched_getaffinity(0)) - 2)
        context = multiprocessing.get_context("spawn")
        self._line, self._express = context.Pool(processes), context.Pool(1)
        self._answers = {}

    def submit(self, requests, soon=False):
        """Begin to compile, `soon`: beside what waits in line. Returns keys for `wait`."""
        keys = [repr(request) for request in requests]
        pool = self._express if soon else self._line
        for key, request in zip(keys, requests, strict=True):
            if key not in self._answers:
                self._answers[key] = pool.apply_async(compile_request, (request,))
        return keys

    def wait(self, keys, seconds=SECONDS):
        """Why one of the requests cannot be compiled, or nothing."""
        for key in keys:
            try:
                reason = self._answers[key].get(seconds)
            except multiprocessing.TimeoutError:
                return f"the compiler died, or took longer than {seconds:.0f} s"
            if reason:
                return reason
        return ""

    def close(self):
        """End the processes, whatever they are at."""
        for pool in (self._line, self._express):
            pool.terminate()
            pool.join()
