"""What Triton compiles for the arguments of a launch, without a GPU: the cases of `profiles.static`."""

import torch

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}


def static_case(kernel, args):
    """How Triton would specialise `kernel` for `args`: {"kernel", "signature", "constexprs"} of a case.

    Args:
        args: {argument: tensor, number, tuple of numbers or None}, as in a launch; tensors may be of the meta device.
    """
    constants = {p.name for p in kernel.params if p.is_constexpr}
    signature, constexprs = {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = args[name]
        if name in constants or value is None:
            signature[name], constexprs[(i,)] = "constexpr", value
        elif isinstance(value, tuple):
            signature[name] = tuple("constexpr" if v == 1 else "i32" for v in value)
            constexprs |= {(i, j): 1 for j, v in enumerate(value) if v == 1}
        elif isinstance(value, int):
            signature[name] = "constexpr" if value == 1 else "i32"
            constexprs |= {(i,): 1} if value == 1 else {}
        else:
            signature[name] = f"*{TYPES[value.dtype]}"
    return {"kernel": kernel, "signature": signature, "constexprs": constexprs}
