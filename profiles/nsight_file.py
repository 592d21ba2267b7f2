"""A capture of Nsight Systems, as `nsys export -t sqlite` writes it, read by the columns that the file has.

Schemas differ between versions and tables are made only when there is something to put in: what a version lacks is
looked up, never inferred from its number.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from shlex import quote
from urllib.parse import quote as quote_url

import pandas as pd

from profiles.events import CALLS, RANGES, WORK, Profile, ProfileError, empty, number_of

DOMAIN = "crossover"  # as in profiles/ranges.py, which needs torch
PUSH_POP, START_END, DOMAIN_CREATE = 59, 60, 75
WAITS = re.compile(r"Synchronize|^(cu|cuda|hip)Memcpy(?!.*Async)")

# a globalTid or globalPid holds the thread in its last 24 bits, above them the process
PROCESS = "{} & ~0xFFFFFF"
MAGIC = b"SQLite format 3\0"
CONVERT = {
    ".nsys-rep": "nsys export -t sqlite -o {stem}.sqlite {name}",
    ".qdrep": "nsys export -t sqlite -o {stem}.sqlite {name}",
    ".qdstrm": "QdstrmImporter -i {name} -o {stem}.nsys-rep && nsys export -t sqlite -o {stem}.sqlite {stem}.nsys-rep",
}
AGAIN = "export it again with nsys export -t sqlite"
COPIES = (
    "Unknown", "HtoD", "DtoH", "HtoA", "AtoH", "AtoA", "AtoD", "DtoA", "DtoD", "HtoH", "PtoP",
    "UnifiedHtoD", "UnifiedDtoH", "UnifiedDtoD",
)  # of ENUM_CUDA_MEMCPY_OPER # fmt: skip


def not_converted(path):
    """The ProfileError of a report that nobody exported yet; None for another kind of file."""
    command = CONVERT.get(path.suffix)
    if command:
        command = command.format(stem=quote(path.stem), name=quote(path.name))
        return ProfileError(
            f"{path} is a report of Nsight Systems, not its tables; convert it: {command}"
        )
    return None


def read(path, domain=DOMAIN):
    """The Profile in an SQLite export; ranges of other domains are counted in a note.

    Raises:
        ProfileError: no such export, a truncated one, or one that lacks a table or column.
    """
    path = Path(path)
    _check_bytes(path)
    with closing(sqlite3.connect(f"file:{quote_url(str(path))}?mode=ro", uri=True)) as connection:
        try:
            return _Export(path, connection).profile(domain)
        except (sqlite3.DatabaseError, pd.errors.DatabaseError) as error:
            raise ProfileError(f"{path} is damaged ({error}); {AGAIN}") from None


def _check_bytes(path):
    with path.open("rb") as file:
        head = file.read(100)
    if not head.startswith(MAGIC):
        what = "is empty" if not head else "is no SQLite file"
        raise ProfileError(f"{path} {what}; {AGAIN}")
    # the header counts the pages, and is right where both copies of the change counter agree
    page, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
    size, whole = path.stat().st_size, (65536 if page == 1 else page) * pages
    if head[24:28] == head[92:96] and size < whole:
        raise ProfileError(f"{path} is cut short: {size:,} of {whole:,} bytes; {AGAIN}")


class _Export:
    def __init__(self, path, connection):
        self.path, self.connection = path, connection
        names = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        self.columns = {
            name: {row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')}
            for (name,) in names.fetchall()
        }

    def profile(self, domain):
        self._check_tables()
        ranges, notes = self._ranges(domain)
        work = [self._kernels(), self._copies(), self._sets(), self._graphs()]
        work = pd.concat([rows for rows in work if len(rows)] or [empty(WORK)], ignore_index=True)
        untimed = work.end <= 0
        if untimed.any():
            notes.append(
                f"{number_of(int(untimed.sum()), 'launch')} without times in the file, left out"
            )
        return Profile(self._tool(), ranges, self._calls(), work[~untimed], notes=notes)

    def _check_tables(self):
        if "StringIds" not in self.columns or not {
            "EXPORT_META_DATA",
            "META_DATA_EXPORT",
            "NVTX_EVENTS",
        } & {*self.columns}:
            raise ProfileError(f"{self.path} is an SQLite file, but no export of Nsight Systems")
        if "NVTX_EVENTS" not in self.columns:
            raise ProfileError(
                f"{self.path} has no table NVTX_EVENTS: no ranges were recorded. Profile with -t nvtx; "
                "Nsight Systems 2022 records none of nvtx >= 0.2.12"
            )

    def _tool(self):
        table = next(
            (name for name in ("META_DATA_EXPORT", "EXPORT_META_DATA") if name in self.columns),
            None,
        )
        found = dict(self.connection.execute(f"SELECT name, value FROM {table}")) if table else {}
        return f"Nsight Systems {found.get('EXPORT_PRODUCT_VERSION') or 'of unknown version'}"

    def _query(self, table, columns, select, types, where="1"):
        """Rows of a table as a frame of the given types; an empty one where the table was not made."""
        if table not in self.columns:
            return empty(types)
        for column in columns:
            if column not in self.columns[table]:
                raise ProfileError(f"{self.path}: table {table} has no column {column}; {AGAIN}")
        query = f"SELECT {select} FROM {table} AS t WHERE {where}"
        found = pd.read_sql_query(query, self.connection)
        return found.astype(types) if len(found) else empty(types)

    def _ranges(self, domain):
        columns = ["start", "end", "eventType", "text", "textId", "globalTid", "domainId"]
        text = "COALESCE(text, (SELECT value FROM StringIds WHERE id = t.textId), '')"
        select = f"""start, COALESCE("end", -1) AS "end", COALESCE(globalTid, 0) AS thread,
            {PROCESS.format("COALESCE(globalTid, 0)")} AS process, {text} AS name, eventType AS type,
            COALESCE(domainId, 0) AS domain"""
        types = {name: kind for name, kind in RANGES.items() if name != "stacked"}
        types |= {"type": "int64", "domain": "int64"}
        kinds = f"eventType IN ({PUSH_POP}, {START_END}, {DOMAIN_CREATE})"
        found = self._query("NVTX_EVENTS", columns, select, types, kinds)
        made = found[found.type == DOMAIN_CREATE]
        found = found[found.type != DOMAIN_CREATE]
        ours = _in_domain(found, made, domain)
        notes = []
        if not ours.all():
            notes.append(
                f"{number_of(int((~ours).sum()), 'range')} of other domains than {domain}, left out"
            )
        unclosed = ours & (found.end < found.start)
        if unclosed.any():
            names = ", ".join(found.name[unclosed].unique()[:3])
            notes.append(
                f"{number_of(int(unclosed.sum()), 'range')} never closed, left out: {names}"
            )
        kept = found[ours & ~unclosed].copy()
        kept["stacked"] = kept.type == PUSH_POP
        if not len(kept):
            raise ProfileError(
                f"{self.path} has no ranges of domain {domain}: they are on only under a profiler, and Nsight Systems "
                "2022 records none of nvtx >= 0.2.12 (nvtx==0.2.10 works)"
            )
        return kept[list(RANGES)], notes

    def _calls(self):
        columns = ["start", "end", "globalTid", "correlationId", "nameId"]
        select = f"""start, "end", COALESCE(globalTid, 0) AS thread,
            {PROCESS.format("COALESCE(globalTid, 0)")} AS process,
            COALESCE(correlationId, -1) AS correlation, nameId"""
        types = CALLS | {"nameId": "int64"}
        types.pop("waits")
        found = self._query("CUPTI_ACTIVITY_KIND_RUNTIME", columns, select, types)
        names = {i: self._string(i) for i in found.nameId.unique().tolist()}
        found["waits"] = found.nameId.map(
            {i: bool(WAITS.search(name)) for i, name in names.items()}
        ).astype(bool)
        return found[list(CALLS)]

    def _string(self, number):
        row = self.connection.execute(
            "SELECT value FROM StringIds WHERE id = ?", (number,)
        ).fetchone()
        return row[0] if row else ""

    def _work(self, table, kind, name, needs=()):
        columns = ["start", "end", "correlationId", "globalPid", *needs]
        # a correlation id of -2 is no call's: an API call that has none is -1
        select = f"""start, "end", {PROCESS.format("COALESCE(globalPid, 0)")} AS process,
            COALESCE(correlationId, -2) AS correlation, '{kind}' AS kind, {name} AS name"""
        return self._query(f"CUPTI_ACTIVITY_KIND_{table}", columns, select, WORK)

    def _kernels(self):
        has = self.columns.get("CUPTI_ACTIVITY_KIND_KERNEL", ())
        column = next(
            (name for name in ("demangledName", "shortName") if name in has), "demangledName"
        )
        name = f"(SELECT value FROM StringIds WHERE id = t.{column})"
        return self._work("KERNEL", "kernel", f"COALESCE({name}, 'kernel ' || {column})", [column])

    def _copies(self):
        found = self._work("MEMCPY", "memcpy", "copyKind", ["copyKind"])
        found["name"] = [
            f"Memcpy {COPIES[kind] if 0 <= kind < len(COPIES) else kind}" for kind in found.name
        ]
        return found

    def _sets(self):
        return self._work("MEMSET", "memset", "'Memset'")

    def _graphs(self):
        return self._work("GRAPH_TRACE", "kernel", "'cuda graph ' || graphId", ["graphId"])


def _in_domain(ranges, made, domain):
    """Which ranges are of the domain; its number is the process's own."""
    named = made.name == domain
    ours = pd.MultiIndex.from_frame(made[named][["process", "domain"]])
    known = pd.MultiIndex.from_frame(made[["process", "domain"]])
    theirs = pd.MultiIndex.from_frame(ranges[["process", "domain"]])
    # a process that was forked does not make its domains again: the number means what it means everywhere else
    everywhere = set(made[named].domain) - set(made[~named].domain)
    forked = ~theirs.isin(known) & ranges.domain.isin(everywhere).to_numpy()
    return pd.Series(theirs.isin(ours) | forked, index=ranges.index)
