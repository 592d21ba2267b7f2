"""One of three ranks of the tests of models.parallel: python -m tests.models.parallel_worker RANK FOLDER

It runs every case of FOLDER/cases.json in a group of the first `size` ranks, if it is one of them, and writes what it
holds to FOLDER/CASE-RANK.safetensors.
"""

import datetime
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from models.build import build
from models.parallel import Ranks, forward

SIZE = 3
MODELS = {}


def model_of(arch, dtype):
    """The same seeded model in every process."""
    key = arch, dtype
    if key not in MODELS:
        MODELS[key] = build(arch, "tiny", dtype=getattr(torch, dtype))
    return MODELS[key]


def tokens(batch, seqlen):
    """The same tokens in every process; shorter sequences are prefixes."""
    return torch.randint(0, 32_000, (2, 64), generator=torch.Generator().manual_seed(1))[
        :batch, :seqlen
    ]


def ranks_of(case, rank, group):
    """The Ranks of a case: its own layout, or one of the two that the package makes."""
    if isinstance(case["split"], str):
        return getattr(Ranks, case["split"])(case["seqlen"], group)
    return Ranks(tuple(tuple(map(tuple, own)) for own in case["split"]), rank, group)


def run(case, rank, group):
    """{"hidden", "positions"} of one case on this rank."""
    ranks = ranks_of(case, rank, group)
    ids = ranks.take(tokens(case["batch"], case["seqlen"]))
    hidden = forward(model_of(case["arch"], case["dtype"]), ids, ranks, case["impl"])
    return {"hidden": hidden.contiguous(), "positions": ranks.positions("cpu")[0].contiguous()}


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    groups = {2: dist.new_group([0, 1]), SIZE: None}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        if rank >= case["size"]:
            continue
        try:
            found = run(case, rank, groups[case["size"]])
        except (ValueError, NotImplementedError) as error:
            (folder / f"{name}-{rank}.txt").write_text(str(error))
        else:
            save_file(found, folder / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
