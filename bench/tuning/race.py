"""One kernel on one problem: every candidate is checked, they race, and the best is confirmed against the default.

heats          candidates that passed the accuracy rule, three samples each in random order: who takes more than 1.3
               times the time of the fastest leaves, and so do all but the fastest few; the default stays to the end
final          blocks of samples, in random order within a block
confirmation   the best of the final is timed against the default alone, in pairs: the ratio and its t interval are of
               these fresh samples, since the best of many looks better than it is; a winner is checked once more, at
               an odd length
"""

import dataclasses
import functools
import random
import statistics

import torch

from bench import kernel_trial
from bench.kernels import DTYPES
from bench.records import one_line
from bench.tuning.case import compile_with
from bench.tuning.compile_ahead import SECONDS
from bench.verdict import ratio_interval, verdict
from kernels import tuning

HEATS, HOPELESS = 3, 1.3
FINAL_BLOCKS, CONFIRMING_BLOCKS = 6, 12
SAMPLES, BLOCK_MS = 5, 10.0  # of a candidate in a block: so many, as far as they take no longer
KEEP = 6


def race(prepared, stand, failed=(), keep=KEEP):
    """Check and time the candidates of a case.

    Args:
        failed: configurations that ended a process before: they are not run.
        keep: how many candidates go on to the final, beside the default.

    Returns:
        A dict of plain values: the case, its traits, `rows` (one a candidate: configuration, status, reason, times in
        ms), `best` (a configuration; {} where nothing is faster than the default), `ratio`: best over default.
    """
    case, rows, runs = prepared.case, [], {}
    for configuration, compiling in zip(prepared.configurations, prepared.compiling, strict=True):
        stand.check_time()
        row = {"configuration": configuration, "status": "ok", "reason": ""}
        rows.append(row | {"error_over_bound": None, "heat_ms": [], "final_ms": []})
        if configuration in failed:
            rows[-1].update(status="fatal", reason="the process ended while it ran")
        else:
            repeat = _admit(rows[-1], prepared, compiling, stand)
            if repeat is not None:
                runs[len(rows) - 1] = repeat
    record = {
        **case.named, "operator": case.operator, "mode": case.mode, "checked_on": str(prepared.checked),
        **prepared.asked, "rows": rows, "best": {}, "ratio": None, "default_ms": None, "best_ms": None, "reason": "",
    }  # fmt: skip
    if 0 not in runs:
        return record | {"reason": f"the default cannot be timed: {rows[0]['reason']}"}
    return record | _timed(prepared, rows, runs, stand, keep)


def _timed(prepared, rows, runs, stand, keep):
    """Heats, final and confirmation of `runs`, {index of a row: call}; the default has index 0."""
    shuffle = random.Random(" ".join(prepared.case.key)).shuffle
    sampled = functools.partial(_blocks, prepared, stand=stand, shuffle=shuffle)
    samples = dict.fromkeys(runs, 1)
    heats = sampled(runs, samples, HEATS)
    once = {i: statistics.median(times) for i, times in heats.items()}
    runs = {i: runs[i] for i in survivors(once, keep)}
    samples = {i: max(1, min(SAMPLES, int(BLOCK_MS / max(once[i], 1e-6)))) for i in runs}
    final = sampled(runs, samples, FINAL_BLOCKS)
    for i, row in enumerate(rows):
        row["heat_ms"], row["final_ms"] = heats.get(i, []), final.get(i, [])
    medians = {i: statistics.median(times) for i, times in final.items()}
    for best in sorted(medians, key=medians.get):
        if best == 0:
            break
        pair = sampled({0: runs[0], best: runs[best]}, samples, CONFIRMING_BLOCKS)
        ratio = ratio_interval(pair[best], pair[0])
        faster = verdict(ratio) == "faster"
        if faster and not _holds_at_an_odd_length(rows[best], prepared, stand):
            continue
        rows[0]["confirmed_ms"], rows[best]["confirmed_ms"] = pair[0], pair[best]
        return {
            "best": rows[best]["configuration"] if faster else {},
            "ratio": dataclasses.asdict(ratio),
            "tried": rows[best]["configuration"],
            "default_ms": statistics.median(pair[0]),
            "best_ms": statistics.median(pair[best]),
        }
    return {"default_ms": medians[0], "best_ms": medians[0]}


def survivors(once, keep):
    """Who goes on after the heats: the default (0), and the fastest `keep` of those near the fastest.

    once: {index: ms}.
    """
    near = [i for i in sorted(once, key=once.get) if once[i] <= HOPELESS * min(once.values())]
    return [0, *[i for i in near if i][:keep]]


def _admit(row, prepared, compiling, stand):
    """Check one candidate; gives the call that the clock repeats, or None with the reason in its row."""
    case, configuration = prepared.case, row["configuration"]
    row |= _judged(case, prepared.checked, configuration, compiling, stand)
    if row["status"] != "ok":
        return None
    start = functools.partial(kernel_trial.start, case.run, case.mode, prepared.inputs)
    with stand.trying(case, configuration):
        trial, row["status"], row["reason"] = _attempt(_using(case, configuration, start), stand)
        if trial is None:
            return None
        truth = _truth(case, prepared.checked, stand.device)
        if wrong := kernel_trial.wrong_at_size(trial.outputs, truth, case.mode):
            row.update(status="inaccurate", reason=f"{case.problem}: {wrong}")
            return None
    return _using(case, configuration, trial.repeat)


def _judged(case, problem, configuration, compiling, stand):
    """{"status", "reason", "error_over_bound"} of a configuration on a problem that the definition can take.

    compiling: as `compile_with` gave it.
    """
    found = {"status": "uncompiled", "error_over_bound": None}
    if isinstance(compiling, str):
        return found | {"reason": compiling}
    reason = stand.compiler.wait(compiling, min(SECONDS, max(0.0, stand.left())))
    stand.check_time()
    if reason:
        return found | {"reason": reason}
    truth = _truth(case, problem, stand.device)
    inputs = kernel_trial.draw(problem, DTYPES[case.dtype], stand.device)
    start = functools.partial(kernel_trial.start, case.run, case.mode, inputs)
    with stand.trying(case, configuration):
        trial, status, reason = _attempt(_using(case, configuration, start), stand)
        if trial is None:
            return found | {"status": status, "reason": reason}
        error, text = kernel_trial.worst_error(trial.outputs, *truth, case.mode)
    if error > 1:
        status, reason = "inaccurate", f"{problem}: {text}"
    return {"status": status, "reason": reason, "error_over_bound": error}


def _truth(case, problem, device):
    """(baselines, gold) of the accuracy rule."""
    return kernel_trial.truth(case.operator, problem, case.mode, DTYPES[case.dtype], device)


def _attempt(call, stand):
    """(what `call` returns, "ok", ""), or None, a status and a reason; raises only if the device is lost."""
    try:
        return call(), "ok", ""
    except torch.OutOfMemoryError as error:
        status, reason = "oom", one_line(error)
    except Exception as error:  # of a candidate: a row of the record, not the end of it
        scarce = type(error).__name__ == "OutOfResources"
        status, reason = "resources" if scarce else "error", one_line(error)
    if stand.device.type == "cuda":
        torch.cuda.synchronize(stand.device)
        torch.cuda.empty_cache()
    return None, status, reason


def _using(case, configuration, call):
    def run():
        with tuning.using(**{case.kernel: configuration}):
            return call()

    return run


def _blocks(prepared, runs, samples, blocks, *, stand, shuffle):
    """{index: [median of each block, ms]} of `runs`, in random order within a block."""
    found = {i: [] for i in runs}
    for _ in range(blocks):
        order = list(runs)
        shuffle(order)
        for i in order:
            stand.check_time()
            with stand.trying(prepared.case, prepared.configurations[i]):
                times = [stand.clock(runs[i]) for _ in range(samples[i])]
            found[i].append(statistics.median(times))
    return found


def _holds_at_an_odd_length(row, prepared, stand):
    """Whether a winner passes the accuracy rule there too, where more is masked; its row says if not."""
    case, problem = prepared.case, prepared.checked
    if case.mode == "decode" or problem.seqlen == 1:
        return True
    odd = dataclasses.replace(problem, seqlen=problem.seqlen - 1)
    operands = kernel_trial.draw(odd, DTYPES[case.dtype], stand.device)
    compiling = compile_with(row["configuration"], case, stand, operands, soon=True)
    found = _judged(case, odd, row["configuration"], compiling, stand)
    if found["status"] != "ok":
        row |= found
    return found["status"] == "ok"
