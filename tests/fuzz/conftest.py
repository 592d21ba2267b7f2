"""How long the fuzzing takes: the same few examples in CI, many and new ones with HYPOTHESIS_PROFILE=thorough."""

from hypothesis import HealthCheck, settings

QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", derandomize=True, **QUIET)
settings.register_profile("thorough", derandomize=False, print_blob=True, **QUIET)
