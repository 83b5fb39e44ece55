"""The parts of the documentation that are made from the code: run by `make docs`, and checked by a test.

    compatibility.md   each field of OpenAI's requests: supported, accepted, ignored or refused
    api.md             every path with its fields, from the OpenAPI document
    flags.md           every flag of `octavo serve`, from the configuration classes

Which fields the services have comes from their own client packages, so a new release of one shows what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from octavo.api.app import OPERATIONS
from octavo.api.openapi import document
from octavo.api.operation import Operation
from octavo.config import SECTIONS, ServerConfig

HERE = Path(__file__).parent
MADE = "<!-- made by docs/make_reference.py; `make docs` writes it anew -->"
SUPPORTED, ACCEPTED, IGNORED, REFUSED = "supported", "accepted", "ignored", "refused"


@dataclass(frozen=True)
class Service:
    """An endpoint as the service that it was written for documents it."""

    title: str
    path: str
    package: str
    fields: tuple[str, ...]


def services() -> list[Service]:
    """The requests of the official clients that octavo answers too."""
    from anthropic.types import message_create_params
    from ollama import _types as ollama
    from openai.types import completion_create_params, embedding_create_params
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import response_create_params

    found = [
        ("Chat completions", "/v1/chat/completions", "openai", chat_create_params.CompletionCreateParamsBase),
        ("Completions", "/v1/completions", "openai", completion_create_params.CompletionCreateParamsBase),
        ("Embeddings", "/v1/embeddings", "openai", embedding_create_params.EmbeddingCreateParams),
        ("Responses", "/v1/responses", "openai", response_create_params.ResponseCreateParamsBase),
        ("Messages", "/v1/messages", "anthropic", message_create_params.MessageCreateParamsBase),
    ]
    models = [
        ("Ollama's chat", "/api/chat", ollama.ChatRequest),
        ("Ollama's generate", "/api/generate", ollama.GenerateRequest),
        ("Ollama's embed", "/api/embed", ollama.EmbedRequest),
    ]
    services = [
        Service(title, path, package, (*shape.__annotations__, *(("stream",) if path != "/v1/embeddings" else ())))
        for title, path, package, shape in found
    ]
    return services + [Service(title, path, "ollama", tuple(shape.model_fields)) for title, path, shape in models]


@dataclass(frozen=True)
class Fate:
    """What becomes of a field that a caller sends."""

    kind: str
    why: str = ""


def fate(operation: Operation, name: str) -> Fate:
    if name in operation.unsupported:
        return Fate(REFUSED, operation.unsupported[name])
    if name in operation.without_effect:
        return Fate(ACCEPTED, operation.without_effect[name])
    return Fate(SUPPORTED) if name in encoded_fields(operation.takes) else Fate(IGNORED)


def encoded_fields(shape: Any) -> tuple[str, ...]:
    is_struct = isinstance(shape, type) and issubclass(shape, msgspec.Struct)
    return tuple(shape.__struct_encode_fields__) if is_struct else ()


def posts() -> dict[str, Operation]:
    return {each.path: each for each in OPERATIONS if each.method == "POST"}


def compatibility() -> Iterator[str]:
    yield "# Compatibility"
    yield MADE
    yield (
        "What becomes of each field that the official clients can send. *Refused* fields are answered with 400 and the "
        "reason, unless they are null, false or empty; *accepted* ones are checked and change nothing; *ignored* ones "
        "change nothing and are named in the server's log."
    )
    known = posts()
    for service in services():
        operation = known.get(service.path)
        if operation is None:
            continue
        yield f"## {service.title}: `POST {service.path}`"
        rows = [(f"`{name}`", *_fate_cells(fate(operation, name))) for name in sorted(service.fields)]
        yield table((f"field of `{service.package}`", "here", ""), rows)
        if extra := sorted(set(encoded_fields(operation.takes)) - set(service.fields)):
            whose = ", under the names that vLLM's users know" if service.package == "openai" else ""
            yield f"Besides{whose}: " + ", ".join(f"`{name}`" for name in extra) + "."


def _fate_cells(what: Fate) -> tuple[str, str]:
    return what.kind, what.why


def api() -> Iterator[str]:
    described = document(OPERATIONS)
    yield "# API"
    yield MADE
    yield "Every path of the server. The same as a document for programs: `GET /openapi.json`."
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"## `{method.upper()} {path}`"
            yield operation["summary"] + ("" if operation["summary"].endswith(".") else ".")
            body = operation.get("requestBody")
            if body is not None:
                content = next(iter(body["content"].values()))
                rows = list(_body_rows(content["schema"], described["components"]["schemas"]))
                if rows:
                    yield table(("field", "type", "required"), rows)


def _body_rows(schema: dict[str, Any], components: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    resolved = _resolve(schema, components)
    required = resolved.get("required", ())
    for name, field in resolved.get("properties", {}).items():
        yield f"`{name}`", _kind(field), "yes" if name in required else ""


def _resolve(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return components[reference.rpartition("/")[2]] if reference else schema


_BOUNDS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} entries",
}


def _kind(schema: dict[str, Any]) -> str:
    """A type in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(part) for part in schema["anyOf"] if part.get("type") != "null"))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2].rpartition(".")[2]
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    bounds = [text.format(f"{schema[key]:g}") for key, text in _BOUNDS.items() if key in schema and schema[key] != 0]
    return f"{kind}, {', '.join(bounds)}" if bounds else str(kind)


_TITLES = {
    "ModelConfig": "Model",
    "CacheConfig": "KV cache",
    "SchedulerConfig": "Scheduling",
    "ExecutionConfig": "Execution",
    "ServerConfig": "Server",
}


def flags() -> Iterator[str]:
    yield "# Flags"
    yield MADE
    yield "Flags of `octavo serve`. All but the server's are keyword arguments of `LLM` and `EngineConfig.of` too."
    for section in (*SECTIONS, ServerConfig):
        yield f"## {_TITLES.get(section.__name__, section.__name__)}"
        hints = get_type_hints(section)
        rows = [
            (f"`--{item.name.replace('_', '-')}`", item.metadata["help"] + _choices(hints[item.name]), _default(item))
            for item in fields(section)
        ]
        yield table(("flag", "", "default"), rows)


def _default(item: Field[Any]) -> str:
    if item.default in (None, (), MISSING):
        return ""
    return ("off", "on")[item.default] if isinstance(item.default, bool) else f"`{item.default}`"


def _choices(hint: Any) -> str:
    values = get_args(hint) if str(get_origin(hint)).endswith("Literal") else ()
    return f" ({', '.join(map(str, values))})" if values else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


PAGES = {"compatibility.md": compatibility, "api.md": api, "flags.md": flags}


def page(name: str) -> str:
    return "\n\n".join(PAGES[name]()) + "\n"


def main() -> int:
    for name in PAGES:
        (HERE / name).write_text(page(name))
        sys.stdout.write(f"{HERE / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
