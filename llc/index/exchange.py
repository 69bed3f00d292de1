"""What exports and imports of an index share: the columns of its tables, and what LanceDB needs.

A table, in Parquet or LanceDB, has a row for each code, in ascending order of ids:

    id          int64
    code        code_size bytes, packed as llc.codes says: fixed-size binary in Parquet, a fixed-size list of
                uint8 in LanceDB, which searches only such lists
    label       int32, a position in class_names; null: none
    class_name  text; null: none
    file        text; null: none
    size        int64, the file's bytes; null: unknown
    modified    int64, the file's time of modification in nanoseconds since 1970; null: unknown

The schema's metadata says what columns cannot: llc.num_bits, and llc.class_names as a JSON list.
"""

from __future__ import annotations

import re
from typing import Any

from llc.data.sources import printable
from llc.errors import UserError

NUM_BITS, CLASS_NAMES = b"llc.num_bits", b"llc.class_names"  # keys of the metadata
TABLE = "codes"  # of a LanceDB database
BATCH = 65_536  # codes that are in memory at a time

_TABLE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def is_uri(path: str) -> bool:
    """Whether `path` is an address such as s3://bucket/folder, not a path of this machine.

    Raises UserError for db://, which is a service that no folder of ours is on.
    """
    if path.startswith("db://"):
        raise UserError(
            f"{printable(path)}: this is LanceDB Cloud; give a folder, or an object store such as "
            "s3://bucket/folder"
        )
    return "://" in path


def check_table(table: str) -> None:
    """Raises UserError unless LanceDB takes the name."""
    if not _TABLE_NAME.fullmatch(table):
        raise UserError(
            f"--table={printable(table)}: expected letters, digits, and _ - . after the first of them"
        )


def table_names(database: Any) -> list[str]:
    """The tables of a LanceDB database."""
    names: list[str] = []
    token = None
    while True:
        page = database.list_tables(page_token=token)
        names += page.tables
        token = page.page_token
        if not token:
            return names


def reason(error: BaseException) -> str:
    """An error of another engine in one line: these name places in its source, and repeat themselves."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = printable(lines[0]) if lines else type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
