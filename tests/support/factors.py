"""Item factors for lists that no model made."""

import struct

from hotplate.stores.factors import Description, Entry, description_row, pieces


def factor_rows(*ids: str) -> dict[str, bytes]:
    """Return the rows of factors, two of each item, as `publish_lists` takes rows."""
    items = ((Entry(item, f"Title {item}"), struct.pack("<2f", 1.0, number)) for number, item in enumerate(ids))
    rows = list(pieces(items))
    description = Description("als", len(ids), 2, len(rows), regularization=1.0, alpha=2.0, weight=1.0)
    return dict([*rows, description_row(description)])
