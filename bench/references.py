"""What the cells of a run are compared with: computed before the rounds, kept in the run, read back in them."""

from bench import gradients, parity
from bench.availability import fate, proof_cell
from bench.memory import free_bytes, is_out_of_memory
from bench.memory_model import gradient_bytes
from bench.plan import gradient_path, reference_path, references

SHARE = 0.7  # of the free memory that a reference of gradients may take
PROVEN = {"cpu": 4096, "cuda": 32_768}  # tokens of a chunked prefill that are compared at most,
BEYOND = 512  # or so many more than its first chunk: what is carried is in the comparison


class Unproven(RuntimeError):
    """A cell that no reference reaches, and that is therefore not timed; the message says why."""


def gradient_keys(cells, device):
    """[(arch, dtype, seqlen, batch)] of the gradients that the training cells among `cells` are compared with."""
    keys = {}
    for cell in cells:
        if cell.mode == "train":
            own = proof_cell(cell) if fate(cell, device)[0] == "interpreted" else cell
            keys[own.arch, own.dtype, own.seqlen, own.batch] = None
    return list(keys)


def missing(run, cells, device):
    """The steps that compute what `cells` need and the run does not hold yet."""
    outputs = [
        ("reference", *key) for key in references(cells) if not reference_path(run, *key).exists()
    ]
    keys = sorted(gradient_keys(cells, device), key=lambda key: key[2:])
    return outputs + [
        ("gradients", *map(str, key)) for key in keys if not gradient_path(run, *key).exists()
    ]


class References:
    """The references of a run as one process sees them.

    Args:
        run: the run directory.
        plan: a Plan.
        models: `bench.forward.Models`.
        ids: (batch, length) token stream of the run.
    """

    def __init__(self, run, plan, models, ids):
        self.run, self.plan, self.models, self.ids = run, plan, models, ids
        self._loaded = {}

    def compute(self, step, cells):
        """Do one step of `missing`.

        Args:
            cells: those of the plan that can run.
        """
        kind, arch, dtype, *size = step
        if kind == "gradients":
            self._compute_gradients(arch, dtype, *map(int, size))
        else:
            self._compute_outputs(
                arch, dtype, [c for c in cells if (c.arch, c.dtype) == (arch, dtype)]
            )

    def check(self, cell, *outputs):
        """The `parity` of what the work of a cell gave.

        Raises:
            Unproven: the reference does not reach the cell.
            RuntimeError: computing it failed.
        """
        if cell.mode == "train":
            ids = self._ids(cell.batch, cell.seqlen)
            return gradients.check(self._gradients(cell), *outputs, ids)
        reference = self._outputs(cell)
        if cell.mode == "decode":
            return parity.check_token(reference, *outputs, cell.seqlen)
        return parity.check(reference, *outputs, cell.seqlen)

    def require(self, cell):
        """Raise what `check` would, before anything runs."""
        if cell.mode == "train":
            self._gradients(cell)
        elif cell.mode == "decode":
            self._outputs(cell)

    def _compute_outputs(self, arch, dtype, cells):
        length, batch = references(cells)[arch, dtype]
        if chunk := self.plan.options.get("chunk"):
            # float64 in one pass does not go where chunks go
            decoded = max((cell.tokens for cell in cells if cell.mode == "decode"), default=0)
            most = max(PROVEN[self.models.device.type], chunk + BEYOND, decoded)
            length = min(length, most)
        lengths = sorted(
            {n for c in cells if c.mode != "train" for n in (c.tokens, proof_cell(c).tokens)}
        )
        reference = parity.compute(
            self.models.get(arch, dtype), self._ids(batch, length), lengths, dtype
        )
        if reference.length < length:
            print(f"{arch} {dtype}: memory for a reference of {reference.length} tokens only")
        parity.save(reference_path(self.run, arch, dtype), reference)

    def _compute_gradients(self, arch, dtype, seqlen, batch):
        path = gradient_path(self.run, arch, dtype, seqlen, batch)
        needs = gradient_bytes(arch, seqlen, batch, self.plan.architectures[arch]["sizes"])
        free = free_bytes(self.models.device)
        if needs > SHARE * free:
            why = f"it would take about {needs / 2**30:.1f} of {free / 2**30:.1f} GiB that are free"
            _excuse(path).write_text(why, encoding="utf-8")
            return
        model = self.models.get(arch, dtype)
        try:
            found = gradients.compute(model, self._ids(batch, seqlen), dtype)
        except Exception as error:
            if is_out_of_memory(error):
                _excuse(path).write_text("memory ran out when it was computed", encoding="utf-8")
            raise
        gradients.save(path, found)
        _excuse(path).unlink(missing_ok=True)

    def _ids(self, batch, length):
        return self.ids[:batch, :length].to(self.models.device)

    def _outputs(self, cell):
        key = cell.arch, cell.dtype
        path = reference_path(self.run, *key)
        reference = self._load(path, parity.load, f"reference of {' in '.join(key)}")
        if cell.mode == "decode" and reference.length < cell.tokens:
            raise Unproven(
                f"the reference of {' in '.join(key)} ends at {reference.length:,} tokens, for want of memory: "
                f"one of {cell.tokens:,} is needed to prove the token after {cell.seqlen:,}"
            )
        return reference

    def _gradients(self, cell):
        path = gradient_path(self.run, cell.arch, cell.dtype, cell.seqlen, cell.batch)
        what = (
            f"reference of the gradients of {cell.arch} in {cell.dtype} at {cell.seqlen:,} tokens"
        )
        if not path.exists() and _excuse(path).exists():
            raise Unproven(f"there is no {what}: {_excuse(path).read_text(encoding='utf-8')}")
        return self._load(path, gradients.load, what)

    def _load(self, path, read, what):
        if path not in self._loaded:
            if not path.exists():
                raise RuntimeError(f"there is no {what} to compare with; see log.txt")
            self._loaded[path] = read(path)
        return self._loaded[path]


def _excuse(path):
    """Where it is said why a reference was not computed."""
    return path.with_suffix(".txt")
