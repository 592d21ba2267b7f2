"""The one door of `models` to transformers, which is imported inside functions, after a check."""

from kernels.clash import clash


def check_no_clash():
    """Raise ImportError, with the remedy, if Hugging Face's `kernels` is installed beside ours."""
    if wrong := clash():
        raise ImportError(wrong)


def transformers():
    """The transformers package, imported after `check_no_clash`."""
    check_no_clash()
    import transformers

    return transformers
