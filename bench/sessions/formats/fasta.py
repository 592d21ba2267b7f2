"""FASTA files of DNA or RNA: a session for each record, its letters in upper case on one line, without its header.

Read them with `--tokenizer bytes`, a letter a token.
"""

from collections.abc import Iterator
from pathlib import Path

from bench.sessions.entries import make_session
from bench.sessions.session import Session, SessionError, Turn

SOURCE = "FASTA"
# bases, the ambiguity codes of the IUPAC (Cornish-Bowden 1985), and the gap
LETTERS = frozenset("ACGTURYSWKMBDHVN-")


def is_fasta(content):
    """Whether a text begins with a header and a line of nucleotides."""
    header, _, rest = content.lstrip().partition("\n")
    first = rest.split("\n", 1)[0].strip()
    return header.startswith(">") and bool(first) and set(first.upper()) <= LETTERS


def read_fasta(path: Path, content: str) -> Iterator[Session]:
    """Records of `>` headers, which are skipped, and lines of letters; `;` begins a comment line."""
    pieces, where = None, ""
    for number, row in enumerate(content.split("\n"), start=1):
        row = row.strip()
        if not row or row.startswith(";"):
            continue
        if row.startswith(">"):
            if pieces is not None:
                yield _record(pieces, where)
            pieces, where = [], f"{path}, line {number}"
            continue
        if pieces is None:
            raise SessionError(
                f'{path}, line {number}: expected a header, a line beginning with ">"'
            )
        row = row.upper()
        if not set(row) <= LETTERS:
            raise SessionError(
                f"{path}, line {number}: a letter that is no nucleotide; expected only {''.join(sorted(LETTERS))} "
                "(IUPAC; proteins are not read)"
            )
        pieces.append(row)
    if pieces is not None:
        yield _record(pieces, where)


def _record(pieces, where):
    if not pieces:
        raise SessionError(f"{where}: the record has no letters; expected a sequence below it")
    return make_session([Turn("", "", "".join(pieces))], where, source=SOURCE, kind="dna")
