"""How time and memory grow with length: fits on log residuals, the choice among them, and local slopes.

Models, with non-negative coefficients: a;  a + bL;  a + bL + cL^2;  a + bL^p;  bL log2 L.
A global log-log slope says little (a quadratic with a constant looks linear over four octaves), so the local
slopes are the result and the fits explain them. A model is chosen by AICc, and only with at least 8 lengths.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize

from analysis.load import Setting
from bench.verdict import t_interval

FEWEST = 8  # with 5 lengths AICc can never choose three terms and a variance: n - k - 1 = 0
MODELS = {
    "a": ("1",),
    "a + b L": ("1", "L"),
    "a + b L + c L^2": ("1", "L", "L^2"),
    "a + b L^p": ("1", "L^p"),
    "b L log L": ("L log L",),
}
TERMS = {
    "1": lambda L, p: np.ones_like(L),
    "L": lambda L, p: L,
    "L^2": lambda L, p: L**2,
    "L^p": lambda L, p: L**p,
    "L log L": lambda L, p: L * np.log2(L),
}
NEGLIGIBLE = 1e-6  # a term below this share everywhere is absent, and not counted as a parameter
PERFECT = 1e-9  # relative residual below which a fit is exact: rounding must not choose a model


@dataclass(frozen=True)
class Fit:
    """One model fitted to one curve. `coefficients` holds the terms that are present."""

    model: str
    coefficients: dict
    power: float
    lengths: np.ndarray
    rss: float  # of the log residuals

    @property
    def k(self):
        """Parameters: the coefficients present, the exponent if it is free, and the variance."""
        return len(self.coefficients) + ("L^p" in self.coefficients) + 1

    @property
    def aicc(self):
        """Akaike's criterion corrected for few points; inf where it does not exist (n <= k + 1)."""
        n = len(self.lengths)
        if n <= self.k + 1:
            return math.inf
        rss = max(self.rss, n * PERFECT**2)
        return n * math.log(rss / n) + 2 * self.k + 2 * self.k * (self.k + 1) / (n - self.k - 1)

    @property
    def dof(self):
        """Degrees of freedom of the residuals."""
        return len(self.lengths) - (self.k - 1)

    def predict(self, lengths):
        """The fitted values at `lengths`."""
        return sum(self._columns(np.asarray(lengths, dtype=float)).values())

    def shares(self, length):
        """{term: its share of the fitted value} at `length`."""
        columns = self._columns(np.asarray([length], dtype=float))
        total = sum(columns.values())
        return {term: float((column / total)[0]) for term, column in columns.items()}

    def influence(self, lengths):
        """How ln f(lengths) moves with each measured ln y, to first order: (len(lengths), n)."""
        return self._gradient(lengths) @ np.linalg.pinv(self._gradient(self.lengths))

    def _columns(self, lengths):
        return {t: c * TERMS[t](lengths, self.power) for t, c in self.coefficients.items()}

    def _gradient(self, lengths):
        lengths = np.asarray(lengths, dtype=float)
        columns = self._columns(lengths)
        total = sum(columns.values())
        shares = [column / total for column in columns.values()]
        if "L^p" in columns:
            shares.append(columns["L^p"] * np.log(lengths) / total)
        return np.stack(shares, axis=1)


def fit(model, lengths, values):
    """Fit one of `MODELS` by least squares on ln values; lengths in tokens, at least 2."""
    lengths, values = np.asarray(lengths, dtype=float), np.asarray(values, dtype=float)
    if "L^p" not in MODELS[model]:
        return _fit(model, lengths, values, math.nan)
    rss = lambda p: _fit(model, lengths, values, p).rss
    coarse = np.linspace(0.1, 3.0, 30)
    best = coarse[np.argmin([rss(p) for p in coarse])]
    power = optimize.minimize_scalar(
        rss, bounds=(best - 0.1, best + 0.1), method="bounded", options={"xatol": 1e-7}
    ).x
    return _fit(model, lengths, values, float(power))


def _fit(model, lengths, values, power):
    """Gauss-Newton on log residuals, each step a non-negative least squares, as long as it helps."""
    terms = MODELS[model]
    X = np.stack([TERMS[t](lengths, power) for t in terms], axis=1)
    scale = np.exp(np.log(X / values[:, None]).mean(axis=0))
    X = X / scale
    target = np.log(values)
    theta, rss = _rescaled(X, optimize.nnls(X / values[:, None], np.ones(len(values)))[0], target)
    for _ in range(50):
        f = X @ theta
        moved = optimize.nnls(X / f[:, None], 1 + target - np.log(f))[0]
        if not moved.any():
            break
        moved, moved_rss = _rescaled(X, moved, target)
        gain = rss - moved_rss
        if gain <= 0:
            break
        theta, rss = moved, moved_rss
        if gain < 1e-12 * rss:
            break
    shares = (X * theta / (X @ theta)[:, None]).max(axis=0)
    kept = {
        t: float(c / s)
        for t, c, s, w in zip(terms, theta, scale, shares, strict=True)
        if w > NEGLIGIBLE
    }
    return Fit(model, kept, power, lengths, float(rss))


def _rescaled(X, theta, target):
    """theta times the best common factor, which has a closed form, and its sum of squared log residuals."""
    residual = target - np.log(X @ theta)
    shift = residual.mean()
    return theta * math.exp(shift), float(((residual - shift) ** 2).sum())


def fit_all(lengths, values):
    """Every model that the points can carry: {model: Fit}; a model needs more points than coefficients."""
    lengths = np.asarray(lengths, dtype=float)
    enough = [m for m, terms in MODELS.items() if len(lengths) > len(terms) + ("L^p" in terms)]
    return {m: fit(m, lengths, values) for m in enough if lengths.min() >= 2}


def choose(fits):
    """(model, reason): the model with the smallest AICc, or None and why there is no choice."""
    n = len(next(iter(fits.values())).lengths) if fits else 0
    if n < FEWEST:
        return None, f"not chosen, because a choice needs {FEWEST} lengths and there are {n}"
    return min(fits, key=lambda m: (fits[m].aicc, fits[m].k)), ""


def akaike_weights(fits):
    """{model: probability of being the best of them}, by AICc; nan for all where it does not exist."""
    aicc = np.array([f.aicc for f in fits.values()])
    if not np.isfinite(aicc).any():
        return dict.fromkeys(fits, math.nan)
    weights = np.exp(-(aicc - aicc.min()) / 2)
    return dict(zip(fits, (weights / weights.sum()).tolist(), strict=True))


def held_out(model, lengths, values):
    """Relative error of the longest length predicted from the others; nan if they cannot carry the model."""
    fits = fit_all(lengths[:-1], values[:-1])
    if model not in fits:
        return math.nan
    return float(fits[model].predict([lengths[-1]])[0] / values[-1] - 1)


def r_squared(lengths, values, degree):
    """R^2 and residual degrees of freedom of an ordinary polynomial fit, the way the paper quotes it."""
    if len(lengths) <= degree + 1:
        return math.nan, len(lengths) - degree - 1
    # centred and scaled, or the normal equations of L^2 lose half of the digits
    fitted = np.polynomial.Polynomial.fit(lengths, values, degree)(np.asarray(lengths, dtype=float))
    residual = ((np.asarray(values) - fitted) ** 2).sum()
    total = ((np.asarray(values) - np.mean(values)) ** 2).sum()
    return float(1 - residual / total) if total else math.nan, len(lengths) - degree - 1


def means(curve):
    """Finite points of a curve: (lengths, exp of the mean over rounds of the logarithm)."""
    finite = curve.where(np.isfinite(curve) & (curve > 0))
    logs = np.log(finite).mean(axis=0).dropna()
    return logs.index.to_numpy(dtype=float), np.exp(logs.to_numpy())


def censored(curve):
    """The lengths at which a curve ran out of memory in every round that tried."""
    out = [n for n in curve if np.isinf(curve[n].dropna()).all() and curve[n].notna().any()]
    return [int(n) for n in out]


def fits_table(curves, measure):
    """One row per curve and model: coefficients, AICc, Akaike weight, held-out error, shares, R^2, choice."""
    rows = []
    for (setting, arch, impl), curve in curves.items():
        lengths, values = means(curve)
        fits = fit_all(lengths, values)
        chosen, reason = choose(fits)
        weights = akaike_weights(fits)
        out = censored(curve)
        for model, fitted in fits.items():
            rows.append(
                {
                    **setting._asdict(), "measure": measure, "arch": arch, "impl": impl, "model": model,
                    "chosen": model == chosen, "reason": reason, "lengths": len(lengths),
                    **_coefficients(fitted), "aicc": fitted.aicc, "akaike_weight": weights[model],
                    "rms_log_residual": math.sqrt(fitted.rss / len(lengths)), "dof": fitted.dof,
                    "held_out_error": held_out(model, lengths, values),
                    **_shares(fitted, lengths[-1]), "r2": _r2(fitted, values),
                    "censored": ", ".join(map(str, out)),
                    "predicted_at_censored": float(fitted.predict([out[0]])[0]) if out else math.nan,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def slopes_table(curves, measure):
    """One row per curve and pair of neighbouring lengths: d ln y / d ln L with its t interval over rounds."""
    rows = []
    for (setting, arch, impl), curve in curves.items():
        logs = np.log(curve.where(np.isfinite(curve) & (curve > 0)))
        lengths = [n for n in logs if logs[n].notna().any()]
        for low, high in itertools.pairwise(lengths):
            slopes = ((logs[high] - logs[low]) / math.log(high / low)).dropna()
            slope, slope_low, slope_high = t_interval(slopes)
            rows.append(
                {
                    **setting._asdict(), "measure": measure, "arch": arch, "impl": impl,
                    "from": low, "to": high, "at": math.sqrt(low * high),
                    "slope": slope, "low": slope_low, "high": slope_high, "rounds": len(slopes),
                }
            )  # fmt: skip
    columns = [
        *Setting._fields,
        "measure",
        "arch",
        "impl",
        "from",
        "to",
        "at",
        "slope",
        "low",
        "high",
    ]
    return pd.DataFrame(rows, columns=[*columns, "rounds"])


def _coefficients(fitted):
    c = fitted.coefficients
    named = {"a": c.get("1", 0.0), "b": sum(c.get(t, 0.0) for t in ("L", "L^p", "L log L"))}
    return {**named, "c": c.get("L^2", 0.0), "p": fitted.power}


def _shares(fitted, length):
    shares = fitted.shares(length)
    growing = sum(shares.get(t, 0.0) for t in ("L", "L^p", "L log L"))
    return {"share_a": shares.get("1", 0.0), "share_b": growing, "share_c": shares.get("L^2", 0.0)}


def _r2(fitted, values):
    total = ((values - values.mean()) ** 2).sum()
    return (
        float(1 - ((values - fitted.predict(fitted.lengths)) ** 2).sum() / total)
        if total
        else math.nan
    )
