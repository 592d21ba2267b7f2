"""The one door to transformers: it opens only where transformers can be imported beside our package `kernels`.

Hugging Face publishes a package named `kernels` on PyPI. Where it is installed, transformers imports `kernels`,
is given ours, and fails far from the cause. transformers is therefore imported inside functions, after the check.
"""

from importlib import metadata


def check_no_clash():
    """Raise ImportError, with the remedy, if Hugging Face's `kernels` is installed beside ours."""
    try:
        version = metadata.distribution("kernels").version
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"Hugging Face's package kernels {version} is installed; transformers would mistake our package kernels "
        "for it. Remedy: pip uninstall kernels"
    )


def transformers():
    """The transformers package, imported after `check_no_clash`."""
    check_no_clash()
    import transformers

    return transformers
