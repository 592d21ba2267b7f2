"""LLaMA (Touvron et al. 2023), and the models that are built like it."""

import torch

from kernels.causal_attention.problem import CausalAttentionProblem
from kernels.roofline import LinearProblem
from models.architectures.base import Architecture
from models.architectures.draws import normal


def problems(config, batch, seqlen, decode):
    """The blocks: attention and MLP. q, k and v count as one projection that reads its input once; gate and up too."""
    block = [*attention(config, batch, seqlen, decode), *mlp(config, batch, seqlen, decode)]
    return [(config["num_hidden_layers"], problem) for problem in block]


def attention(config, batch, seqlen, decode):
    """[problem] of one attention with its projections."""
    tokens = batch if decode else batch * seqlen
    hidden, nheads = config["hidden_size"], config["num_attention_heads"]
    nheads_kv = config.get("num_key_value_heads") or nheads
    headdim = config.get("head_dim") or hidden // nheads
    return [
        LinearProblem(tokens, hidden, (nheads + 2 * nheads_kv) * headdim),
        CausalAttentionProblem(batch, nheads, seqlen, headdim, nheads_kv, 1 if decode else None),
        LinearProblem(tokens, nheads * headdim, hidden),
    ]


def mlp(config, batch, seqlen, decode):
    """[problem] of one MLP."""
    tokens = batch if decode else batch * seqlen
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return [LinearProblem(tokens, hidden, 2 * inner), LinearProblem(tokens, inner, hidden)]


def initial(name, shape, config, generator):
    """As in transformers' LlamaPreTrainedModel: every matrix N(0, 0.02²), norms 1."""
    if "norm" in name:
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return normal(shape, 0.02, generator)


ARCHITECTURE = Architecture(
    name="llama",
    title="LLaMA",
    # causal attention of rotated queries and keys through transformers' AttentionInterface
    model_types=(
        "llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "granite", "smollm3", "phi3", "gemma", "glm4", "cohere",
        "starcoder2", "stablelm",
    ),
    classes={"llama": "Llama"},
    operators=("causal_attention",),
    settings=(
        "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "head_dim",
    ),
    problems=problems,
    initial=initial,
)  # fmt: skip
