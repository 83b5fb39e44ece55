"""Random JSON schemas of moderate size: what people ask for, in combinations that nobody has thought of.

Everything is bounded, so that an output of random tokens comes to an end.
"""

from __future__ import annotations

from random import Random
from typing import Any

Schema = dict[str, Any]
DEPTH = 4
WORDS = (
    "name",
    "age",
    "city",
    "tags",
    "items",
    "price",
    "e-mail",
    "größe",
    "when",
    'say "hi"',
    "ok",
    "x",
    "owner",
    "id",
)
PATTERNS = (
    "^[A-Z][a-z]{1,8}$",
    "^[0-9]{3}-[0-9]{4}$",
    "^(yes|no|maybe)$",
    "^#[0-9a-f]{6}$",
    "^[^\\s@]{1,9}@[a-z]{2,9}\\.com$",
)
FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "duration")


def random_schema(seed: int) -> Schema:
    """An object, more often than not; with definitions that its parts may refer to."""
    random = Random(seed)
    count = random.choice((0, 0, 1, 2))
    definitions = {f"d{place}": _schema(random, 2, []) for place in range(count)}
    schema = (_object if random.random() < 0.8 else _schema)(random, DEPTH, list(definitions))
    return {**schema, "$defs": definitions} if definitions else schema


def _schema(random: Random, depth: int, definitions: list[str]) -> Schema:
    leaves = [_string, _string, _integer, _number, _enum, _const, _simple]
    branches = [_object, _object, _array, _any_of] if depth > 0 else []
    if definitions and random.random() < 0.2:
        return {"$ref": f"#/$defs/{random.choice(definitions)}"}
    return random.choice(leaves + branches)(random, depth, definitions)


def _object(random: Random, depth: int, definitions: list[str]) -> Schema:
    names = random.sample(WORDS, random.randint(1, 4))
    schema: Schema = {"type": "object", "properties": {name: _schema(random, depth - 1, definitions) for name in names}}
    if random.random() < 0.8:
        schema["required"] = random.sample(names, random.randint(0, len(names)))
    extra = random.random()
    if extra < 0.85:
        schema["additionalProperties"] = False
    elif extra < 0.95:
        schema["additionalProperties"] = _schema(random, 0, definitions)
    return schema


def _array(random: Random, depth: int, definitions: list[str]) -> Schema:
    low = random.randint(0, 2)
    schema: Schema = {"type": "array", "minItems": low, "maxItems": low + random.randint(0, 3)}
    if random.random() < 0.25:
        schema["prefixItems"] = [_schema(random, depth - 1, definitions) for _ in range(random.randint(1, 2))]
    return {**schema, "items": _schema(random, depth - 1, definitions)}


def _any_of(random: Random, depth: int, definitions: list[str]) -> Schema:
    return {"anyOf": [_schema(random, depth - 1, definitions) for _ in range(random.randint(2, 3))]}


def _string(random: Random, _depth: int, _definitions: list[str]) -> Schema:
    kind = random.randrange(3)
    if kind == 0:
        return {"type": "string", "pattern": random.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": random.choice(FORMATS)}
    low = random.randint(0, 5)
    return {"type": "string", "minLength": low, "maxLength": low + random.randint(0, 20)}


def _integer(random: Random, _depth: int, _definitions: list[str]) -> Schema:
    low = random.randint(-1000, 1000)
    high = low + random.randint(10, 5000)
    schema = {"type": "integer", random.choice(("minimum", "exclusiveMinimum")): low, "maximum": high}
    return {**schema, "multipleOf": random.choice((2, 3, 5))} if random.random() < 0.2 else schema


def _number(random: Random, _depth: int, _definitions: list[str]) -> Schema:
    low = round(random.uniform(-100, 100), 2)
    high = round(low + random.uniform(0.5, 1000), 2)
    return {"type": "number", "minimum": low, random.choice(("maximum", "exclusiveMaximum")): high}


def _enum(random: Random, _depth: int, _definitions: list[str]) -> Schema:
    values = ["red", "green", 'a "quoted" word', "", "ß\n", 1, -2.5, True, None, [1, "a"], {"k": [False]}]
    return {"enum": random.sample(values, random.randint(1, 5))}


def _const(random: Random, _depth: int, _definitions: list[str]) -> Schema:
    return {"const": random.choice(["fixed", 7, False, {"a": 1, "b": "x"}, [], None, "<|im_end|>"])}


def _simple(random: Random, _depth: int, _definitions: list[str]) -> Schema:
    return {"type": random.choice(["boolean", "null", ["boolean", "null"]])}
