"""The tools of train.sh, as verl documents function tools: a small shop's database."""

from __future__ import annotations

import sqlite3
from typing import Any

from verl.tools.function_tool import function_tool
from verl.tools.schemas import ToolResponse

GOODS = [("lamp", 12, 5), ("chair", 40, 2), ("table", 95, 1), ("vase", 7, 11), ("rug", 60, 0), ("clock", 25, 4)]


def shop() -> sqlite3.Connection:
    """Return a new database, so that no call changes what another one sees."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE goods (name TEXT, price INTEGER, stock INTEGER)")
    database.executemany("INSERT INTO goods VALUES (?, ?, ?)", GOODS)
    return database


@function_tool
def sql(query: str) -> tuple[ToolResponse, float, dict[str, Any]]:
    """Ask the shop's database.

    Args:
        query: A query in SQL, for example SELECT price FROM goods WHERE name = 'lamp'.
    """
    try:
        rows = shop().execute(query).fetchmany(5)
    except sqlite3.Error as error:
        return ToolResponse(text=f"Error: {error}"), 0.0, {"ok": False, "error_kind": "bad_arguments"}
    return ToolResponse(text=str(rows)), 0.0, {"ok": True}


@function_tool
def columns(table: str) -> str:
    """Return the columns of a table.

    Args:
        table: Its name, for example goods.
    """
    return ", ".join(row[1] for row in shop().execute("SELECT * FROM pragma_table_info(?)", (table,)))
