"""Query plans: how a query over several partitions is cut into one for each, which SDKs then merge.

The shape is what the SDKs read (azure-cosmos: `_execution_context/query_execution_info.py`).
"""

from typing import Any

from bench.cosmos_emulator.sql.nodes import Counted, Statement

FILTER = "{documentdb-formattableorderbyquery-filter}"
"""SDKs put a condition here when they go on after a page, `true` before."""


def plan(statement: Statement) -> dict[str, Any]:
    """Return the plan of a query."""
    window = statement.limit is not None
    return {
        "partitionedQueryExecutionInfoVersion": 2,
        "queryInfo": {
            "distinctType": "None",
            "top": statement.top,
            "offset": statement.offset if window else None,
            "limit": statement.limit,
            "orderBy": ["Descending" if by.descending else "Ascending" for by in statement.order],
            "orderByExpressions": [by.text for by in statement.order],
            "groupByExpressions": [],
            "groupByAliases": [],
            "aggregates": ["Count"] if isinstance(statement.select, Counted) else [],
            "groupByAliasToAggregateType": {},
            "rewrittenQuery": _rewritten(statement),
            "hasSelectValue": statement.is_value and not statement.is_whole,
            "dCountInfo": None,
            "hasNonStreamingOrderBy": False,
        },
        "queryRanges": [{"min": "", "max": "FF", "isMinInclusive": True, "isMaxInclusive": False}],
        "hybridSearchQueryInfo": None,
    }


def _rewritten(statement: Statement) -> str:
    source = f"FROM {statement.alias} WHERE ({statement.where_text})"
    if statement.counts:
        return f'SELECT VALUE [{{"item": COUNT(1)}}] {source}'
    top = "" if statement.top is None else f"TOP {statement.top} "
    window = "" if statement.limit is None else f" OFFSET 0 LIMIT {statement.offset + statement.limit}"
    if not statement.order:
        return f"SELECT {top}VALUE {statement.select_text} {source}{window}"
    items = ", ".join(f'{{"item": {by.text}}}' for by in statement.order)
    chosen = f"{statement.alias}._rid, [{items}] AS orderByItems, {statement.select_text} AS payload"
    sorting = ", ".join(f"{by.text} {'DESC' if by.descending else 'ASC'}" for by in statement.order)
    return f"SELECT {top}{chosen} {source} AND ({FILTER}) ORDER BY {sorting}{window}"
