"""A sequence over two and three processes gives what one process gives, whatever the split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench import parity
from models.bind import use
from models.build import build
from models.parallel.ranks import Ranks
from tests.models.parallel_worker import SIZE, tokens

ROOT = Path(__file__).parents[2]
ARCHS = ("mamba", "llama")
RAGGED = {  # one segment shorter than the convolution, and the middle one a single token
    2: [[[0, 2]], [[2, 41]]],
    3: [[[0, 30]], [[30, 31]], [[31, 41]]],
}


def cases(size):
    """{name: case} of all that a group of this size computes."""
    found = {}
    base = {"size": size, "split": "contiguous", "dtype": "float32", "batch": 2, "seqlen": 41}
    for arch in ARCHS:
        layouts = {"contiguous": "contiguous", "ragged": RAGGED[size]}
        if arch == "llama":
            layouts["zigzag"] = "zigzag"
        for name, split in layouts.items():
            for impl, dtype in (("torch", "float64"), ("torch", "float32"), ("cpu", "float32")):
                found[f"{arch}-{name}-{impl}-{dtype}"] = base | {
                    "arch": arch, "split": split, "impl": impl, "dtype": dtype,
                }  # fmt: skip
    base |= {"batch": 1, "seqlen": 13}
    found["llama-hf"] = base | {"arch": "llama", "impl": "hf"}
    found["llama-bf16"] = base | {"arch": "llama", "impl": "torch", "dtype": "bfloat16"}
    found["mamba-bf16"] = base | {"arch": "mamba", "impl": "torch", "dtype": "bfloat16"}
    found["refused-hf"] = base | {"arch": "mamba", "impl": "hf"}
    found["refused-zigzag"] = base | {"arch": "mamba", "impl": "torch", "split": "zigzag"}
    found["refused-short"] = base | {"arch": "mamba", "impl": "torch", "seqlen": 1}
    return {f"{size}-{name}": case for name, case in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where three processes put what they computed: two of them for groups of two, all for groups of three."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "cases.json").write_text(json.dumps(cases(2) | cases(3)))
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.models.parallel_worker"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT, env=env, **pipes)
        for rank in range(SIZE)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return folder


@pytest.fixture(params=[2, SIZE])
def group(request, folder):
    return request.param, folder


def gathered(group, name):
    """(batch, seqlen, hidden) in the order of the sequence."""
    size, folder = group
    parts = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(size)]
    order = torch.cat([part["positions"] for part in parts]).argsort()
    return torch.cat([part["hidden"] for part in parts], 1)[:, order]


@pytest.mark.parametrize("arch", ARCHS)
def test_float64_agrees_to_float64(group, arch):
    model, ids = build(arch, "tiny", dtype=torch.float64), tokens(2, 41)
    with torch.no_grad(), use(model, "reference"):
        gold = model.base_model(ids, use_cache=False)[0]
    splits = [name for name in cases(group[0]) if f"-{arch}-" in name and "float64" in name]
    assert len(splits) == 2 + (arch == "llama")
    for name in splits:
        assert (gathered(group, name) - gold).abs().max() < 1e-11 * gold.abs().max(), name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_outputs_pass_the_gate(group, arch, dtype):
    kind = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    model, reference = build(arch, "tiny", dtype=getattr(torch, dtype)), {}
    chosen = {n: c for n, c in cases(group[0]).items() if c["arch"] == arch and c["dtype"] == dtype}
    for name, case in chosen.items():
        if "refused" in name:
            continue
        ids = tokens(case["batch"], case["seqlen"])
        if ids.shape not in reference:
            reference[ids.shape] = parity.compute(model, ids, [], kind)
        hidden = gathered(group, name)
        found = parity.check(reference[ids.shape], hidden, None, case["seqlen"])
        assert found["passed"], f"{name}: {parity.failure(found)}"
        assert found["seqlen"] == case["seqlen"]


def test_what_cannot_be_computed_is_refused(group):
    size, folder = group
    said = {
        name: (folder / f"{size}-refused-{name}-0.txt").read_text()
        for name in ("hf", "zigzag", "short")
    }
    assert "impl 'torch'" in said["hf"]
    assert "one segment a rank" in said["zigzag"]
    assert f"at least {size} tokens for {size} ranks" in said["short"]


@pytest.mark.parametrize(
    "layout",
    [
        (((0, 4),), ((5, 9),)),  # a gap
        (((0, 4),), ((3, 9),)),  # an overlap
        (((0, 4),), ()),  # a rank with nothing
        (((0, 4),), ((4, 4),)),  # an empty piece
        (((1, 4),), ((4, 9),)),  # no beginning
        (((4, 9), (0, 4)),),  # not in order
        (),
    ],
)
def test_a_layout_that_is_no_partition_is_refused(layout):
    with pytest.raises(ValueError, match="layout must"):
        Ranks(layout, 0)


def test_the_zigzag_balances_the_pairs_that_attention_keeps(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: 1)
    kept = lambda own: sum(b * (b + 1) // 2 - a * (a + 1) // 2 for a, b in own)
    even = [kept(own) for own in Ranks.zigzag(4096).layout]
    assert max(even) < 1.001 * min(even)
    uneven = [kept(own) for own in Ranks.contiguous(4096).layout]
    assert max(uneven) > 6 * min(uneven)
