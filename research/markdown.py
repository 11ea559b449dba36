"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    import pandas as pd


def table(rows: Iterable[Iterable], columns: Iterable[str]) -> str:
    """Rows of text, as it is."""
    return tabulate(list(rows), list(columns), tablefmt="pipe", disable_numparse=True)


def of(frame: pd.DataFrame) -> str:
    """A frame of text, as it is, without its index; what is missing is left empty."""
    return table(frame.fillna("").to_numpy(), frame.columns)
