"""The host's side of the Triton kernels: what they take, their tiles by GPU and headdim, and their memory."""

import functools
import inspect
import math

import torch
import triton

from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.implementations import interpreted
from kernels.specialise import TYPES
from kernels.tuning import configuration

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
    return as_tile(next(row for largest, row in table.items() if headdim <= largest), headdim)


def as_tile(row, headdim):
    """The dict of a row of a table: five numbers, and the names of what is switched on besides."""
    names = ("BLOCK_M", "BLOCK_N", "PIECE", "num_warps", "num_stages")
    tile = dict(zip(names, row[:5], strict=True)) | dict.fromkeys(row[5:], True)
    return tile | {"PIECE": min(tile["PIECE"], max(16, triton.next_power_of_2(headdim)))}


def candidates_of(tables, tried, problem, dtype, generation):
    """The default of `tile_of`, then the rows that `tried`, of the form of `tables`, has for this headdim."""
    headdim = problem.headdim
    found = [tile_of(tables, dtype, headdim, generation)]
    table = tried[dtype == torch.float32].get(generation, {})
    for row in next((rows for largest, rows in table.items() if headdim <= largest), ()):
        tile = as_tile(row, headdim)
        if tile not in found:
            found.append(tile)
    return tuple(found)


def tile_for(tables, q, seqlen_k, kernel=None):
    """The tile for these operands on their device: the default, or what `kernels.tuning` has for `kernel`.

    Args:
        tables: as in `tile_of`.
        q: (batch, nheads, seqlen_q, headdim).
        kernel: a key of `kernels.tuning.KERNELS`; None for a kernel that is not tuned.
    """
    batch, nheads, seqlen_q, headdim = q.shape
    if interpreted():  # cost is per operation, so few and big blocks
        fit = lambda n, most: min(most, max(16, triton.next_power_of_2(n)))
        default = {"BLOCK_M": fit(seqlen_q, 128), "BLOCK_N": fit(seqlen_k, 128)}
        default |= {"PIECE": fit(headdim, 256), "num_warps": 1, "num_stages": 1}
    else:
        default = tile_of(tables, q.dtype, headdim, generation(q.device))
    if kernel is None:
        return default
    same = {"dtype": TYPES[q.dtype], "headdim": headdim}
    near = {"seqlen": seqlen_k, "heads": batch * nheads}
    return configuration(kernel, default, q.device, same, near)


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

    packed: {argument: type} that a case of packed sequences has besides; one such is listed, of headdim 128. The others
        are those of `case_of`.
    """
    for target, major in TARGETS.items():
        for dtype in (torch.bfloat16, torch.float32):
            for headdim in tables[dtype == torch.float32][major]:
                tile = tile_of(tables, dtype, headdim, major)
                case = case_of(kernel, name, operands, scalars, dtype, headdim, tile, target)
                yield case
                if packed and (dtype, headdim) == (torch.bfloat16, 128):
                    changes = {
                        "name": f"{case['name']}-packed",
                        "signature": case["signature"] | packed,
                    }
                    yield case | changes


def case_of(kernel, name, operands, scalars, dtype, headdim, tile, target):
    """One configuration as `profiles.static` compiles it.

    Args:
        operands: names of arguments that come as `<name>_ptr` and `<name>_strides` in `dtype`.
        scalars: {argument: type} of the others that are no constants; the integers among them that are not lengths may
            have any value.
    """
    short = TYPES[dtype]
    exact = dtype != torch.float32 or target == "gfx942"
    signature = dict.fromkeys(kernel.arg_names, "constexpr") | scalars
    # every constant by name: Triton's cache knows only the values, so one that is left out can pass for another
    parameters = inspect.signature(kernel.fn).parameters.values()
    constexprs = {p.name: p.default for p in parameters if p.default is not p.empty}
    constexprs |= {"HEADDIM": headdim, "PRECISION": "ieee" if exact else "tf32x3"}
    for operand in operands:
        signature[f"{operand}_ptr"] = f"*{short}"
        signature[f"{operand}_strides"] = ("i32", "i32", "i32", "constexpr")
        constexprs[(kernel.arg_names.index(f"{operand}_strides"), 3)] = 1
    scores = tile["BLOCK_M"] * tile["BLOCK_N"]
    if tile.get("WARP_SPECIALIZE"):
        scores //= 2  # Triton shares the block out to two groups of as many warps
    return {
        "name": f"{name}-{short}-d{headdim}",
        "kernel": kernel,
        "signature": signature,
        "constexprs": constexprs | {k: v for k, v in tile.items() if k in kernel.arg_names},
        "unaligned": [n for n, t in scalars.items() if t == "i32" and "seqlen" not in n],
        "targets": (target,),
        "work": {"scores": scores},
        **{k: v for k, v in tile.items() if k not in kernel.arg_names},
    }


def static_candidates_of(tuned, candidates, target, **case):
    """Every candidate of a kernel for half and single precision, as `profiles.static --candidates` compiles them.

    tuned: its name among `kernels.tuning.KERNELS`.
    candidates: the function of that name of the kernel's module.
    case: `kernel`, `name`, `operands` and `scalars` of `case_of`.
    """
    for dtype in (torch.bfloat16, torch.float32):
        for headdim in (64, 96, 128, 192, 256):
            problem = CausalAttentionProblem(headdim=headdim)
            for tile in candidates(tuned, problem, dtype, TARGETS[target]):
                made = case_of(**case, dtype=dtype, headdim=headdim, tile=tile, target=target)
                flags = "".join(
                    f"-{k.lower().replace('_', '-')}" for k, v in tile.items() if v is True
                )
                sizes = "m{BLOCK_M}-n{BLOCK_N}-p{PIECE}-w{num_warps}-s{num_stages}".format(**tile)
                extra = {"name": f"{made['name']}-{sizes}{flags}", "kernel_name": tuned}
                yield made | extra | {"configuration": tile}
