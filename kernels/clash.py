"""Hugging Face publishes a package named `kernels` too.

Where it is installed, transformers imports `kernels`, is given ours, and fails far from the cause.
"""

from importlib import metadata


def clash():
    """What is wrong and how to mend it, if Hugging Face's `kernels` is installed beside ours; else empty."""
    try:
        version = metadata.distribution("kernels").version
    except metadata.PackageNotFoundError:
        return ""
    return (
        f"Hugging Face's package kernels {version} is installed; transformers would mistake our package kernels "
        "for it. Remedy: pip uninstall kernels"
    )
