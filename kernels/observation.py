"""What the token-mixing operators are called with, told to whoever asked for it.

    with observing_operators(visit):       # visit(operator, operands) before the operator computes
        model(ids)

Operands have the names of the public operator's arguments. Without an observer a call costs one look at a variable.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch

_observer: ContextVar = ContextVar("crossover_operator_observer", default=None)


@contextmanager
def observing_operators(visit):
    """Call `visit(operator, operands)` whenever a token-mixing operator is about to compute."""
    token = _observer.set(visit)
    try:
        yield
    finally:
        _observer.reset(token)


def tell(operator, **operands):
    """Called by the operators (and by the paths of other packages that compute them) with their operands."""
    if torch.compiler.is_compiling():
        return
    visit = _observer.get()
    if visit is not None:
        visit(operator, operands)
