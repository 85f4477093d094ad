"""What the models of Azure's management libraries know, held against a document: a field that they lack is wrong."""

import sys
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

Fields = Mapping[str, Any]
"""Field by the name that it has in a document: a model, an Enum, further fields, or None for whatever else."""

EVERY = "*"


def unknown(model: Any, value: object, path: str = "") -> Iterator[str]:  # noqa: ANN401 -- see `Fields`
    """Yield where *value* has a field, or a word of an enumeration, that *model* does not know."""
    if isinstance(value, list):
        for element in value:
            yield from unknown(model, element, f"{path}[]")
    elif isinstance(value, Mapping) and "operator" in value:
        yield from _of_condition(model, value["operator"].get("operands"), path)
    elif isinstance(model, type) and issubclass(model, Enum):
        if value not in {word.value for word in model}:
            yield f"{path}={value}"
    elif isinstance(value, Mapping) and model is not None:
        fields = model if isinstance(model, Mapping) else _fields(_kind(model, value))
        for name, inner in value.items():
            if name not in fields and EVERY not in fields:
                yield f"{path}.{name}"
            else:
                yield from unknown(fields.get(name, fields.get(EVERY)), inner, f"{path}.{name}")


def _of_condition(model: Any, operands: object, path: str) -> Iterator[str]:  # noqa: ANN401 -- see `Fields`
    """Yield the unknown fields of both values of a condition; other operators are skipped."""
    if isinstance(operands, Mapping) and "true_value" in operands:
        yield from unknown(model, [operands["true_value"], operands["false_value"]], path)


def _kind(model: type, value: Mapping[str, object]) -> type:
    """Return which model of a family a document is, by the word that says so."""
    family: Mapping[object, type] = getattr(model, "__mapping__", {})
    return next((family[word] for word in value.values() if isinstance(word, str) and word in family), model)


def _fields(model: type) -> Fields:
    if hasattr(model, "_attribute_map"):
        return _fields_by_map(model)
    package = sys.modules[model.__module__.rpartition(".")[0]]
    hints = typing.get_type_hints(model, localns={"_models": package})
    model({})  # fills in what follows
    fields: dict[str, type] = model._attr_to_rest_field  # type: ignore[attr-defined]  # a class of the library's own
    return {field._rest_name: _inner(hints[name]) for name, field in fields.items()}  # type: ignore[attr-defined]


def _inner(hint: Any) -> Any:  # noqa: ANN401 -- see `Fields`
    """Return what a document is held against, of a type as `Optional[list[Model]]`."""
    origin = typing.get_origin(hint)
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if origin is dict:
        return {EVERY: _inner(parts[1])}
    if parts and origin is not typing.Literal:
        return next(filter(None, map(_inner, parts)), None)
    is_known = isinstance(hint, type) and (issubclass(hint, Enum) or hasattr(hint, "as_dict"))
    return hint if is_known else None


def _fields_by_map(model: type) -> Fields:
    """Read an older model, whose names have dots where a document has a folder, and whose types are words."""
    fields: dict[str, Any] = {}
    for attribute in model._attribute_map.values():  # type: ignore[attr-defined]  # as above
        *folders, name = attribute["key"].replace("\\.", "\0").split(".")
        place = fields
        for folder in folders:
            place = place.setdefault(folder, {})
        kind = getattr(sys.modules[model.__module__], attribute["type"].strip("[]{}"), None)
        place[name.replace("\0", ".")] = {EVERY: kind} if attribute["type"].startswith("{") else kind
    return fields
