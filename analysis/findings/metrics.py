"""The paper's claims about context, hidden states and shifts, with one instrument on both: an `Entry` each."""

import math

import pandas as pd
from scipy import stats

from analysis import paper_metrics as paper
from analysis.attribution import BASELINES
from analysis.findings.entry import NOTHING, REVERSED, STANDS, UNDECIDED, Entry, missing
from analysis.metric_load import BLOCKS, WEIGHTS, measured, of_model
from analysis.metric_pages import OF_THE_TEXT
from analysis.metric_tables import ENOUGH_SESSIONS
from analysis.wording import TITLES, interval, number

METRICS = "python -m analysis.metrics RUN --groups"
TRAINED = "trained/trained.md"  # of analysis.trained
ONE = (  # instruments that are the same on both
    ("hutchinson", "count", "tokens with more than a tenth of the largest gradient (Hutchinson)"),
    ("log-probability", "count", "the same of the log-probability"),
    ("hutchinson", "mass_50", "half of the gradient lies within, tokens"),
)
ALIKE = (
    ("residual stream", "velocity_relative", "velocity over norm"),
    ("softmax | implicit, per channel", "entropy", "attention entropy (Mamba: implicit, per channel)"),
    ("contribution", "entropy", "entropy of value-weighted contributions"),
)  # fmt: skip


def context(given):
    """Claim 8: Mamba uses more of its context."""
    (mamba, llama), (mamba_share, llama_share) = paper.CONTEXT["count"], paper.CONTEXT["share"]
    title = f"Effective context of {mamba} against {llama} tokens"
    what = "effective context, tokens"
    published = f"Mamba {mamba}, Transformer {llama}"
    source = given.measured("context")
    if source is None:
        yield missing(title, what, published, f"{METRICS} context --context {paper.LENGTH}")
        return
    theirs = _both(_row(source, "asymmetric (paper)", "count"))
    rows = [(_row(source, *key), words) for *key, words in ONE]
    first = rows[0][0]
    session, prefix = mamba / paper.LENGTH, mamba / mamba_share
    text = [
        f"Published: {mamba_share:.1%} of the sequence against {llama_share:.1%}; the first is of a prefix of "
        f"{prefix:,.0f} tokens, the second of the whole session, of which {mamba} are {session:.1%}.",
        f"With its own two instruments (gradients for Mamba, attention weights for the Transformer): {theirs}.",
        f"One instrument on both, {_where(first)}: "
        + "; ".join(
            f"{words}: {_both(row)}, {_ratio(row)}" for row, words in rows if row is not None
        )
        + f". {_agreement(first)}".rstrip(),
    ]
    cells = [(what, published, theirs, f"{_both(first)}, {_ratio(first)}", NOTHING)]
    yield Entry(title, cells, _direction(first), text, source.repeat_metrics("context"))


def dynamics(given):
    """Claim 9: the numbers of hidden states and of attention."""
    title, what = "Hidden states and attention entropy", "Table 3, mean velocity, final drift"
    published = f"{sum(map(len, paper.TABLE_3.values())) + 2} numbers"
    source = given.measured("hidden", "attention")
    if source is None:
        yield missing(
            title, what, published, f"{METRICS} hidden,state,attention --seqlen {paper.LENGTH}"
        )
        return
    table = source.found.paper
    claims = table[table.paper.notna() & table.value.notna()]
    claims = claims[~claims.claim.str.contains("shifts|effective context")]
    held = int(claims.reason.str.startswith("agrees").sum())
    tokens = claims.tokens.max()
    text = [
        f"{_ranges(claims)}; {tokens:,.0f} tokens, mean over {claims.seeds.max()} initialisations."
    ]
    entropy, bound = _mean(claims, "attention entropy"), paper.uniform_entropy(tokens)
    if abs(entropy / bound - 1) <= paper.UNIFORM:
        text.append(
            f"Attention is nearly uniform here ({entropy / bound:.1%} of the entropy of even weights, {number(bound)} "
            "nats), under every implementation: numbers like the published ones need trained or much larger weights."
        )
    rows = [(row, words) for *key, words in ALIKE if (row := _row(source, *key)) is not None]
    if rows:
        alike = "; ".join(f"{words}: {_both(row)}, {_ratio(row)}" for row, words in rows)
        text += [
            f"What the same instrument says of both: {alike}. {_agreement(rows[0][0])}".rstrip()
        ]
    text += _trained(given)
    equal = "<br>".join(f"{words} {_ratio(row)}" for row, words in rows[:2]) or NOTHING
    cells = [(what, published, f"{held} of {len(claims)} agree", equal, NOTHING)]
    said = STANDS if held == len(claims) else f"not reproduced ({held} of {len(claims)})"
    yield Entry(title, cells, said, text, source.repeat_metrics("hidden", "state", "attention"))


def shifts(given):
    """Claim 10: Mamba detects shifts better."""
    mamba, llama = paper.SHIFTS["auc"]
    title, what = f"Shift detection, AUC {mamba} against {llama}", "shift detection, AUC"
    published = f"Mamba {mamba}, Transformer {llama}"
    samples = paper.SESSIONS * paper.PAIRS
    impossible = [f"{auc}" for auc in (mamba, llama) if not paper.attainable(auc, samples)]
    quarters = f"{paper.SESSIONS} sessions, {paper.PAIRS} pairs of quarters"
    first = f"The paper has {samples} samples ({quarters}), without labels"
    if impossible:
        first += f": no split of {samples} samples into two classes gives an AUC of {' or of '.join(impossible)}"
    source = given.measured("shifts")
    if source is None:
        entry = missing(title, what, published, f"{METRICS} shifts --sessions 80")
        said = "impossible as published" if impossible else entry.verdict
        yield Entry(title, entry.rows, said, [f"{first}.", *entry.text], "")
        return
    scores = source.found.shown
    scores = scores[
        (scores.metric == "auc") & (scores.instrument.isin(["window cosine", *BASELINES]))
    ]
    auc = {arch: _score(scores, arch) for arch in ("mamba", "llama")}
    difference = _difference(source)
    extra = next(r["extra"] for r in measured(source.metrics) if r["extra"].get("positives"))
    text = [
        f"{first}.",
        f"Here {extra['positives']:,} labelled shifts among {extra['candidates']:,} turn boundaries of "
        f"{extra['sessions']:,} generated sessions; intervals over sessions. AUC after the final norm: "
        + ", ".join(f"{TITLES[a]} {t}" for a, t in auc.items())
        + f"; Mamba - LLaMA {interval(*difference)}.",
        f"What needs no model, or only its input embeddings: {', '.join(_baselines(scores))}.",
    ]
    equal = "; ".join(f"{TITLES[a]} {t}" for a, t in auc.items())
    said = UNDECIDED
    if extra["sessions"] < ENOUGH_SESSIONS:
        text.append(
            f"Too few sessions for a verdict: needs `{METRICS} shifts --sessions {ENOUGH_SESSIONS}`."
        )
        said = "too few sessions"
    elif difference[1] > 0 or difference[2] < 0:
        said = STANDS if difference[1] > 0 else REVERSED
    said = f"{said}; impossible as published" if impossible else said
    rows = [(what, published, NOTHING, equal, NOTHING)]
    yield Entry(title, rows, said, text, source.repeat_metrics("shifts"))


def _row(source, instrument, metric):
    """The row of the attribution of a metric: random weights, most initialisations, nearest to the paper's length."""
    table = source.found.attribution
    rows = of_model(table) if instrument not in BY_BLOCK else table[table.layer == BLOCKS]
    rows = rows[(rows.instrument == instrument) & (rows.metric == metric)]
    rows = rows[(rows.weights == WEIGHTS[0]) & rows.llama.notna() & rows.mamba.notna()]
    if rows.empty:
        return None
    far = [abs(math.log(n / paper.LENGTH)) for n in rows.tokens]
    return rows.assign(far=far).sort_values(["far", "seeds"], ascending=[True, False]).iloc[0]


BY_BLOCK = tuple(instrument for instrument, *_ in ALIKE)


def _both(row):
    """`Mamba 7.00, LLaMA 97.5 [87.7, 107]`: means over initialisations with their 95 % t intervals."""
    if row is None:
        return NOTHING
    return ", ".join(f"{TITLES[a]} {_over_seeds(row, a)}" for a in ("mamba", "llama"))


def _over_seeds(row, arch):
    n, sd = row.seeds, row[f"{arch} sd over seeds"]
    half = stats.t.ppf(0.975, n - 1) * sd / n**0.5 if n > 1 else math.nan
    return interval(row[arch], row[arch] - half, row[arch] + half)


def _ratio(row):
    """Mamba against LLaMA, paired by initialisation."""
    if row is None or not row.scale:
        return NOTHING
    sign = "/" if row.scale == "ratio" else "-"
    return f"Mamba {sign} LLaMA = {interval(row['mamba against llama'], row.low, row.high)}"


def _where(row):
    return "" if row is None else f"{row.tokens:,} tokens, {row.seeds} initialisations"


def _agreement(row):
    """What the implementations have to do with it."""
    if row is None or not row.reason:
        return ""
    return f"Implementation or architecture? {row.verdict.capitalize()}: {row.reason}."


def _direction(row):
    """What becomes of "Mamba has more"."""
    if row is None or math.isnan(row.low):
        return UNDECIDED
    equal = 1 if row.scale == "ratio" else 0
    if row.low <= equal <= row.high:
        return UNDECIDED
    return STANDS if row.low > equal else REVERSED


def _trained(given):
    """What a trained LLaMA has, where a record of analysis.trained lies beside the runs."""
    for source in given.sources:
        file = source.run.path / TRAINED
        if file.exists():
            name = f"{source.name}/{TRAINED}"
            first = file.read_text(encoding="utf-8").split(";")[0]
            yield f"Trained weights of another LLaMA: {first} ([`{name}`]({name}))."


def _ranges(claims):
    """Published and measured ranges of each kind of number."""
    texts = []
    names = claims.claim.str.replace(r" \((mamba|llama)\),.*", r" (\1)", regex=True)
    for name, rows in claims.groupby(names, sort=False):
        published, here = (_range(rows[c]) for c in ("paper", "value"))
        texts.append(f"{name}: published {published}, measured {here}")
    return "; ".join(texts)


def _range(values):
    low, high = (number(v) for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _mean(claims, name):
    return claims[claims.claim.str.startswith(name)].value.mean()


def _score(scores, arch):
    """The AUC of an architecture's hidden states after the final norm, with its interval over sessions."""
    rows = scores[(scores.arch == arch) & (scores.instrument == "window cosine")]
    last = rows[rows.layer == "final norm"]
    rows = last if len(last) else rows
    return next((interval(r.value, r.low, r.high) for r in rows.itertuples()), NOTHING)


def _baselines(scores):
    """What the text alone reaches, and the input embeddings of either model, the best first."""
    rows = scores[scores.instrument.isin(BASELINES)].sort_values("value", ascending=False)
    of_text = rows.instrument.isin(OF_THE_TEXT)
    rows = rows[~of_text | ~rows.duplicated("instrument")]
    for r in rows.itertuples():
        whose = "" if r.instrument in OF_THE_TEXT else f"{TITLES[r.arch]}'s "
        yield f"{whose}{r.instrument} {interval(r.value, r.low, r.high)}"


def _difference(source):
    """(AUC of Mamba - AUC of LLaMA, low, high) after the final norm, the same sessions under both."""
    values = source.found.values
    rows = values[(values.metric == "auc_difference") & (values.layer == "final norm")]
    rows = pd.concat([rows, values[values.metric == "auc_difference"]])
    if rows.empty:
        return (math.nan,) * 3
    return tuple(rows[["value", "low", "high"]].iloc[0])
