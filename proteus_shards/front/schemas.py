"""From message types to JSON Schema 2020-12, as OpenAPI 3.1 has it.

The types that requests are decoded into, and those that answers are encoded from, are the only source: a field that is added to one of them is in the document, with its
bounds. What a type cannot say stands in two tables of `openapi_words`: what a field means, by its name, and what more is asked of it
(a name has no control characters).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, get_args, get_type_hints

import msgspec
import msgspec.inspect as shapes

Schema: TypeAlias = dict[str, Any]

_ANY_JSON: Schema = {}


class Schemas:
    """The schemas of a document, by name in `components`. `meanings` say what each field is, `rules` what its type does not say of it, `names` how a type is called.

    A leading underscore is left out of a name.
    """

    def __init__(self, meanings: Mapping[str, str], rules: Mapping[str, Schema], names: Mapping[str, str]) -> None:
        self.components: dict[str, Schema] = {}
        self._meanings = meanings
        self._rules = rules
        self._names = names

    def of(self, kind: Any) -> Schema:
        """Return the schema of a type; a struct's is a reference to a component."""
        return self._schema(shapes.type_info(kind))

    def _schema(self, shape: shapes.Type) -> Schema:
        match shape:
            case shapes.Metadata(type=inner):
                return self._schema(inner)
            case shapes.StructType(cls=cls):
                return self._reference(cls, shape)
            case shapes.RawType() | shapes.AnyType():
                return dict(_ANY_JSON)
            case shapes.NoneType():
                return {"type": "null"}
            case shapes.BoolType():
                return {"type": "boolean"}
            case shapes.StrType():
                return {"type": "string"}
            case shapes.IntType() | shapes.FloatType():
                bounds = {"minimum": shape.ge, "maximum": shape.le, "exclusiveMinimum": shape.gt, "exclusiveMaximum": shape.lt}
                found = {word: bound for word, bound in bounds.items() if bound is not None}
                return {"type": "integer" if isinstance(shape, shapes.IntType) else "number", **found}
            case shapes.LiteralType(values=values):
                return {"enum": list(values)}
            case shapes.ListType(item_type=item) | shapes.VarTupleType(item_type=item):
                return {"type": "array", "items": self._schema(item)}
            case shapes.DictType(value_type=value):
                return {"type": "object", "additionalProperties": self._schema(value)}
            case shapes.UnionType(types=types):
                return _any_of([self._schema(each) for each in types])
        raise AssertionError(f"no schema for {shape}")

    def _reference(self, cls: type, shape: shapes.StructType) -> Schema:
        bare = cls.__name__.lstrip("_")
        whole_name = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
        name = self._names.get(whole_name) or self._names.get(cls.__name__) or self._names.get(bare) or bare
        if name not in self.components:
            self.components[name] = {}  # a type may hold itself
            properties = {field.encode_name: self._field(field) for field in shape.fields}
            hints = get_type_hints(cls)
            required = [
                field.encode_name for field in shape.fields if field.required and msgspec.UnsetType not in get_args(hints[field.name])
            ]
            if shape.tag is not None and shape.tag_field is not None:
                properties = {shape.tag_field: {"const": shape.tag, "description": self._meanings.get(shape.tag_field, "")}, **properties}
                required.insert(0, shape.tag_field)
            whole: Schema = {"type": "object", "properties": properties, "required": required}
            if not required:
                del whole["required"]
            if shape.forbid_unknown_fields:
                whole["additionalProperties"] = False
            if cls.__doc__ and not cls.__doc__.startswith(cls.__name__):
                whole["description"] = cls.__doc__
            self.components[name] = whole
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: shapes.Field) -> Schema:
        schema = self._schema(field.type)
        name = field.encode_name
        rule = self._rules.get(name)
        if rule is not None and (schema.get("type") == rule.get("type") or not schema):
            schema |= rule
        elif rule is not None and "anyOf" in schema:
            schema = {"anyOf": [{**part, **rule} if part.get("type") == rule.get("type") else part for part in schema["anyOf"]]}
        if type(field.default) in {bool, int, float, str}:
            schema["default"] = field.default
        schema["description"] = self._meanings.get(name, "")
        return schema


def references(schema: Any) -> Iterator[str]:
    """Yield the names of all components that something refers to."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for part in schema.values():
            yield from references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from references(part)


def _any_of(parts: list[Schema]) -> Schema:
    if len(parts) == 1:
        return parts[0]
    if any(not part for part in parts):
        return dict(_ANY_JSON)
    return {"anyOf": parts}
