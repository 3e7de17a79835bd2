"""`GET /docs`: the OpenAPI document as one page of HTML. No script, no style or font from elsewhere: it is read offline, and its policy allows nothing.

It is made once, from the document and nothing else, with the standard library: the tool pages that others vendor are megabytes of script.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import msgspec

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--code:#8882;--get:#0a7;--post:#06c;--put:#a60;--patch:#85c;--delete:#c33;--head:#777}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
details{border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}code,pre{font:.9em ui-monospace,monospace;background:var(--code);border-radius:.2rem;padding:.05rem .25rem}
pre{overflow-x:auto;padding:.6rem}table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;border-top:1px solid var(--line);padding:.3rem .6rem .3rem 0}
.method{display:inline-block;min-width:4.5rem;font-weight:600}.get{color:var(--get)}.post{color:var(--post)}.put{color:var(--put)}
.patch{color:var(--patch)}.delete{color:var(--delete)}.head{color:var(--head)}.wide{overflow-x:auto}
"""
_BOUNDS = (("minimum", "maximum", ""), ("minLength", "maxLength", " characters"), ("minItems", "maxItems", " entries"))


def docs_page(document: dict[str, Any]) -> bytes:
    """Return the page of a document."""
    return "".join(_page(document)).encode()


def _page(document: dict[str, Any]) -> Iterator[str]:
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: HTTP API</title>'
    yield f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body><main>'
    yield f"<h1>{escape(title)}</h1><p>{_text(info['description'])}</p>"
    yield '<p>The same as <a href="openapi.json">OpenAPI 3.1</a>.</p><nav><ul>'
    for tag in document["tags"]:
        yield f'<li><a href="#{_anchor(tag["name"])}">{escape(tag["name"])}</a></li>'
    yield '<li><a href="#schemas">Schemas</a></li></ul></nav>'
    for tag in document["tags"]:
        yield f'<h2 id="{_anchor(tag["name"])}">{escape(tag["name"])}</h2>'
        for path, item in document["paths"].items():
            for method, operation in item.items():
                if method != "servers" and tag["name"] in operation["tags"]:
                    yield from _operation(method, path, item["servers"], operation)
    yield '<h2 id="schemas">Schemas</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield from _schema(name, schema)
    yield "</main></body></html>\n"


def _operation(method: str, path: str, servers: list[dict[str, str]], operation: dict[str, Any]) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary><span class="method {method}">{method.upper()}</span>'
    yield f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
    others = [server["url"] + path for server in servers if server["url"] != "/"]
    if "description" in operation:
        yield f"<p>{_text(operation['description'])}</p>"
    if others:
        yield f"<p>Also as {', '.join(f'<code>{escape(other)}</code>' for other in others)}.</p>"
    if "parameters" in operation:
        yield '<div class="wide"><table><tr><th>Parameter<th>In<th>Value<th>Meaning'
        for each in operation["parameters"]:
            needed = " (required)" if each["required"] else ""
            yield f"<tr><td><code>{escape(each['name'])}</code>{needed}<td>{escape(each['in'])}"
            yield f"<td>{_value(each['schema'])}<td>{_text(each['description'])}"
        yield "</table></div>"
    if "requestBody" in operation:
        body = operation["requestBody"]
        yield f"<p>Body{'' if body['required'] else ' (optional)'}: {_text(body.get('description', ''))}</p>{_contents(body)}"
    yield '<div class="wide"><table><tr><th>Answer<th>Meaning<th>Body'
    for status, answer in operation["responses"].items():
        yield f"<tr><td>{escape(status)}<td>{_text(answer['description'])}<td>{_contents(answer)}"
    yield "</table></div></details>"


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code> {_text(schema.get("description", ""))}</summary>'
    required = schema.get("required", ())
    yield '<div class="wide"><table><tr><th>Field<th>Value<th>Meaning'
    for field, value in schema.get("properties", {}).items():
        needed = " (required)" if field in required else ""
        yield f"<tr><td><code>{escape(field)}</code>{needed}<td>{_value(value)}<td>{_text(value.get('description', ''))}"
    yield "</table></div></details>"


def _contents(holder: dict[str, Any]) -> str:
    parts = [f"<code>{escape(media)}</code>: {_value(content['schema'])}" for media, content in holder.get("content", {}).items()]
    return "<br>".join(parts) or "none"


def _value(schema: dict[str, Any]) -> str:
    """Return what a value may be, in words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(_value(part) for part in schema[word])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"<code>{escape(_json(each))}</code>" for each in schema.get("enum", [schema.get("const")]))
    bounds = [f"{_range(schema.get(low), schema.get(high))}{what}" for low, high, what in _BOUNDS if low in schema or high in schema]
    bounds += [f"more than {_json(schema['exclusiveMinimum'])}"] if "exclusiveMinimum" in schema else []
    bounds += [f"default {escape(_json(schema['default']))}"] if "default" in schema else []
    kind = escape(str(schema.get("type", "any JSON")))
    if kind == "array":
        kind = f"array of {_value(schema['items'])}"
    elif schema.get("format"):
        kind = escape(schema["format"])
    return ", ".join([kind, *bounds])


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return f"at least {_json(low)}"
    return f"at most {_json(high)}" if low is None else f"{_json(low)} to {_json(high)}"


def _text(text: str) -> str:
    """Return words with their `code` marked."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _anchor(name: str) -> str:
    return escape(name.lower().replace(" ", "-"))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
