"""Who is timed against whom by `bench.kernels`.

The implementations of the lab come through its public functions; peers are other people's kernels called
directly, so that each is seen at its best: in the layout that it likes, torch's attention kernels one by one
instead of torch's choice. `copy` moves as many bytes as the problem has to, and computes nothing.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from bench.mixer import mamba_ssm_mixer, public
from kernels.implementations import IMPLEMENTATIONS, TABLE, Unavailable
from kernels.roofline import work

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Contender:
    """A name of the table and how it computes.

    Attributes:
        run: function of the problem's inputs that returns the output; it updates a state in place.
        prepare: what may happen to a tensor of the inputs before the clock starts.
        module: what has to be installed for a peer, and takes CUDA tensors only; "" for ours.
        remedy: how to get it.
        checked: False for what computes nothing, and takes no inputs.
    """

    name: str
    run: Callable
    prepare: Callable = lambda t: t
    module: str = ""
    remedy: str = ""
    checked: bool = True

    def check_available(self, device):
        """Raise `Unavailable` with the reason."""
        if not self.module:
            return
        if device.type != "cuda":
            raise Unavailable(f"its kernels take CUDA tensors, and this runs on a {device.type}")
        if not _installed(self.module):
            raise Unavailable(f"the module {self.module} is not installed ({self.remedy})")


def _installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def contenders(operator, mode, problem, dtype, device):
    """Every contender of a problem, those that keep most memory last."""
    compute = public(operator)

    def ours(*names):
        return [
            Contender(name, lambda name=name, **inputs: compute(**inputs, impl=name))
            for name in names
            if name in TABLE.get(operator, TABLE["selective_scan"])  # of a mixer
        ]

    peers = DECODE_PEERS if mode == "decode" else PEERS
    found = [*ours("triton", "cuda", "cpu"), *peers.get(operator, ()), *ours("torch", "hf")]
    return [*found, _copy(problem, mode, dtype, device)]


def _copy(problem, mode, dtype, device):
    moved = work(problem, dtype, "backward" if mode == "backward" else "forward")[1]

    @functools.cache  # no memory before it runs
    def buffers():
        return torch.empty(2, max(1, moved // 2), dtype=torch.uint8, device=device).unbind()

    def run():
        source, target = buffers()
        return target.copy_(source)

    return Contender("copy", run, checked=False)


def _selective_scan_fn(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state=None
):  # fmt: skip
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if initial_state is not None:
        raise NotImplementedError("mamba-ssm's scan takes no initial state")
    return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _selective_state_update(**inputs):
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    return selective_state_update(**inputs)


def _causal_conv1d_fn(x, weight, bias, initial_state, activation):
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(x, weight, bias, initial_states=initial_state, activation=activation)


def _causal_conv1d_update(**inputs):
    from causal_conv1d import causal_conv1d_update

    return causal_conv1d_update(**inputs)


def _sdpa(backend, q, k, v):
    masks = {}
    if q.shape[2] == k.shape[2]:
        masks = {"is_causal": True}
    elif q.shape[2] > 1:  # the last query alone sees every key
        masks = {"attn_mask": causal_lower_right(q.shape[2], k.shape[2])}
    with sdpa_kernel(backend):
        try:
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, enable_gqa=q.shape[1] != k.shape[1], **masks
            )
        except RuntimeError as error:
            if "No available kernel" in str(error):
                raise NotImplementedError(f"{backend.name} takes no {q.dtype} here") from error
            raise


def _flex(q, k, v):
    mask = _causal_blocks(q.shape[2], k.shape[2], q.device)
    return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    # one compilation a shape, and a graph that is differentiated more than once
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    torch._functorch.config.donated_buffer = False
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


@functools.cache
def _causal_blocks(seqlen_q, seqlen_k, device):
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b, h, i, j):
        return i + seqlen_k - seqlen_q >= j

    return create_block_mask(sees, None, None, seqlen_q, seqlen_k, device=device)


def _flash_attention(load, q, k, v):
    if q.dtype not in HALVES:
        raise NotImplementedError(f"FlashAttention takes float16 and bfloat16, got {q.dtype}")
    found = load()(*(t.transpose(1, 2) for t in (q, k, v)), causal=True)
    return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)


def _flash_attention_2():
    from flash_attn import flash_attn_func

    return flash_attn_func


def _flash_decoding_2():
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache


def _flash_attention_3():
    from flash_attn_interface import flash_attn_func

    return flash_attn_func


def _flash_decoding_3():
    from flash_attn_interface import flash_attn_with_kvcache

    return flash_attn_with_kvcache


def _flash_attention_4():
    from flash_attn.cute.interface import flash_attn_func

    return flash_attn_func


MAMBA_SSM = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"
CAUSAL_CONV1D = "pip install --no-build-isolation causal-conv1d"
FLASH_ATTN = "pip install --no-build-isolation flash-attn"

SDPA = tuple(
    Contender(f"sdpa.{name}", functools.partial(_sdpa, backend), module="torch")
    for name, backend in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
    )
)


def _flash(version, load, module, remedy):
    run = functools.partial(_flash_attention, load)
    return Contender(f"flash-attn-{version}", run, module=module, remedy=remedy)


FLASH_3 = ("flash_attn_interface", "the hopper folder of FlashAttention's repository")
FLASH_4 = _flash(4, _flash_attention_4, "flash_attn.cute", "pip install flash-attn-4")
FLEX = Contender("flex", _flex, module="torch")
PEERS = {
    "selective_scan": (
        Contender(
            "mamba-ssm", _selective_scan_fn, torch.Tensor.contiguous, "selective_scan_cuda", MAMBA_SSM
        ),
    ),
    "mamba_mixer": (
        Contender("mamba-ssm", mamba_ssm_mixer, module="selective_scan_cuda", remedy=MAMBA_SSM),
    ),
    "causal_conv1d": (
        Contender("causal-conv1d", _causal_conv1d_fn, module="causal_conv1d_cuda", remedy=CAUSAL_CONV1D),
    ),
    "causal_attention": (
        *SDPA, FLEX, _flash(2, _flash_attention_2, "flash_attn", FLASH_ATTN),
        _flash(3, _flash_attention_3, *FLASH_3), FLASH_4,
    ),
}  # fmt: skip
DECODE_PEERS = {
    "selective_state_update": (
        Contender("mamba-ssm", _selective_state_update, module="mamba_ssm", remedy=MAMBA_SSM),
    ),
    "causal_conv1d_update": (
        Contender("causal-conv1d", _causal_conv1d_update, module="causal_conv1d_cuda", remedy=CAUSAL_CONV1D),
    ),
    "causal_attention": (
        *SDPA, FLEX, _flash(2, _flash_decoding_2, "flash_attn", FLASH_ATTN),
        _flash(3, _flash_decoding_3, *FLASH_3), FLASH_4,
    ),
}  # fmt: skip
NAMES = tuple(
    dict.fromkeys(
        [
            *IMPLEMENTATIONS,
            *(
                peer.name
                for peers in (PEERS, DECODE_PEERS)
                for found in peers.values()
                for peer in found
            ),
            "copy",
        ]
    )
)


def absent_peers(operators):
    """{peer: how to get it} of the peers of operators whose module is not installed."""
    found = [
        peer
        for peers in (PEERS, DECODE_PEERS)
        for name in operators
        for peer in peers.get(name, ())
    ]
    return {peer.name: peer.remedy for peer in found if not _installed(peer.module)}
