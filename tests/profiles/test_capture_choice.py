"""Which cells a command line names."""

import json
from dataclasses import replace

import pytest

from bench.plan import Cell, Plan, PlanError
from bench.records import make_record
from profiles import capture, choice
from profiles.choice import Spec, parse

OPTIONS = {"threads": 1, "logits": "last", 
    "mode": ["prefill", "train"], "dtype": ["fp32", "bf16"], "launch": ["eager"], "batch": [1, 4], "seqlens": [64, 512],
    "arch": ["mamba", "llama"], "device": "cpu",
}  # fmt: skip
SHORT = Cell("mamba", "cpu", "tiny", 64)
CELLS = [
    SHORT,
    replace(SHORT, seqlen=512),
    replace(SHORT, seqlen=512, impl="torch"),
    replace(SHORT, seqlen=512, dtype="bf16"),
    replace(SHORT, seqlen=512, mode="train"),
    replace(SHORT, seqlen=512, arch="llama", impl="hf"),
    replace(SHORT, seqlen=64, arch="llama", impl="torch"),
]
MS = [1.0, 9.0, 8.0, 2.0, 30.0, 40.0, 3.0]


@pytest.fixture
def run(tmp_path):
    """A run of two rounds with one cell that was never measured."""
    plan = Plan(cells=CELLS, rounds=2, seed=0, protocol="lab", preset="tiny", options=OPTIONS)
    plan.write(tmp_path / "plan.json")
    (tmp_path / "machine.json").write_text("{}")
    records = [
        make_record(cell, round_, 0, "ok", time_ms={"wall": [ms * (1 + round_), ms], "device": []})
        for cell, ms in zip(CELLS, MS, strict=True)
        for round_ in range(2)
    ]
    records.append(make_record(replace(SHORT, seqlen=4096), 0, 0, "oom"))
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def chosen(*argv):
    parser = capture.make_parser()
    return capture.chosen(parser.parse_args([str(a) for a in argv]), parser)[2]


def test_a_spec_is_read_from_the_left():
    assert parse("mamba/triton/prefill/4096/bf16/graph/b8") == Spec(
        "mamba", "triton", "prefill", 4096, "bf16", "graph", 8
    )
    assert parse("llama/hf") == Spec("llama", "hf")
    full = parse("llama/hf/decode").with_defaults(OPTIONS)
    assert str(full) == "llama/hf/decode/512/fp32/eager/b1"
    assert full.cell("tiny") == Cell("llama", "hf", "tiny", 512, mode="decode")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mamba", "write arch/impl"),
        ("mamba/cpu/prefill/64/fp32/eager/b1/more", "write arch/impl"),
        ("mamba/cpu/prefil", "'prefil' is no mode; choose from prefill, decode, train"),
        ("griffin/cpu", "'griffin' is no arch; choose from mamba, llama"),
        ("mamba/numba", "'numba' is no impl"),
        ("mamba/cpu/prefill/4k", "'4k' is no seqlen"),
        ("mamba/cpu/prefill/0", "'0' is no seqlen"),
        ("mamba/cpu/prefill/64/fp8", "'fp8' is no dtype"),
        ("mamba/cpu/prefill/64/fp32/eager/bx", "'bx' is no batch"),
    ],
)
def test_a_wrong_part_is_named(text, named):
    with pytest.raises(PlanError, match="--cell") as error:
        parse(text)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_cells_of_a_run_are_found_by_spec_and_by_id(run):
    assert chosen(run, "--cell", "mamba/cpu/prefill/64") == [SHORT]
    assert chosen(run, "--cell", SHORT.id, "--cell", "mamba/cpu/prefill/64") == [SHORT]
    assert chosen(run, "--cell", "mamba/torch") == [CELLS[2]]  # the longest in fp32


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("mamba/cpu/prefill/65", "mamba/cpu/prefill/64/fp32/eager/b1"),
        ("mamba-cpu-tiny-65-b1-fp32-prefill-eager", SHORT.id),
    ],
)
def test_a_cell_that_the_run_lacks_is_told_with_the_nearest(run, text, near):
    with pytest.raises(PlanError, match="the run holds no") as error:
        chosen(run, "--cell", text)
    assert text in str(error.value)
    assert near in str(error.value)


def test_the_slowest_are_the_largest_medians(run):
    assert chosen(run, "--slowest", 2) == [CELLS[5], CELLS[4]]
    assert chosen(run, "--slowest", 99)[-1] == SHORT


def test_the_fastest_are_one_an_architecture_at_its_longest_length(run):
    assert chosen(run, "--fastest") == [CELLS[2], CELLS[5]]


def test_without_prefill_the_fastest_are_of_the_first_mode(run):
    measured = choice.times(capture.read_run(run).records)
    assert choice.fastest(measured, OPTIONS | {"mode": ["train"]}) == [CELLS[4]]
    assert choice.fastest({}, OPTIONS) == []


def test_of_slices_the_fastest_are_of_the_deepest():
    slices = [
        replace(SHORT, preset="tiny@2", seqlen=512),
        replace(SHORT, preset="tiny@4", seqlen=512),
    ]
    assert choice.fastest({slices[0]: 1.0, slices[1]: 2.0}, OPTIONS) == [slices[1]]
    assert choice.fastest({slices[1]: 1.0, SHORT: 2.0}, OPTIONS) == [SHORT]


def test_times_take_the_median_of_medians(run):
    assert choice.times(capture.read_run(run).records)[SHORT] == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--fastest"], "--fastest: name the run"),
        (["--slowest", "2"], "--slowest 2: name the run"),
        ([], "name cells with --cell"),
        (["RUN"], "name cells with --cell"),
        (["RUN", "--fastest", "--preset", "tiny"], "--preset: a run has its own"),
        (["no-such-run", "--fastest"], "no plan.json"),
        (
            ["--cell", "mamba/triton", "--preset", "tiny", "--device", "cpu"],
            "cannot be profiled here: no GPU",
        ),
        (["--cell", "llama/cuda", "--preset", "tiny", "--device", "cpu"], "unavailable, because"),
        (["--cell", "mamba/cpu", "--preset", "huge"], "'huge' is unknown"),
        (["RUN", "--cell", "mamba/cpu", "--reps", "0"], "--reps"),
    ],
)
def test_bad_command_lines_are_one_line_and_status_2(run, argv, named, capsys):
    with pytest.raises(SystemExit) as stop:
        capture.main([str(run) if word == "RUN" else word for word in argv])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.startswith("python -m profiles.capture: error: ")
    assert said.count("\n") == 1


def test_a_run_of_a_gpu_needs_one(run):
    plan = json.loads((run / "plan.json").read_text())
    plan["options"]["device"] = "cuda"
    (run / "plan.json").write_text(json.dumps(plan))
    if capture.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(PlanError, match="sees none here"):
        chosen(run, "--fastest")


def test_the_list_captures_nothing(run, capsys):
    assert capture.main([str(run), "--fastest", "--list", "--profiler", "torch"]) == 0
    said = capsys.readouterr().out
    assert "mamba-torch-tiny-512-b1-fp32-prefill-eager" in said
    assert not (run / "profiles").exists()


def test_own_cells_share_a_plan_that_holds_no_others():
    parser = capture.make_parser()
    argv = ["--preset", "tiny", "--cell", "mamba/cpu/decode/32", "--cell", "llama/torch/prefill/16"]
    plan, tokens, cells = capture.chosen(parser.parse_args(argv), parser)
    assert [cell.id for cell in cells] == [
        "mamba-cpu-tiny-32-b1-fp32-decode-eager",
        "llama-torch-tiny-16-b1-fp32-prefill-eager",
    ]
    assert plan.cells == cells
    assert tokens.ids.shape == (1, 33)
