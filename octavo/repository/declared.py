"""What a server is to serve: models and their versions, from a TOML file, a folder of models or the command line.

Pure data, checked when it is read: whatever is here can be asked for, though it may turn out that it cannot be loaded.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from octavo.checkpoint import name_of
from octavo.config import SECTIONS, EngineConfig, RepositoryConfig, parse_quantity
from octavo.errors import ConfigError
from octavo.repository.names import LATEST, Route

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FLAGS = {item.name: item for section in SECTIONS for item in fields(section)}
_OWN = ("model", "served_model_name")  # flags that a file says in other words
_PATHS = ("source", "tokenizer", "chat_template")
_MOST_WEIGHT = 10**6
_MOST_VERSION = 10**12

Weight = Annotated[int, Meta(ge=0, le=_MOST_WEIGHT)]
Number = Annotated[int, Meta(ge=1, le=_MOST_VERSION)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredModel:
    """One model. `policy` is a number of latest versions, or the versions themselves."""

    name: str
    versions: Mapping[int, EngineConfig]  # at least one
    policy: int | tuple[int, ...] = 1
    labels: Mapping[str, int] = field(default_factory=dict)
    traffic: Mapping[int, int] = field(default_factory=dict)  # version -> weight; empty: all to the latest
    aliases: tuple[str, ...] = ()
    keep_alive: float | None = None  # seconds without a request until a version is unloaded; None: for ever
    preload: bool = True

    @property
    def chosen(self) -> tuple[int, ...]:
        """The versions that the policy asks for, in ascending order."""
        if isinstance(self.policy, int):
            return tuple(sorted(self.versions)[-self.policy :])
        return tuple(sorted(self.policy))

    def route(self) -> Route:
        return self.route_with(self.traffic, self.labels)

    def route_with(self, traffic: Mapping[int, int], labels: Mapping[str, int]) -> Route:
        """Where requests go with other weights and labels. Raises ConfigError for versions that are not declared."""
        for what, versions in (("traffic", traffic), ("labels", labels.values())):
            for version in versions:
                if version not in self.versions:
                    known = ", ".join(map(str, sorted(self.versions)))
                    raise ConfigError(f"{what} names version {version}; declared are {known}")
        if traffic and not any(traffic.values()):
            raise ConfigError("traffic gives no version a share; one must be more than 0")
        for label in labels:
            if not _LABEL.fullmatch(label) or label == LATEST:
                raise ConfigError(f"{label[:64]!r} cannot be a label: letters, digits and . _ -, not {LATEST!r}")
        latest = self.chosen[-1]
        shares = tuple(sorted((version, weight) for version, weight in traffic.items() if weight))
        # A policy of the latest means the latest alone; where traffic says otherwise, that is not needed.
        policy = () if shares and self.policy == 1 else self.chosen
        return Route(shares or ((latest, 1),), dict(labels), policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    models: Mapping[str, DeclaredModel]
    memory_budget: int | None = None
    max_loaded_models: int | None = None
    only: bool = False  # one model from the command line, whose end is the server's


def of_flags(config: EngineConfig) -> Declared:
    """One model, as `octavo serve MODEL` asks for it."""
    names = config.model.served_model_name or (name_of(config.model),)
    model = DeclaredModel(name=names[0], versions={1: config}, aliases=names[1:])
    return Declared(models={names[0]: model}, only=True)


# ---------------------------------------------------------------------------------------------------- octavo.toml


class _Specific(Struct, forbid_unknown_fields=True):
    specific: Annotated[list[Number], Meta(min_length=1)]


class _Latest(Struct, forbid_unknown_fields=True):
    latest: Annotated[int, Meta(ge=1)]


class _Model(Struct, kw_only=True, forbid_unknown_fields=True):
    """A table `[models.NAME]`, without the engine's flags."""

    source: str | None = None
    versions: dict[Number, dict[str, Any]] = {}
    version_policy: str | dict[str, Any] = "latest"
    labels: dict[str, Number] = {}
    traffic: dict[Number, Weight] = {}
    aliases: list[str] = []
    keep_alive: str | int | float = -1
    preload: bool = True


class _Server(Struct, kw_only=True, forbid_unknown_fields=True):
    """The table `[server]`."""

    memory_budget: str | int | None = None
    max_loaded_models: Annotated[int, Meta(ge=1)] | None = None


_MODEL_FIELDS = (*_Model.__struct_fields__, *(name for name in _FLAGS if name not in _OWN))
_VERSION_FIELDS = ("source", *(name for name in _FLAGS if name not in _OWN))


def read_file(path: Path, flags: RepositoryConfig, defaults: Mapping[str, Any]) -> Declared:
    """A file as in docs/models.md. defaults: flags of engines that do not say otherwise. Raises ConfigError."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return _read(content, path.parent, flags, defaults)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def _read(content: dict[str, Any], folder: Path, flags: RepositoryConfig, defaults: Mapping[str, Any]) -> Declared:
    _check_names(content, ("models", "server"))
    tables = content.get("models", {})
    if not isinstance(tables, dict) or not tables:
        raise ConfigError("it declares no model; each is a table [models.NAME] with a source")
    server = _convert(content.get("server", {}), _Server, "[server]")
    budget = flags.memory_budget if server.memory_budget is None else _bytes(server.memory_budget)
    models = {
        name: _in_context(f"model {name}", _model, name, table, folder, defaults) for name, table in tables.items()
    }
    return checked(
        Declared(
            models=models,
            memory_budget=budget,
            max_loaded_models=server.max_loaded_models or flags.max_loaded_models,
        )
    )


def checked(declared: Declared) -> Declared:
    """Raises ConfigError if a name means two models."""
    seen: dict[str, str] = {}
    for model in declared.models.values():
        for name in (model.name, *model.aliases):
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{name[:64]!r} cannot be a model's name: letters, digits and . _ - /")
            if name in seen:
                raise ConfigError(f"the name {name} is given to {seen[name]} and to {model.name}")
            seen[name] = model.name
    return declared


def _in_context(where: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from None


def _model(name: str, table: Any, folder: Path, defaults: Mapping[str, Any]) -> DeclaredModel:
    if not isinstance(table, dict):
        raise ConfigError("it must be a table [models.NAME]")
    _check_names(table, _MODEL_FIELDS)
    options = {**defaults, **_options(table, folder)}
    model = _convert({key: value for key, value in table.items() if key not in _FLAGS}, _Model, "")
    if bool(model.source) == bool(model.versions):
        raise ConfigError("it needs a source, or versions with a source each, and not both")
    tables = {version: dict(own) for version, own in model.versions.items()} or {1: {"source": model.source}}
    declared = DeclaredModel(
        name=name,
        versions={
            version: _in_context(f"version {version}", _version, name, tables[version], options, folder)
            for version in sorted(tables)
        },
        policy=_policy(model.version_policy, tables),
        labels=model.labels,
        traffic=model.traffic,
        aliases=tuple(model.aliases),
        keep_alive=parse_seconds(model.keep_alive),
        preload=model.preload,
    )
    declared.route()  # raises for versions and labels that cannot be
    return declared


def _version(name: str, table: dict[str, Any], options: Mapping[str, Any], folder: Path) -> EngineConfig:
    _check_names(table, _VERSION_FIELDS)
    source = table.pop("source", None)
    if not isinstance(source, str) or not source:
        raise ConfigError("it needs a source: a folder, a .gguf file or a hub id")
    own = _options(table, folder)
    return EngineConfig.of(**{**options, **own, "model": _beside(folder, source), "served_model_name": (name,)})


def _options(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The engine's flags in a table, read as the command line would."""
    options: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _FLAGS or name in _OWN:
            continue
        options[name] = _beside(folder, value) if name in _PATHS and isinstance(value, str) else value
    return options


def _beside(folder: Path, source: str) -> str:
    """Paths in a file are meant from where the file is; what is no path there is a hub id."""
    path = Path(source).expanduser()
    try:
        return str(path if path.is_absolute() else folder / path) if (folder / path).exists() else source
    except (OSError, ValueError):  # not a name that a file can have
        return source


def _policy(policy: str | dict[str, Any], versions: Mapping[int, Any]) -> int | tuple[int, ...]:
    if policy == "latest":
        return 1
    if policy == "all":
        return tuple(sorted(versions))
    if isinstance(policy, dict) and "specific" in policy:
        wanted = tuple(sorted(set(_convert(policy, _Specific, "version_policy").specific)))
        if missing := [version for version in wanted if version not in versions]:
            raise ConfigError(f"version_policy names version {missing[0]}, which is not declared")
        return wanted
    if isinstance(policy, dict) and "latest" in policy:
        return int(_convert(policy, _Latest, "version_policy").latest)
    raise ConfigError('version_policy must be "latest", "all", {latest = 2} or {specific = [1, 2]}')


def parse_seconds(value: str | float) -> float | None:
    """How long: a number of seconds, or with a unit: "90s", "5m", "1h"; below 0: None, for ever. Raises ConfigError."""
    if isinstance(value, str):
        match = re.fullmatch(r"(-?\d+(?:\.\d+)?)(ms|s|m|h|d)?", value.strip())
        if match is None:
            raise ConfigError(f'keep_alive must be a time such as "5m", 0, or -1 for ever, not {value[:64]!r}')
        value = float(match[1]) * _UNITS[match[2] or "s"]
    return None if value < 0 else float(value)


def _bytes(value: str | int) -> int:
    budget = parse_quantity(value) if isinstance(value, str) else value
    if budget < 1:
        raise ConfigError("memory_budget must be at least 1")
    return budget


def _check_names(table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {close[0]}?" if close else "."
            raise ConfigError(f"there is no {name[:64]!r}{meant} There may be: {', '.join(sorted(known))}")


def _convert(value: Any, shape: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, shape, str_keys=True)
    except msgspec.ValidationError as error:
        text = str(error).replace(" - at `$.", " at `").replace(" - at `$`", "")
        raise ConfigError(f"{where}: {text}" if where else text) from None


# ------------------------------------------------------------------------------------------- a folder of models


def read_folder(folder: Path, flags: RepositoryConfig, defaults: Mapping[str, Any]) -> Declared:
    """Each folder in it is a model, whose folders named by numbers are its versions; without, it is version 1 itself.

    A .gguf file directly in it is a model, too. Raises ConfigError.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        found = {_model_name(path): _versions_in(path) for path in entries if path.is_dir() or _is_gguf(path)}
    except OSError as error:
        raise ConfigError(f"cannot read the folder of models {folder}: {error.strerror}") from None
    models = {
        name: DeclaredModel(
            name=name,
            versions={
                version: EngineConfig.of(**{**defaults, "model": str(path), "served_model_name": (name,)})
                for version, path in versions.items()
            },
            keep_alive=parse_seconds(flags.keep_alive),
            preload=flags.preload,
        )
        for name, versions in found.items()
        if versions
    }
    if not models:
        raise ConfigError(f"{folder} holds no model: each is a folder MODEL/VERSION/ or MODEL/, or a .gguf file")
    declared = Declared(models=models, memory_budget=flags.memory_budget, max_loaded_models=flags.max_loaded_models)
    return checked(declared)


def _model_name(path: Path) -> str:
    return path.stem if _is_gguf(path) else path.name


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and path.is_file()


def _versions_in(path: Path) -> dict[int, Path]:
    if not path.is_dir():
        return {1: path}
    numbered = {int(each.name): each for each in path.iterdir() if re.fullmatch("[1-9][0-9]{0,11}", each.name)}
    versions = {number: numbered[number] for number in sorted(numbered) if _holds_model(numbered[number])}
    return versions or ({1: path} if not numbered and _holds_model(path) else {})


def _holds_model(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "config.json").is_file() or any(folder.glob("*.gguf")))
