"""Tables as Markdown."""

from collections.abc import Iterable

import pandas as pd


def table(rows: Iterable[Iterable], columns: Iterable[str]) -> str:
    """Rows of text, as it is."""
    return of(pd.DataFrame(rows, columns=list(columns)))


def of(frame: pd.DataFrame) -> str:
    """A frame of text, as it is, without its index; what is missing is left empty."""
    return frame.fillna("").to_markdown(index=False, disable_numparse=True)
