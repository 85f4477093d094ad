"""Rows of input tables by a declared schema; rows left out are counted, bad ones shown.

A `RowSchema` declares which values the columns of a table become and which rows are left out, and `Rows` reads the
tables of one input by their schemas. A *bad row* cannot be read; few are tolerated (`Format.max_bad_rows`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import polars as pl

from hotplate.base.report import format_count
from hotplate.offline.errors import DataError
from hotplate.offline.input.columns import DECIMAL_COMMA, choose_columns, usual_column
from hotplate.offline.input.faults import data_errors
from hotplate.offline.input.files import DataFile, DataSource, input_files, named_paths
from hotplate.offline.input.tables import EXTRA, ROW, Table, open_tables
from hotplate.offline.options import Format
from hotplate.stores.encoding import MAX_ID_BYTES

# Columns beside the values: the number of the table that a row is from, and the reason to leave it out, null if kept.
FILE = "\0file"
_REASON = "\0reason"
_MALFORMED_ROW = "malformed row"
_MOST_ROWS_SHOWN = 5
# Texts of floats from 2**53 on, and what spreadsheets make of long numbers.
_ROUNDED_PATTERN = r"^-?(\d(\.\d+)?[eE]\+\d{2,}|(9\d{15}|\d{17,})\.0)$"
# In a column of floats, `Table.text` keeps the point of whole numbers that the type rounds.
_ROUNDED_FLOAT_PATTERN = r"\.0$|e\+|inf"
_ROUNDED_FAULT = "is a rounded number"
_ROUNDED_ADVICE = ", so different ids may have become one; write ids as whole numbers or texts"


class Fault(NamedTuple):
    """The fault of the values of a *column* in bad rows, as the end of a sentence: `is not a finite number`.

    The *advice* follows the first row whose value matches the pattern *advised*.
    """

    column: str
    text: str
    advice: str = ""
    advised: str = ""


def number_fault(column: str) -> Fault:
    """Return the fault of a value in *column* that is not a finite number."""
    return Fault(column, "is not a finite number", " (write a decimal point)", DECIMAL_COMMA)


class RowFilter(NamedTuple):
    """A *condition* that a row must meet, and the *column* that it is about."""

    condition: pl.Expr
    column: str


@dataclass(slots=True)
class RowSchema:
    """How to read the rows of a *table*: a value for each name, and reasons to leave a row out, the first one first.

    values     expressions over the table's columns, by name: what is read
    filters    over the table's columns, by the reason to leave out rows that do not meet them
    left_out   conditions over the values, by the reason to leave a row out that meets one, such as `no user`
    bad        faults by reason, for rows that cannot be read; too many of them are an error
    examples   by reason, the name of the value that explains it
    counted    rows that the table leaves out already: their number by reason, and by the value that explains it
    """

    table: Table
    values: dict[str, pl.Expr] = field(default_factory=dict)
    filters: dict[str, RowFilter] = field(default_factory=dict)
    left_out: dict[str, pl.Expr] = field(default_factory=dict)
    bad: dict[str, Fault] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    counted: dict[str, Mapping[str | None, int]] = field(default_factory=dict)

    def add_number(self, name: str, column: str, *, missing: str, invalid: str) -> None:
        """Read *column* as the number *name*.

        Rows without one are left out for the reason *missing*; another text makes a bad row, for the reason *invalid*.
        """
        self.values[name] = self.table.number_or_inf(column)
        self.left_out[missing] = pl.col(name).is_null()
        self.leave_out_bad(invalid, pl.col(name).is_infinite(), number_fault(column))

    def leave_out_bad(self, reason: str, condition: pl.Expr, fault: Fault) -> None:
        """Leave rows out as bad."""
        self.left_out[reason] = condition
        self.bad[reason] = fault

    def leave_out_bad_ids(self, columns: Mapping[str, str], values: Mapping[str, str] | None = None) -> None:
        """Leave out rows with an id that is missing, too long, or a number that was rounded.

        *columns* are the table's columns of ids by role (`user`, `item`, `segment`), for messages. *values* are the
        names of the ids in `values`, by role; by default the roles. A segment may be missing. A rounded id, such as
        `1.23457E+15`, may stand for several users or items, so its row is bad, as one that cannot be read.
        """
        value_names = values or {role: role for role in columns}
        ids = {role: pl.col(value_names[role]) for role in columns}

        # A row counts for the first reason that applies, in the order in which they are added here. So missing ids of
        # all roles come first.
        for role, identifier in ids.items():
            if role != "segment":
                self.left_out[f"no {role}"] = identifier.is_null()

        for role, identifier in ids.items():
            self.left_out[f"{role} id over {MAX_ID_BYTES} bytes"] = identifier.str.len_bytes() > MAX_ID_BYTES

        for role, identifier in ids.items():
            fault = Fault(columns[role], _ROUNDED_FAULT, _ROUNDED_ADVICE)
            dtype = self.table.schema.get(columns[role])
            pattern = _ROUNDED_FLOAT_PATTERN if dtype is not None and dtype.is_float() else _ROUNDED_PATTERN
            self.leave_out_bad(f"{role} id that was rounded", identifier.str.contains(pattern), fault)


def _reasons_in_order(schemas: Sequence[RowSchema]) -> list[str]:
    """Return the reasons to leave a row out, in the order in which they apply."""
    reasons = {_MALFORMED_ROW: None}
    for schema in schemas:
        reasons |= dict.fromkeys([*schema.filters, *schema.left_out])
    return list(reasons)


class Rows:
    """The rows of several tables.

    left_out  number of rows left out by reason, without zeros
    facts     aggregates over the rows kept; `rows` is their number
    notes     a sentence with the first bad rows, if any
    """

    def __init__(
        self, schemas: Sequence[RowSchema], source: str, *facts: pl.Expr, repeated: Sequence[str] = ()
    ) -> None:
        """Read the tables of *schemas*, and count their rows by the reason to leave them out.

        *source* names the data in messages. *facts* are aggregates over the rows kept. *repeated* are names of texts
        that become categories; if there are any, all rows are kept in memory, else they are read again for each use.
        Raises DataError if no row is kept, or too many rows are bad.
        """
        self._schemas = schemas
        self._reasons = pl.Enum(_reasons_in_order(schemas))
        marked = [self._mark_rows(schema, file, repeated) for file, schema in enumerate(schemas)]
        self._all = pl.concat(marked, how="diagonal")

        with data_errors(source, [schema.table.file for schema in schemas]):
            if repeated:
                self._all = self._all.collect(engine="streaming").lazy()
            counted = self._all.group_by(_REASON).agg(pl.len().alias("rows"), *facts).collect(engine="streaming")

        # The reason of rows that are kept is None.
        groups = {group[_REASON]: group for group in counted.iter_rows(named=True)}
        row_counts = Counter({reason: group["rows"] for reason, group in groups.items()})
        for schema in schemas:
            for reason, rows_by_value in schema.counted.items():
                row_counts[reason] += sum(rows_by_value.values())
        self.total = row_counts.total()
        self.left_out = {reason: row_counts[reason] for reason in self._reasons.categories if row_counts[reason]}

        bad_rows = self._check_bad_rows(source)
        self.notes = [f"bad rows are left out: {'; '.join(bad_rows)}"] if bad_rows else []
        if None not in groups:
            raise self._nothing_left_error(source)
        self.facts: dict[str, Any] = groups[None]

    @property
    def kept(self) -> pl.LazyFrame:
        """The values, FILE and ROW of the rows kept."""
        return self._all.filter(pl.col(_REASON).is_null()).drop(_REASON)

    def values(self, reason: str) -> list[str | None]:
        """Return the values that explain why rows were left out for *reason*, most frequent first.

        These are the values that schemas name for the reason (`examples`), such as the event of an unknown event. For a
        filter, they are those of its column, and the tables are read again.
        """
        counts = Counter[str | None]()
        left_out = self._rows_left_out(reason)
        for file, schema in enumerate(self._schemas):
            counts.update(schema.counted.get(reason, {}))
            rows = left_out.filter(pl.col(FILE) == file)
            if reason in schema.filters:
                value = schema.table.text(schema.filters[reason].column)
                rows = schema.table.frame.join(rows.select(ROW), on=ROW, how="semi")
            elif reason in schema.examples:
                value = pl.col(schema.examples[reason]).cast(pl.String)
            else:
                continue
            counts.update(dict(rows.group_by(value=value).len().collect(engine="streaming").iter_rows()))
        return sorted(counts, key=lambda value: (-counts[value], value is not None, value or ""))

    def _nothing_left_error(self, source: str) -> DataError:
        """Return the error for an input (*source*) that has no rows, or only rows that were left out.

        The message gives the number of rows for each reason, and values that explain it, such as `10 no user, 5 unknown
        event (most often 'buy', 'view')`.
        """
        if not self.total:
            return DataError(f"{source} has no rows, or a header alone.")

        counts = list[str]()
        for reason, count in self.left_out.items():
            values = self.values(reason)[:_MOST_ROWS_SHOWN]
            examples = ", ".join("no value" if value is None else f"{value!r:.80}" for value in values)
            counts.append(f"{count:,} {reason} (most often {examples})" if examples else f"{count:,} {reason}")
        return DataError(f"Nothing is left of the {format_count(self.total, 'row')} of {source}: {', '.join(counts)}.")

    def _check_bad_rows(self, source: str) -> list[str]:
        """Return sentences on the first bad rows of each reason; DataError if bad rows are too large a share of all.

        A bad row is one that cannot be read. Of the reasons to leave rows out (the keys of `left_out`, with their
        numbers of rows), those of bad rows are malformed rows and the keys of a schema's `bad`. *source* names the
        input in the error.
        """
        bad_reasons = {_MALFORMED_ROW}.union(*(schema.bad for schema in self._schemas))
        sentences = list[str]()
        bad_rows = 0
        for reason, count in self.left_out.items():
            if reason in bad_reasons:
                bad_rows += count
                sentences += self._describe_bad_rows(reason)

        allowed_share = self._schemas[0].table.form.max_bad_rows
        if bad_rows > allowed_share * self.total:
            are = "is" if bad_rows == 1 else "are"
            way_out = ", or raise --max-bad-rows" if allowed_share else ""
            raise DataError(
                f"{bad_rows:,} of the {self.total:,} rows of {source} {are} bad, and at most {allowed_share:.3%} may "
                f"be; mend them{way_out}: {'; '.join(sentences[:_MOST_ROWS_SHOWN])}."
            )
        return sentences

    def _describe_bad_rows(self, reason: str) -> list[str]:
        """Return a sentence on some rows left out for *reason*: file, row number, value and fault.

        The first row of each table comes before further ones, as each table may have its own cause. Each table has its
        own fault: its columns may have other names, and malformed rows have too many fields in CSV, or are not JSON
        objects.
        """
        sentences = list[str]()
        is_advised = False
        first_rows = self._rows_left_out(reason).select(FILE, ROW).group_by(FILE).head(_MOST_ROWS_SHOWN).sort(FILE, ROW)
        place_in_file = pl.int_range(pl.len()).over(FILE)
        shown_rows = first_rows.sort(place_in_file, FILE).head(_MOST_ROWS_SHOWN).collect()

        # FILE is the number of the table in `_schemas`, and ROW the index of the row in it.
        for (file,), rows in shown_rows.group_by(FILE, maintain_order=True):
            schema = self._schemas[file]
            fault = schema.bad.get(reason) or Fault(EXTRA, schema.table.malformed_fault)
            for row in schema.table.describe_rows(rows.get_column(ROW).to_list(), fault.column):
                sentence = f"{row.text} {fault.text}"
                if not is_advised and re.match(fault.advised, row.value):
                    sentence += fault.advice
                    is_advised = True
                sentences.append(sentence)
        return sentences

    def _rows_left_out(self, reason: str) -> pl.LazyFrame:
        """Return the rows left out for *reason*."""
        return self._all.filter(pl.col(_REASON) == pl.lit(reason, self._reasons))

    def _mark_rows(self, schema: RowSchema, file: int, repeated: Sequence[str]) -> pl.LazyFrame:
        """Return the table of *schema* as a frame [ROW, its values, FILE, _REASON], one row for each of the table's.

        *file* is the number of the table. _REASON is the first reason to leave the row out, null if it is kept.
        *repeated* are names of texts that become categories, to save memory.
        """
        # Conditions over the table's columns are computed together with the values, as temporary columns, because the
        # table's columns are gone afterwards.
        is_left_out = {_MALFORMED_ROW: pl.col(EXTRA).is_not_null()}
        for reason, row_filter in schema.filters.items():
            is_left_out[reason] = ~row_filter.condition
        rows = schema.table.frame.select(ROW, **is_left_out, **schema.values)

        # Conditions over the values are a separate step, as polars would compute the values again for each of them.
        conditions = {reason: pl.col(reason) for reason in is_left_out} | schema.left_out
        reasons = list[pl.Expr]()
        for reason, condition in conditions.items():
            reasons.append(pl.when(condition).then(pl.lit(reason, self._reasons)))

        # The conditions are in the order in which they apply, so the first reason that is not null counts.
        marked = rows.with_columns(pl.lit(file, pl.UInt32).alias(FILE), pl.coalesce(reasons).alias(_REASON))

        categories = [pl.col(name).cast(pl.Categorical) for name in repeated if name in schema.values]
        return marked.drop(*is_left_out).with_columns(categories)


def read_text(
    path: DataSource, roles: Sequence[str], named: Mapping[str, str | None] | None = None, *, may_be_empty: bool = False
) -> pl.DataFrame:
    """Return columns of a small file or folder of items as `texts_by_role`."""
    with input_files([path]) as files:
        return texts_by_role(files, named_paths([path]), roles, named, may_be_empty=may_be_empty)


def with_found_header(form: Format, files: Sequence[DataFile], named: Mapping[str, str | None]) -> Format:
    """Return the format of *files* that are read beside lists of the format *form*.

    They have a header if the lists have one, or if the first line of the first file names the columns of all roles in
    *named*: by the name there, or a usual one for None. A column that is named by its number is in no header.
    """
    if form.header or any(name is not None and name.isdecimal() for name in named.values()):
        return form
    first_line = list(open_tables(files[:1], replace(form, header=True))[0].schema)
    columns = [name or usual_column(role, first_line) for role, name in named.items()]
    return replace(form, header=all(column in first_line for column in columns))


def texts_by_role(
    files: Sequence[DataFile],
    source: str,
    roles: Sequence[str],
    named: Mapping[str, str | None] | None = None,
    form: Format | None = None,
    *,
    may_be_empty: bool = False,
) -> pl.DataFrame:
    """Read columns of *files* as texts, and return them under the names of their roles, such as `item` and `title`.

    A role is the meaning of a column. *roles* are required: their columns are those of *named*, by role, and else those
    with usual names. *source* names the files in messages. Rows without an item are left out. Raises DataError for a
    missing role, a bad row, and no rows, unless the files *may_be_empty*.
    """
    tables = open_tables(files, replace(form or Format(), max_bad_rows=0))
    available = list(tables[0].schema)

    # The name for the item may be that of the interactions' files, and these files may call it otherwise.
    named_columns = dict(named or {})
    if named_columns.get("item") not in available:
        named_columns["item"] = None

    columns = choose_columns(named_columns, available, source, guessed=roles, required=roles)
    columns_in_order = {role: columns[role] for role in dict.fromkeys([*roles, *columns])}

    with data_errors(source, files):
        if may_be_empty and all(table.frame.head(1).collect().is_empty() for table in tables):
            return pl.DataFrame(schema=dict.fromkeys(columns_in_order, pl.String()))

        schemas = [_text_schema(table, columns_in_order) for table in tables]
        return Rows(schemas, source).kept.drop(FILE, ROW).collect(engine="streaming")


def _text_schema(table: Table, columns: Mapping[str, str]) -> RowSchema:
    """Declare how to read *columns* as texts, by role; rows without an item are left out, and rounded ids are bad."""
    schema = RowSchema(table, {role: table.text(column) for role, column in columns.items()})
    schema.leave_out_bad_ids({"item": columns["item"]})
    return schema


def most_frequent_titles(rows: pl.LazyFrame, source: str) -> dict[str, str]:
    """Return the most frequent title of each item in *rows* [item, perhaps title], by item; ties by alphabet.

    Items without a title are left out. *source* names the rows in a DataError.
    """
    if "title" not in rows.collect_schema():
        return {}

    with data_errors(source):
        counts = rows.group_by("item", "title").agg(rows=pl.len()).collect(engine="streaming")

    # Categories become texts only after the grouping, when few rows are left. Titles that differ only by spaces around
    # them become equal, so their rows are added up once more.
    item = pl.col("item").cast(pl.String)
    title = pl.col("title").cast(pl.String).str.strip_chars()
    titles = counts.with_columns(item, title).filter(pl.col("title") != "")
    counts = titles.group_by("item", "title").agg(pl.col("rows").sum())

    most_frequent_first = counts.sort("rows", "title", descending=[True, False])
    best = most_frequent_first.unique("item", keep="first", maintain_order=True)
    return dict(best.select("item", "title").iter_rows())
