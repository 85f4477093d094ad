"""Item attributes of a release, such as price or colour, read from a file of items.

Requests filter lists by them (`where=price<10`), so each attribute is a column of numbers or of texts.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, get_args

import polars as pl

from hotplate.base.recommendations import ALL_ITEM_FIELDS
from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.columns import DECIMAL_COMMA, choose_columns, is_date, named_values
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataSource, input_files, named_paths
from hotplate.offline.input.rows import FILE, Rows, RowSchema
from hotplate.offline.input.tables import ROW, Table, open_tables
from hotplate.offline.options import Format
from hotplate.stores.attributes import (
    ABOUT,
    CODE,
    EXACT_FLOATS,
    EXPIRES,
    IN_ARRAY,
    SEVERAL,
    Kind,
    Value,
    encode_attributes,
    parse_date,
    parse_list,
    parse_text,
)
from hotplate.stores.errors import StoreMisused, did_you_mean
from hotplate.stores.origin import OriginRecord
from hotplate.stores.store import Row

# As a condition of `where` can name it; `deny` is a column of overrides.
_NAME = re.compile(r"(?!deny$)[\w.-]{1,64}")
_ITEM = "item"
# A column of a text file is of numbers if at least this share of its cells are.
_LEAST_NUMBERS = 0.95
# As floats are written, even whole ones that are large.
_FLOAT = r"[eE]|\.0$"
# Below this share, as for titles such as 1984, a column of texts needs no explanation.
_FEW_NUMBERS = 0.1
# Cells of a column of texts, the share of its cells that they exceed, and what is wrong with them.
_FAULTS_OF_TEXTS = (
    (DECIMAL_COMMA, 0.9, "have decimal commas; write points to filter by size"),
    (r'^\["', 0, "are arrays; write all as arrays for a list"),
)
_CELLS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Column:
    """The values of one attribute, with a *note* on doubtful cells, empty without any."""

    kind: Kind
    values: Sequence[Value]
    note: str = ""


class Attributes(NamedTuple):
    """The *rows* of items' attributes in a release, and their entry in the manifest (*about*); empty without any."""

    rows: list[Row]
    about: OriginRecord

    @property
    def bytes(self) -> int:
        """Those of the rows' values."""
        return sum(len(row.value) for row in self.rows)


def read_attributes(
    path: DataSource | None, kinds: Mapping[str, str] | None = None, shown: Collection[str] = ()
) -> Attributes:
    """Read a file with a column of items; the other columns are attributes, such as price, by which lists are filtered.

    Returns them as rows of a release and as an entry of its manifest; none without a *path*. Answers may have the
    *shown* ones (`fields=id,price`). *kinds* are `number`, `text`, `date` or `list`, by column; the texts of a list are
    separated by a bar, or by the character in `list;`. Other columns of a text file are numbers or dates if 95 % of
    their cells are, lists if JSON has arrays, and columns of Parquet keep their types; Booleans are texts. A column is
    also one of texts if numbers would not keep all of its digits: those of whole numbers from 2**53 on, and leading
    zeros.
    In a column of numbers, a cell that is not a number counts as missing. The entry's `notes` show such cells.

    Raises DataError for a repeated item, and for attributes that are too large or cannot be named in a filter,
    SettingError for unknown columns, and for *shown* ones with the name of a field that each item has.
    """
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        is_list = kind.startswith("list") and len(kind) <= len("list;")
        if kind not in get_args(Kind) and not is_list:
            raise SettingError(
                f"The attribute {name!r} is {kind!r}; write NAME=number, text, date or list: price=number, or "
                "category=list; for texts between semicolons."
            )
    if path is None:
        if kinds or shown:
            given = "Kinds of attributes" if kinds else "Shown attributes"
            raise SettingError(f"{given} are given without a file of attributes; give that, too.")
        return Attributes([], {})

    source = named_paths([path])
    with input_files([path]) as files:
        tables = open_tables(files, Format(max_bad_rows=0))
        schema = tables[0].schema
        item = choose_columns({}, list(schema), source, required=[_ITEM])[_ITEM]
        names = [name for name in schema if name != item]
        _check_names(names, kinds, shown, source)

        for name in names:
            if (kind_by_type := _kind_by_type(name, tables)) is not None:
                kinds.setdefault(name, kind_by_type)

        with data_errors(source, files):
            schemas = [_attribute_schema(table, item, names) for table in tables]
            kept = Rows(schemas, source).kept.collect(engine="streaming")

        columns = dict[str, _Column]()
        for number, name in enumerate(names):
            cells = kept.select(ROW, FILE, cell=pl.col(f"{number}"))
            columns[name] = _typed_column(name, cells, kinds.get(name), tables)
    attributes = _encoded_rows(kept.get_column(_ITEM), columns, source)
    if shown:
        attributes.about[ABOUT]["shown"] = list(dict.fromkeys(shown))
    return attributes


def parse_kinds(texts: Iterable[str]) -> dict[str, str]:
    """Parse `price=number` and `size=text`, also joined by commas; `read_attributes` checks them."""
    return dict(chain.from_iterable(map(named_values, texts)))


def parse_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Parse `price,image`, repeated or joined by commas."""
    names = chain.from_iterable(text.split(",") for text in texts)
    return tuple(name.strip() for name in names if name.strip())


def _kind_by_type(name: str, tables: Sequence[Table]) -> str | None:
    """Return the kind of a column by its type in the files; None if its cells decide."""
    dtypes = [table.schema[name] for table in tables]
    if any(isinstance(dtype, pl.List | pl.Array) for dtype in dtypes):
        return f"list{IN_ARRAY}"
    if tables[0].file.kind != "parquet" or dtypes[0].is_numeric():
        return None
    return "date" if is_date(dtypes[0]) else "text"


def _check_names(columns: Sequence[str], kinds: Mapping[str, str], shown: Collection[str], source: str) -> None:
    """Check the names of a file's attribute columns.

    Raises DataError for a name that filters cannot use, and for a file without such columns; SettingError if *kinds*
    or *shown* have a name that is not among them, or if *shown* has that of a field that each item has.
    """
    if wrong := next((name for name in columns if not _NAME.fullmatch(name)), None):
        raise DataError(f"{source} has a column {wrong!r}; rename it, as filters can name letters, digits, . - _")
    if not columns:
        raise DataError(f"{source} has a column of items alone; add columns of attributes to filter by")
    for name in (*kinds, *shown):
        if name not in columns:
            advice = did_you_mean(name, columns) or f"it has {', '.join(columns)}."
            raise SettingError(f"The attribute {name!r}: {source} has no such column; {advice}")
    if taken := next((name for name in ALL_ITEM_FIELDS if name in shown), None):
        advice = " Titles of answers are those of `train` or `import`, as by --titles FILE." if taken == "title" else ""
        raise SettingError(
            f"The shown attribute {taken}: an item has this field already; rename the column in {source}.{advice}"
        )


def _attribute_schema(table: Table, item: str, names: Sequence[str]) -> RowSchema:
    """Declare the values that are read from a table: the item, and each attribute as text.

    *item* is the column of items, *names* are those of attributes. The value of the attribute `names[2]` is called `2`,
    as its name may be in use. Rows with a missing or invalid id are left out.
    """
    schema = RowSchema.of(table, {_ITEM: item})
    for number, name in enumerate(names):
        schema.values[f"{number}"] = table.texts(name)
    return schema


def _typed_column(name: str, cells: pl.DataFrame, wanted: str | None, tables: Sequence[Table]) -> _Column:
    """Return the values of the attribute *name*, of the kind that is wanted, or that its cells have.

    cells   [ROW, FILE, cell]: the number of a row, the index of its table in *tables*, and the value
    wanted  the kind, or `list` and a separator; None for numbers or dates if nearly all cells are
    tables  for notes on doubtful cells

    Raises SettingError if numbers or dates are wanted and no cell is one.
    """
    values = cells.get_column("cell")
    if name == EXPIRES and not values.count():  # also if no item expires for now
        wanted = "date"
    if wanted is not None and wanted.startswith("list"):
        separator = wanted.removeprefix("list") or SEVERAL
        return _Column("list", [parse_list(cell or "", separator) or None for cell in values])
    if wanted == "text":
        return _Column("text", [parse_text(cell or "") or None for cell in values])

    numbers = _numbers_in(values)
    least = _LEAST_NUMBERS * values.count()
    kind: Kind = "number"
    if wanted == "date" or (wanted is None and numbers.count() < least):
        dates = _dates_in(values)
        if wanted == "date" or dates.count() > numbers.count():
            kind = "date"
            numbers = dates

    others = cells.filter(values.is_not_null() & numbers.is_null())
    if wanted is None:
        note = _note_on_codes(name, cells, tables) if kind == "number" else ""
        if numbers.count() < least:
            note = _note_on_texts(name, kind, cells, others, tables)
        if note or numbers.count() < least:
            return _Column("text", values.to_list(), note)
    return _column_of(name, kind, numbers, cells, tables)


def _column_of(name: str, kind: Kind, numbers: pl.Series, cells: pl.DataFrame, tables: Sequence[Table]) -> _Column:
    """Return a column of *numbers* or dates, with a note on cells that are none; SettingError if no cell is one.

    *cells* and *tables* are those of `_typed_column`; *numbers* has null for cells that are missing or of another kind.
    """
    values = cells.get_column("cell")
    if kind == "number":
        numbers = numbers.set(_are_rounded(values), None)
    others = cells.filter(values.is_not_null() & numbers.is_null())
    if others.is_empty():
        return _Column(kind, numbers.to_list())
    shown = _cells_in_words(name, others, tables)
    if not numbers.count():
        raise SettingError(
            f"The attribute {name}={kind}: no cell is a {kind} ({shown}); leave it out, or mend the file."
        )
    are_missing = f"cell is no {kind} and is" if others.height == 1 else f"cells are no {kind}s and are"
    return _Column(kind, numbers.to_list(), f"{name} ({kind}): {others.height:,} {are_missing} missing: {shown}")


def _numbers_in(values: pl.Series) -> pl.Series:
    """Return the finite numbers that texts write, null for others."""
    numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _are_rounded(values: pl.Series) -> pl.Series:
    """Return which whole numbers a float does not hold."""
    return (_numbers_in(values).abs() >= EXACT_FLOATS) & ~values.str.strip_chars().str.contains(_FLOAT)


def _dates_in(values: pl.Series) -> pl.Series:
    """Return the Unix times of texts that are dates, null for others."""
    seconds = (None if cell is None else parse_date(cell) for cell in values)
    return pl.Series(seconds, dtype=pl.Float64).fill_nan(None)


def _note_on_codes(name: str, cells: pl.DataFrame, tables: Sequence[Table]) -> str:
    """Return a note on why a column of numbers is read as texts; empty if numbers keep all digits."""
    values = cells.get_column("cell")
    codes = cells.filter(_are_rounded(values) | values.str.strip_chars().str.contains(CODE))
    if codes.is_empty():
        return ""
    return f"{name} (text): numbers would not keep all digits of {_cells_in_words(name, codes.head(1), tables)}"


def _note_on_texts(name: str, kind: Kind, cells: pl.DataFrame, others: pl.DataFrame, tables: Sequence[Table]) -> str:
    """Return a note on why a column with some numbers or dates is read as texts; empty if few cells are of this kind.

    *others* are the cells of another kind; the rest as for `_typed_column`.
    """
    present = cells.get_column("cell").count()
    for pattern, least_share, fault in _FAULTS_OF_TEXTS:
        doubtful = cells.filter(pl.col("cell").str.strip_chars().str.contains(pattern))
        if doubtful.height > least_share * present:
            first = _cells_in_words(name, doubtful.head(1), tables)
            return f"{name} (text): {doubtful.height:,} of its cells {fault}: {first}"

    share = 1 - others.height / present
    if share < _FEW_NUMBERS:
        return ""
    return (
        f"{name} (text): {share:.0%} of its cells are {kind}s, and {_LEAST_NUMBERS:.0%} would make it one of {kind}s; "
        f"--attribute {name}={kind} takes the other cells as missing: {_cells_in_words(name, others, tables)}"
    )


def _cells_in_words(name: str, cells: pl.DataFrame, tables: Sequence[Table]) -> str:
    """Describe the first few *cells* of the column *name* for a note: `prices.csv, row 7, column 'price': 'n/a'`.

    *cells* are [ROW, FILE, cell]: the number of a row, the index of its table in *tables*, and the cell's value.
    """
    first = cells.sort(FILE, ROW).head(_CELLS_SHOWN)
    places = [tables[number].describe(row, name).text for number, row in first.select(FILE, ROW).iter_rows()]
    return ", ".join(places) + (", …" if cells.height > len(places) else "")


def _encoded_rows(ids: pl.Series, columns: Mapping[str, _Column], source: str) -> Attributes:
    """Return item attributes as rows of a release, and as an entry of its manifest, with the notes on their columns.

    *ids* are those of the items, in the order of the values in *columns*; *source* names the files in errors. Raises
    DataError for repeated items and attributes that are too large.
    """
    values = {name: column.values for name, column in columns.items()}
    kinds = {name: column.kind for name, column in columns.items()}
    try:
        rows, about = encode_attributes(ids.to_list(), values, kinds)
    except StoreMisused as error:
        raise DataError(f"{source} cannot be published: {error}.") from error

    notes = [column.note for column in columns.values() if column.note]
    if (expires := kinds.get(EXPIRES)) is not None:
        effect = "each item leaves all lists at that time"
        if expires != "date":
            effect = f"no item leaves lists; write 2026-12-31 or 2026-12-31T18:00Z, and --attribute {EXPIRES}=date"
        notes.append(f"{EXPIRES} ({expires}): {effect}")
    if notes:
        about[ABOUT]["notes"] = notes
    return Attributes(rows, about)
