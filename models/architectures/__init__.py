"""The architectures that the lab knows, one file each: everything that the rest asks of one by its name.

To add one, write a file like its neighbours and name it here; CONTRIBUTING.md says what else it may need.
"""

from models.architectures import hybrid, llama, mamba, mamba2

# the pair that the lab asks about comes first
REGISTRY = {
    found.name: found
    for found in (
        mamba.ARCHITECTURE,
        llama.ARCHITECTURE,
        mamba2.ARCHITECTURE,
        hybrid.ARCHITECTURE,
    )
}
