"""The sweeps of the plan `answer`, most valuable first: what each is for, and its command line.

transformers' own path takes the scan token by token, seconds for one forward of 8,192 tokens on a GPU: it is in the
sweeps of the paper's lengths alone.
"""

from dataclasses import dataclass

OURS = "triton,cuda,torch"
HALF_OCTAVES = "512,724,1024,1448,2048,2896,4096,5793,8192,11585,16384,23170,32768"


@dataclass(frozen=True)
class Sweep:
    """A run directory `sweep-NAME`: factors as `bench.sweep` takes them, `seconds` that it is expected to take."""

    name: str
    seconds: int
    impl: str = OURS
    arch: str = "mamba,llama"
    preset: str = "paper-50m"
    seqlens: str = "512,1024,2048,4096,8192"
    dtype: str = "fp32,bf16"
    mode: str = "prefill"
    launch: str = "eager"
    rounds: int = 5
    budget: float = 0.1
    cell_timeout: int = 60
    protocol: str = "lab"
    slice: str = ""
    device: str = "cuda"

    def arguments(self):
        """Of `bench.sweep`, but for where it writes."""
        options = {
            "arch": self.arch, "impl": self.impl, "preset": self.preset, "seqlens": self.seqlens, "dtype": self.dtype,
            "mode": self.mode, "launch": self.launch, "rounds": self.rounds, "protocol": self.protocol,
            "cell-timeout": self.cell_timeout, "metrics": "none", "profile": "none", "report": "none",
            "device": self.device,
        }  # fmt: skip
        options |= {"slice": self.slice} if self.slice else {}
        options |= {"budget": self.budget} if self.protocol == "lab" else {}
        return [part for name, value in options.items() for part in (f"--{name}", str(value))]


ANSWER = (
    Sweep("paper", 300, impl=f"{OURS},hf"),
    Sweep("decode", 180, mode="decode", seqlens="512,2048,8192,32768"),
    Sweep("octaves", 510, seqlens=HALF_OCTAVES, launch="eager,graph"),
    Sweep("train", 220, mode="train"),
    Sweep("protocol", 180, impl=f"{OURS},hf", dtype="fp32", protocol="paper"),
    Sweep("matched", 200, preset="matched-50m", seqlens="512,1024,2048,4096,8192,16384,32768"),
    Sweep("large-llama", 100, arch="llama", preset="llama-2-7b", slice="2", seqlens="8192,32768", dtype="bf16",
          rounds=3),
    Sweep("large-mamba", 100, arch="mamba", preset="mamba-2.8b", slice="4", seqlens="8192,32768", dtype="bf16",
          rounds=3),
)  # fmt: skip
# once there is time: the headline cells in ten rounds, and the other preset in the other modes
LATER = (
    Sweep("headline", 200, seqlens="2048,4096,8192", rounds=10),
    Sweep("matched-train", 200, preset="matched-50m", mode="train"),
    Sweep("matched-decode", 150, preset="matched-50m", mode="decode", seqlens="512,8192,32768"),
)
# the default plan: a quick look at everything
GENERAL = (
    Sweep("quick-prefill", 200, impl=f"{OURS},hf", rounds=3),
    Sweep("quick-decode", 100, impl=f"{OURS},hf", mode="decode", seqlens="512,2048,8192", rounds=3),
    Sweep("quick-train", 150, impl=f"{OURS},hf", mode="train", rounds=3),
)
