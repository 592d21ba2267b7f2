import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from analysis.report import __main__ as command
from analysis.report import page, reading
from bench.records import read_run
from tests.analysis.capture_simulate import write as simulate_capture
from tests.analysis.metric_simulate import MetricSimulation
from tests.analysis.simulate import HALF_OCTAVES, MACHINE, Simulation

PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e11}, "exp_per_s": 1e9}
EVIL = "<script>alert('cpu')</script>"
SMALL = Simulation(seqlens=(128, 256, 512), machine=MACHINE | {"peaks": PEAKS})
SECTIONS = [
    "Headline", "Ratio matrix", "Over length", "Architecture and implementation", "Crossovers", "Roofline", "Parity",
    "Where the time goes", "Representation", "Paper", "Not measured", "All tables", "Machine and method", "Data",
]  # fmt: skip


class Elements(HTMLParser):
    """[(tag, attributes)] of a page, the text of its headings and its text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self.headings, self._open = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data):
        if self._open in ("h1", "h2", "h3") and data.strip():
            self.headings.append((self._open, data))
        if self._open not in ("script", "style"):
            self.words.append(data)
        self._open = "" if self._open in ("h1", "h2", "h3") else self._open

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def no_png(monkeypatch):
    """SVG shows already that a figure can be drawn."""
    monkeypatch.setattr(page.vl_convert, "svg_to_png", lambda svg, scale: b"")


def written(*runs, out=None):
    return Elements(page.build(runs, out).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    costs = SMALL.costs | {("llama", "torch"): (4, 0.05, 0), ("mamba", "torch"): (9, 0.2, 0)}
    simulation = replace(
        SMALL, seqlens=HALF_OCTAVES, costs=costs, unavailable={"cuda": "no CUDA device"},
        memory=SMALL.memory | {key: (1e6, 9e4, 0) for key in costs if key not in SMALL.memory},
        out_of_memory={("llama", "hf"): 1448},
    )  # fmt: skip
    return page.build([simulation.write(run)])


def test_the_page_holds_everything_and_needs_no_network(whole):
    text = whole.read_text(encoding="utf-8")
    found = Elements(text)
    headings = [heading for _, heading in found.headings[1:] if heading != "Warnings"]
    assert headings == SECTIONS
    assert {tag for tag, _ in found.headings[1:]} == {"h2"}
    assert "takes" in found.text
    assert "Architecture explains" in found.text
    assert "no CUDA device" in found.text
    assert len(text) < 5e6
    for tag, attrs in found.found:
        for name in ("src", "href", "action", "data"):
            assert attrs.get(name, "#")[:1] == "#" or attrs[name].startswith("data:"), (tag, attrs)
    policy = next(a["content"] for a in found.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "unsafe-eval" not in policy
    assert "http" not in policy


def test_it_can_be_read_without_seeing_it(whole):
    found = Elements(whole.read_text(encoding="utf-8"))
    ids = [attrs["id"] for _, attrs in found.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"header", "nav", "main"} <= {tag for tag, _ in found.found}
    assert found.all("html")[0]["lang"] == "en"
    assert found.all("a")[0]["href"] == "#main"
    assert all(attrs["href"][1:] in ids for attrs in found.all("a") if attrs["href"][0] == "#")
    assert all(len(attrs["alt"]) > 20 for attrs in found.all("img"))
    assert len(found.all("table")) == len(found.all("caption")) > 10
    assert all(attrs.get("scope") in ("row", "col") for attrs in found.all("th"))


def test_figures_lie_beside_it_as_png_and_svg(whole):
    drawn = Elements(whole.read_text(encoding="utf-8")).all("figure")
    svgs = sorted((whole.parent / "figures").glob("report_*.svg"))
    assert len(svgs) == len(drawn) >= 8
    for svg in svgs:
        assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert len(re.findall("<path", svg.read_text())) > 5
    time = next(svg for svg in svgs if svg.stem.startswith("report_time")).read_text()
    assert "Time of a forward, ms" in time
    assert (whole.parent / "tables" / "ratios.csv").exists()


def test_specs_hold_levels_and_no_samples(whole):
    text = whole.read_text(encoding="utf-8")
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', text, re.S)[1])
    rows = specs["time-paper-50m-1-fp32-prefill-eager"]["spec"]["data"]["values"]
    assert len([row for row in rows if row.get("status")]) == 6 * len(HALF_OCTAVES)
    assert len([row for row in rows if row.get("floor")]) == 2 * len(HALF_OCTAVES)
    out = [row for row in rows if row.get("status") == "oom"]
    assert {row["tokens"] for row in out} == {1448, 2048}
    assert all(row["value"] is None for row in out)
    matrix = specs["ratio-time-paper-50m-1-fp32-prefill-eager"]["spec"]
    assert "llama out of memory" in {row["shown"] for row in matrix["data"]["values"]}


def test_energy_is_shown_where_it_was_measured(tmp_path, no_png):
    run = SMALL.write(tmp_path)
    records = SMALL.records()
    for i, record in enumerate(records):
        record["energy_j"] = 2.0 + 0.001 * (i % 7) if record["cell"]["impl"] == "cpu" else None
    (run / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = written(run)
    assert "Energy of a forward, J" in found.text
    assert "2.00 [2.00, 2.0" in found.text
    assert len(found.all("figure")) == 10


def test_the_same_run_gives_the_same_page(tmp_path, no_png):
    run = SMALL.write(tmp_path)
    first = page.build([run]).read_text()
    assert page.build([run]).read_text() == first


def test_html_in_the_data_is_text(tmp_path, no_png):
    machine = MACHINE | {"cpu": EVIL, "versions": {EVIL: EVIL}, "git": {"revision": EVIL}}
    run = replace(SMALL, machine=machine, unavailable={"cuda": f"</script>{EVIL}"}).write(tmp_path)
    plan = json.loads((run / "plan.json").read_text())
    plan |= {"command": f"sweep {EVIL}", "created": EVIL, "tokens": {"sessions": [EVIL]}}
    (run / "plan.json").write_text(json.dumps(plan))
    with (run / "records.jsonl").open("a") as file:
        file.write(f"{EVIL}\n")
    text = page.build([run]).read_text(encoding="utf-8")
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(") > 6
    assert [a.get("type") for a in Elements(text).all("script")] == ["application/json", None, None]


def test_profiles_are_shown_and_their_names_are_text(tmp_path, no_png):
    run = SMALL.write(tmp_path)
    simulate_capture(run, kernel=EVIL, operators={f"op/{EVIL}": 5.0})
    simulate_capture(run, "llama")
    capture_broken = simulate_capture(run, "llama", "hf")
    (capture_broken / "timeline.csv").write_text(f"{EVIL}\n1\n")
    text = page.build([run]).read_text(encoding="utf-8")
    assert EVIL not in text
    found = Elements(text)
    assert "67 % of a LLaMA forward is attention" in found.text
    assert "The profile llama-hf-paper-50m-512-b1-fp32-prefill-eager.torch is skipped" in found.text
    assert len(found.all("figure")) == 10
    svg = (run / "figures" / "report_spent-time.svg").read_text()
    assert EVIL not in svg
    assert "alert(" in svg


def without(name):
    """A record of a time when the schema had no such field, or its cell had none."""

    def strip(record):
        cell = {k: v for k, v in record["cell"].items() if k != name}
        return {k: v for k, v in record.items() if k != name} | {"cell": cell}

    return strip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rounds": 1}, "One round gives no interval and so no verdict"),
        ({"out_of_memory": dict.fromkeys(SMALL.costs, 0)}, "LLaMA and Mamba ran out of memory"),
        ({"costs": {("mamba", "cpu"): (8.0, 0.1, 0.0)}}, "Only Mamba was measured"),
        ({"costs": {}}, "This run holds no record yet."),
        ({"machine": MACHINE}, "machine.json holds no measured peaks"),
        ({"machine": MACHINE | {"git": {"revision": "1", "dirty": True}}}, "uncommitted changes"),
        ({"modes": ("decode", "train")}, "No prefill"),
        ({"seqlens": (128,)}, "has 1 lengths"),
    ],
    ids=["round", "oom", "architecture", "empty", "peaks", "dirty", "modes", "length"],
)  # fmt: skip
def test_a_partial_run_says_what_is_missing(tmp_path, no_png, changed, expected):
    found = written(replace(SMALL, **changed).write(tmp_path))
    assert "is unavailable, because of" not in found.text
    if expected != "No prefill":
        assert expected in found.text


def test_a_run_with_missing_cells_says_so(tmp_path, no_png):
    run = SMALL.write(tmp_path)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[: len(lines) // 2]))
    assert "The run is incomplete" in written(run).text


@pytest.mark.parametrize("name", ["launch", "memory_bytes", "padded", "parity", "kernels"])
def test_an_older_schema_gives_a_report(tmp_path, no_png, name):
    run = SMALL.write(tmp_path)
    records = [without(name)(record) for record in SMALL.records()]
    (run / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    found = written(run)
    assert f"Records of an older schema, without {name}." in found.text
    assert "is unavailable, because of" not in found.text


def test_broken_lines_are_named_and_skipped(tmp_path, no_png):
    run = SMALL.write(tmp_path)
    lines = (run / "records.jsonl").read_text().splitlines()
    lines[2] = lines[2][:100]
    record = json.loads(lines[5])
    record["time_ms"] = {"wall": ["fast"]}
    lines[5] = json.dumps(record)
    lines[7] = lines[7].replace('"seqlen": ', '"seqlen": [').replace(', "batch"', '], "batch"')
    (run / "records.jsonl").write_text("\n".join(lines) + "\n")
    warnings = []
    assert len(read_run(run, warnings).records) == len(lines) - 2
    found = written(run)
    assert "records.jsonl, line 3: not a record" in found.text
    assert "records.jsonl, line 8: not a record" in found.text
    assert f"round {record['round']} is skipped" in found.text
    assert "is unavailable, because of" not in found.text


def test_bad_input_is_one_line(tmp_path, capsys):
    for runs in ([tmp_path / "none"], [SMALL.write(tmp_path / "run"), tmp_path]):
        with pytest.raises(SystemExit, match="2"):
            command.main(list(map(str, runs)))
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "is no run" in said


def test_the_command_writes_elsewhere_and_opens(tmp_path, capsys, monkeypatch, no_png):
    opened = []
    monkeypatch.setattr(command.webbrowser, "open", opened.append)
    run = SMALL.write(tmp_path / "run")
    before = sorted(run.iterdir())
    assert command.main([str(run), "--out", str(tmp_path / "there"), "--open"]) == 0
    path = tmp_path / "there" / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert opened == [path.as_uri()]
    assert sorted(run.iterdir()) == before


def test_runs_are_compared(tmp_path, no_png):
    slower = {key: tuple(1.3 * c for c in cost) for key, cost in SMALL.costs.items() if key[0] == "mamba"}  # fmt: skip
    a = SMALL.write(tmp_path / "before")
    b = replace(SMALL, costs=SMALL.costs | slower, machine=MACHINE | {"cpu": "other"}, seed=1)
    found = written(a, b.write(tmp_path / "after"))
    assert (a / "comparison.html").exists()
    assert ("h2", "Compared with after") in found.headings
    assert "cpu simulated -> other" in found.text
    assert "6 slower" in found.text
    assert "after / before" in found.text
    assert "Of after: " in found.text
    text = (a / "comparison.html").read_text()
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', text, re.S)[1])
    rows = specs["both-after-paper-50m-1-fp32-prefill-eager"]["spec"]["data"]["values"]
    assert len(rows) == 2 * len(SMALL.costs) * len(SMALL.seqlens)
    at = {(r["series"], r["tokens"]): r["value"] for r in rows}
    assert at["mamba cpu, after", 512] / at["mamba cpu, before", 512] == pytest.approx(
        1.3, rel=0.05
    )
    assert at["llama cpu, after", 512] / at["llama cpu, before", 512] == pytest.approx(1, rel=0.05)


def test_two_settings_of_logits_are_a_switch(tmp_path, no_png):
    a = replace(SMALL, options={"logits": "all"}).write(tmp_path / "all")
    cheaper = {key: tuple(0.8 * c for c in cost) for key, cost in SMALL.costs.items()}
    b = replace(SMALL, costs=cheaper, options={"logits": "last"}).write(tmp_path / "last")
    found = written(a, b)
    cells = len(SMALL.costs) * len(SMALL.seqlens)
    said = f"The switch logits stands on {cells} cells that were measured in this run (logits all) and in last"
    assert said in found.text
    assert "logits all last" in found.text  # of the table
    alone = written(a).text
    assert "This run computed one setting of logits (all)" in alone
    assert "a second run with --logits last" in alone
    assert "last does not make the logits a switch, because both" not in found.text


def test_what_a_page_cannot_hold_is_named(tmp_path, no_png, monkeypatch):
    monkeypatch.setattr(reading, "MOST_CELLS", 20)
    run = replace(SMALL, modes=("prefill", "decode")).write(tmp_path)
    found = written(run)
    assert "1 settings are not on this page" in found.text
    assert "decode (one token at context L)" in found.text
    assert len(found.all("figure")) == 9
    assert sorted(p.name for p in (run / "tables").iterdir()) == ["cells.csv"]


def test_a_part_that_fails_says_so_and_the_rest_stands(tmp_path, no_png, monkeypatch):
    def fail(results):
        raise RuntimeError("broken <b>")

    monkeypatch.setattr(page.tables, "implementations", fail)
    found = written(SMALL.write(tmp_path))
    assert found.text.count("RuntimeError: broken <b>") >= 2
    assert ("h2", "Warnings") in found.headings
    assert len(found.all("figure")) == 9


def test_representation_is_shown_where_it_was_measured(tmp_path, no_png):
    run = SMALL.write(tmp_path)
    MetricSimulation(layers=2).write(run / "metrics.jsonl")
    found = written(run)
    assert "is unavailable" not in found.text
    assert any(attrs["src"].startswith("data:image/png") for attrs in found.all("img"))
    assert "Verdicts on the" in found.text
    with (run / "metrics.jsonl").open("a") as file:
        file.write("broken\n")
    found = written(run)
    assert "Skipped: metrics.jsonl, line" in found.text
    assert "Verdicts on the" in found.text
