"""One kernel on one problem before its race: operands, traits, and candidates whose code is being compiled."""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

import kernels
from bench import kernel_trial
from bench.kernels import DTYPES
from bench.records import one_line
from bench.tuning.compile_ahead import collecting
from kernels import tuning


class OutOfTime(Exception):
    """The seconds that were given are spent."""


@dataclass(frozen=True)
class Case:
    """A kernel on a problem in a dtype ("fp32", "bf16" or "fp16")."""

    kernel: str
    problem: object
    dtype: str

    @property
    def key(self):
        return self.kernel, str(self.problem), self.dtype

    @property
    def named(self):
        """What a record calls it."""
        return dict(zip(("kernel", "problem", "dtype"), self.key, strict=True))

    @property
    def operator(self):
        return tuning.KERNELS[self.kernel][0]

    @property
    def mode(self):
        return tuning.KERNELS[self.kernel][1]

    def run(self, **inputs):
        """The public operator, under `triton`."""
        return getattr(kernels, self.operator)(**inputs, impl="triton")


@dataclass(frozen=True)
class Stand:
    """What races take place on.

    Attributes:
        device, generation: the torch device, and the major number of its compute capability: 8, 9 or 10.
        clock: function of a callable that runs it once and gives its milliseconds.
        compiler: a `bench.tuning.compile_ahead.Compiler`, or what has its `submit` and `wait`.
        left: function that gives the seconds that are left.
        trying: gives a context in which a configuration of a case runs, in case the process ends in it.
    """

    device: torch.device
    generation: int
    clock: Callable
    compiler: object
    left: Callable
    trying: Callable = lambda case, configuration: nullcontext()

    def check_time(self):
        if self.left() <= 0:
            raise OutOfTime


@dataclass
class Prepared:
    """A case before its race.

    Attributes:
        inputs, checked: operands of the problem, and the smaller problem on which the accuracy rule is applied.
        asked: {"same", "near", "default"} as `kernels.tuning.asking` gives it.
        configurations: complete ones, the default first.
        compiling: of each configuration, keys for `Compiler.wait`, or a text: why it cannot be launched.
    """

    case: Case
    inputs: dict
    checked: object
    asked: dict
    configurations: list
    compiling: list = field(default_factory=list)


def candidates(kernel):
    """The function `candidates` of a kernel's module; NotImplementedError if it has none yet."""
    module = tuning.KERNELS[kernel][2]
    try:
        return importlib.import_module(module).candidates
    except (ModuleNotFoundError, AttributeError) as error:
        raise NotImplementedError(f"no candidates: {error}") from None


def prepare(case, stand):
    """Make the operands, ask for candidates and set the compiler to work; ValueError if the kernel is not reached."""
    kind = DTYPES[case.dtype]
    checked = kernel_trial.checked_problem(case.problem, case.mode, stand.device)
    small = kernel_trial.draw(checked, kind, stand.device)
    inputs = kernel_trial.timed_inputs(case.problem, checked, small, kind, stand.device)
    with tuning.asking() as found, tuning.using(**{case.kernel: {}}), collecting():
        kernel_trial.start(case.run, case.mode, inputs)
    if case.kernel not in found:
        raise ValueError(f"{case.problem} is computed without {case.kernel}")
    asked = found[case.kernel]
    configurations = [asked["default"]]
    for candidate in candidates(case.kernel)(case.kernel, case.problem, kind, stand.generation):
        complete = asked["default"] | candidate
        if complete not in configurations:
            configurations.append(complete)
    prepared = Prepared(case, inputs, checked, asked, configurations)
    for configuration in configurations:
        prepared.compiling.append(compile_with(configuration, case, stand, small, inputs))
    return prepared


def compile_with(configuration, case, stand, *operands, soon=False):
    """Set the compiler to work for calls with these operands: keys for `Compiler.wait`, or why the host refuses."""
    try:
        with tuning.using(**{case.kernel: configuration}), collecting() as requests:
            for inputs in operands:
                kernel_trial.start(case.run, case.mode, inputs)
    except Exception as error:  # of a candidate: a row of the record
        return one_line(error)
    return stand.compiler.submit(requests, soon)
