"""The host's side of the Triton kernels: what they take, their tiles by GPU and headdim, and their memory."""

import functools
import math

import torch
import triton

from kernels.implementations import interpreted

# AMD's matrix units are not asynchronous either: its GPUs take the tiles of the oldest generation
TARGETS = {"sm_80": 8, "sm_90": 9, "sm_100": 10, "gfx942": 8}
# of rows that programs may share: half the L2 cache of an A100, H100 or H200
L2_BYTES = 24 * 2**20


def check_operands(q):
    """Refuse what no kernel here takes."""
    if q.dtype == torch.float64 or q.shape[3] > 256:
        raise NotImplementedError(
            "causal_attention: impl 'triton' takes float32, float16 and bfloat16 and a headdim up to 256, "
            f"got {q.dtype} and headdim {q.shape[3]}; use impl='torch'"
        )


def workspace(name, like, *shape):
    """Uninitialised float32 memory; running out of memory is reported with what it was for."""
    try:
        return like.new_empty(shape, dtype=torch.float32)
    except torch.OutOfMemoryError as error:
        size = 4 * math.prod(shape)
        raise torch.OutOfMemoryError(
            f"causal_attention: no memory for {name}, {size} bytes; {error}"
        ) from error


def heads_per_section(heads, shared_bytes):
    """How many of `heads` run together, where the programs of each share `shared_bytes`."""
    return min(heads, max(1, L2_BYTES // shared_bytes))


def tile_of(tables, dtype, headdim, generation):
    """{BLOCK_M, BLOCK_N, PIECE, num_warps, num_stages} on a GPU whose compute capability is `generation`.x.

    tables: for bfloat16 and float16, and for float32, {generation: {largest headdim: the five numbers}}.
    """
    table = tables[dtype == torch.float32][generation]
    tile = next(tile for largest, tile in table.items() if headdim <= largest)
    names = ("BLOCK_M", "BLOCK_N", "PIECE", "num_warps", "num_stages")
    tile = dict(zip(names, tile, strict=True))
    return tile | {"PIECE": min(tile["PIECE"], max(16, triton.next_power_of_2(headdim)))}


def tile_for(tables, q, seqlen_k):
    """The tile for these operands on their device."""
    if interpreted():  # cost is per operation, so few and big blocks
        fit = lambda n, most: min(most, max(16, triton.next_power_of_2(n)))
        block = {"BLOCK_M": fit(q.shape[2], 128), "BLOCK_N": fit(seqlen_k, 128)}
        return block | {"PIECE": fit(q.shape[3], 256), "num_warps": 1, "num_stages": 1}
    return tile_of(tables, q.dtype, q.shape[3], generation(q.device))


@functools.cache
def generation(device):
    """Major compute capability, of those that have tables."""
    if torch.version.hip:
        return 8  # no asynchronous products: the configurations of the GPUs that have none either
    return min(max(torch.cuda.get_device_capability(device)[0], 8), 10)


def precision(q):
    """How products of the dtype of `q` are formed: float32 from three TF32 products, or one where torch allows it."""
    if q.dtype != torch.float32 or torch.version.hip:
        # products of half precision are exact; Triton has no three-product form for AMD
        return "ieee"
    if q.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "tf32x3"


def static_cases_of(kernel, name, tables, operands, scalars, packed=None):
    """The default configurations of a kernel as `profiles.static` compiles them, each for the GPUs it is meant for.

    operands: names of arguments that come as `<name>_ptr` and `<name>_strides` in the dtype of the case.
    scalars: {argument: type} of the others that are no constants; the integers among them that are not lengths may
        have any value.
    packed: {argument: type} that a case of packed sequences has besides; one such is listed, of headdim 128.
    """
    unaligned = [n for n, t in scalars.items() if t == "i32" and "seqlen" not in n]
    for target, major in TARGETS.items():
        for dtype, short in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
            for headdim in tables[dtype == torch.float32][major]:
                signature = dict.fromkeys(kernel.arg_names, "constexpr") | scalars
                tile = tile_of(tables, dtype, headdim, major)
                constexprs = {"HEADDIM": headdim}
                exact = short == "bf16" or target == "gfx942"
                constexprs["PRECISION"] = "ieee" if exact else "tf32x3"
                for operand in operands:
                    signature[f"{operand}_ptr"] = f"*{short}"
                    signature[f"{operand}_strides"] = ("i32", "i32", "i32", "constexpr")
                    constexprs[(kernel.arg_names.index(f"{operand}_strides"), 3)] = 1
                options = {option: tile.pop(option) for option in ("num_warps", "num_stages")}
                case = {
                    "name": f"{name}-{short}-d{headdim}",
                    "kernel": kernel,
                    "signature": signature,
                    "constexprs": constexprs | tile,
                    "unaligned": unaligned,
                    "targets": (target,),
                    "work": {"scores": tile["BLOCK_M"] * tile["BLOCK_N"]},
                    **options,
                }
                yield case
                if packed and (short, headdim) == ("bf16", 128):
                    changes = {"name": f"{case['name']}-packed", "signature": signature | packed}
                    yield case | changes
