"""Which configuration a kernel runs in: its default, what `using` says, or the closest entry of the GPU's table."""

import json
import threading

import pytest
import torch

from kernels import tuning

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DEFAULT = {"BLOCK_M": 128, "num_warps": 8}
SAME = {"dtype": "bf16", "headdim": 64}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Entries given to it are the table of the only GPU."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(tuning, "_gpu", lambda device: "NVIDIA H200")
    monkeypatch.setattr(tuning, "interpreted", lambda: False)
    tuning.forget()

    def write(*entries):
        (tmp_path / "nvidia-h200.json").write_text(json.dumps({"entries": entries}))
        tuning.forget()

    yield write
    tuning.forget()


def entry(blocks, same=SAME, kernel="causal_attention_fwd", **near):
    return {"kernel": kernel, "same": same, "near": near, "configuration": {"BLOCK_M": blocks}}


def asked(same=SAME, device=GPU, **near):
    return tuning.configuration("causal_attention_fwd", DEFAULT, device, same, near)["BLOCK_M"]


def test_the_closest_entry_by_octaves(table):
    table(
        entry(16, seqlen=512, heads=8),
        entry(32, seqlen=8192, heads=8),
        entry(64, seqlen=512, heads=128),
    )
    assert asked(seqlen=512, heads=8) == 16
    assert asked(seqlen=1000, heads=8) == 16
    assert asked(seqlen=4000, heads=8) == 32  # one octave from 8,192, three from 512
    assert asked(seqlen=1 << 20, heads=1) == 32
    assert asked(seqlen=700, heads=100) == 64


@pytest.mark.parametrize(("seqlen", "blocks"), [(4095, 32), (2000, 16), (1, 16)])
def test_lengths_are_rounded_to_the_nearest_octave(table, seqlen, blocks):
    table(entry(16, seqlen=2048), entry(32, seqlen=4096))
    assert asked(seqlen=seqlen) == blocks


def test_what_must_agree_is_no_matter_of_distance(table):
    table(
        entry(16, SAME | {"dtype": "fp32"}, seqlen=512),
        entry(32, SAME | {"headdim": 128}, seqlen=512),
        entry(64, kernel="causal_attention_bwd_dq", seqlen=512),
        entry(8, seqlen=512, heads=8),  # written when the kernel had another trait
        entry(4, SAME | {"causal": True}, seqlen=512),
    )
    assert asked(seqlen=512) == 128
    assert asked(SAME | {"headdim": 128}, seqlen=1) == 32


def test_an_entry_changes_what_it_names(table):
    table(entry(16, seqlen=512), {**entry(0, seqlen=8192), "configuration": {}})
    found = tuning.configuration("causal_attention_fwd", DEFAULT, GPU, SAME, {"seqlen": 512})
    assert found == {"BLOCK_M": 16, "num_warps": 8}
    assert asked(seqlen=8192) == 128  # measured, and the default was best
    assert DEFAULT == {"BLOCK_M": 128, "num_warps": 8}


def test_no_table_no_gpu_and_no_compiler_mean_the_default(table, monkeypatch):
    assert tuning.table_of("NVIDIA H200") is None
    assert asked(seqlen=512) == 128
    table(entry(16, seqlen=512))
    assert asked(device=CPU, seqlen=512) == 128
    monkeypatch.setattr(tuning, "_gpu", lambda device: "NVIDIA A100-SXM4-80GB")
    assert asked(seqlen=512) == 128
    monkeypatch.setattr(tuning, "_gpu", lambda device: "NVIDIA H200")
    assert asked(seqlen=512) == 16
    monkeypatch.setattr(tuning, "interpreted", lambda: True)
    assert asked(seqlen=512) == 128


def test_using_nests_wins_over_the_table_and_ends(table):
    table(entry(16, seqlen=512))
    with tuning.using(causal_attention_fwd={"BLOCK_M": 1, "maxnreg": 99}):
        assert asked(seqlen=512) == 1
        with tuning.using(causal_attention_fwd={"num_warps": 2}, causal_attention_bwd_dq={}):
            found = tuning.configuration("causal_attention_fwd", DEFAULT, CPU, SAME, {"seqlen": 1})
            assert found == {"BLOCK_M": 128, "num_warps": 2}
        found = tuning.configuration("causal_attention_fwd", DEFAULT, CPU, SAME, {"seqlen": 1})
        assert found == {"BLOCK_M": 1, "num_warps": 8, "maxnreg": 99}
        with pytest.raises(ZeroDivisionError), tuning.using(causal_attention_fwd={}):
            1 / 0  # noqa: B018
        assert asked(seqlen=512) == 1
    assert asked(seqlen=512) == 16


def test_other_threads_see_it_too():
    """On a GPU, gradients are computed by a thread of autograd's."""
    found = []
    run = lambda: found.append(asked(device=CPU, seqlen=1))
    with tuning.using(causal_attention_fwd={"BLOCK_M": 1}), tuning.asking() as traits:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found == [1]
    assert traits["causal_attention_fwd"]["near"] == {"seqlen": 1}


def test_using_names_a_kernel():
    with (
        pytest.raises(
            ValueError, match="no kernel 'attention' to tune; there are selective_scan_fwd"
        ),
        tuning.using(attention={}),
    ):
        pass


def test_asking_collects_and_ends():
    with tuning.asking() as outer:
        with tuning.asking() as inner:
            asked(device=CPU, seqlen=7)
        asked(device=CPU, seqlen=9)
    asked(device=CPU, seqlen=11)
    traits = {"same": SAME, "near": {"seqlen": 7}, "default": DEFAULT}
    assert inner == {"causal_attention_fwd": traits}
    assert outer == {"causal_attention_fwd": traits | {"near": {"seqlen": 9}}}


def test_a_broken_table_is_named_with_its_remedy(table, tmp_path):
    (tmp_path / "nvidia-h200.json").write_text('{"entries": [')
    with pytest.raises(ValueError, match=r"nvidia-h200\.json is no JSON \(.*bench\.tune"):
        asked(seqlen=512)


@pytest.mark.parametrize(
    ("gpu", "file"),
    [
        ("NVIDIA H200", "nvidia-h200.json"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb.json"),
        ("NVIDIA GeForce RTX 4090 / D", "nvidia-geforce-rtx-4090-d.json"),
    ],
)
def test_file_names(gpu, file):
    assert tuning.file_name(gpu) == file


def test_tables_that_are_there_are_whole():
    for path in tuning.FOLDER.glob("*.json"):
        table = json.loads(path.read_text())
        assert {"gpu", "date", "git", "versions", "entries"} <= table.keys(), path
        assert tuning.file_name(table["gpu"]) == path.name
        for found in table["entries"]:
            assert found["kernel"] in tuning.KERNELS
            assert {"same", "near", "configuration", "ms", "default_ms"} <= found.keys()
            assert all(n > 0 for n in found["near"].values())
