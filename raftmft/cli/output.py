"""Tables that fit a terminal, sizes and times for people, JSON for machines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import click

MOST_BYTES = 1 << 62
_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; in a pipe it is as wide as it must be, so that nothing is cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold" if terminal else "")
    for column in columns:
        right = bool(rows) and all(isinstance(row[len(table.columns)], int) for row in rows)
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=not terminal)
    for row in rows:
        table.add_row(*[Text("" if cell is None else str(cell)) for cell in row])
    Console(width=None if terminal else 10_000, highlight=False, soft_wrap=False).print(table)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Shows `what` and the last text given to the function on a terminal, while work goes on; in a pipe, nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)) as status:
        yield lambda text: status.update(Text(f"{what}: {text}"))


def size_text(size: int) -> str:
    """1536 -> "1.5 KiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class Size(click.ParamType):
    """A size like 50GiB, 500MB or 1048576."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, or a usage error that says what is taken."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(value).strip().lower())
        if not match or match[2] not in _UNITS:
            self.fail(f"{value[:40]!r} is not a size; write for example 50GiB, 500MB or 1048576", param, ctx)
        size = int(Decimal(match[1]) * _UNITS[match[2]])
        if size > MOST_BYTES:
            self.fail(f"{value[:40]!r} is more than the {size_text(MOST_BYTES)} that a size may be", param, ctx)
        return size
