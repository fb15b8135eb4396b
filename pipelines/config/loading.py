"""Settings from YAML and from `--set`, for any tree of described values, and back to YAML.

A file holds values only (no tags, no expressions, no includes), each key has one place, and an unknown key is
an error that offers the nearest known one: a threshold that was misspelt and silently left at its default
costs a cluster's night. Every message is one line and carries the full dotted path.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError
from .shipped import find_config

_END_OF_SCALAR = "...\n"  # what PyYAML ends a bare value with
_NO_SUCH_VALUE = (ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises for a value that its form or its tag promises and that is none: the date 2020-13-45."""

Settings = TypeVar("Settings", bound=BaseModel)


class Section(BaseModel):
    """What every part of a configuration is: frozen, finite numbers only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def load_settings(
    kind: type[Settings], name_or_path: str | Path | None, overrides: Sequence[str] = ()
) -> Settings:
    """A tree of settings: defaults, then the file, then each `a.b=value` in turn.

    `name_or_path` is a file, or the name of a configuration that ships with the package (`nano`), or None.
    Raises ConfigError, in one line, for anything that is not understood.
    """
    source = "--set"
    values: dict[str, Any] = {}
    if name_or_path is not None:
        path = find_config(name_or_path)
        source = f"{path} with --set" if overrides else str(path)
        values = _read_yaml(path)
    return settings_of(kind, values, overrides, source)


def settings_of(
    kind: type[Settings], values: dict[str, Any], overrides: Sequence[str], source: str
) -> Settings:
    """A tree of settings: defaults, then the values, in which each `a.b=value` is put; `source` names them.

    Raises ConfigError, in one line, for anything that is not understood.
    """
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error, kind)}") from None


def to_yaml(config: BaseModel, notes: Mapping[str, str] | None = None) -> str:
    """The whole configuration as YAML, each value under its description; `load_settings` reads it back.

    `notes`, by dotted name, are put behind their values as comments.
    """
    return "\n".join(_lines(config, "", "", notes or {})) + "\n"


class _ValuesOnly(yaml.SafeLoader):
    """YAML's safe loader, with a key given twice refused rather than the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dict of the node's pairs; ConstructorError where a key repeats."""
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_ValuesOnly)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        if "could not determine a constructor for the tag" in problem:
            problem = f"the tag {problem.rsplit(' ', 1)[-1]} is not allowed, only plain values are"
        raise ConfigError(f"{source}: not valid YAML{where}: {' '.join(problem.split())}") from None
    except _NO_SUCH_VALUE as error:
        problem = f"{type(error).__name__}: {error}; quote what is meant as text"
        raise ConfigError(f"{source}: not a value: {' '.join(problem.split())}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    values = _parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Put one `a.b=value` into the tree; the value is read as YAML, so `null`, `0.9` and `[a, b]` are
    themselves.
    """
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override}: expected key=value, for example --set generator.points_per_side=16"
        )
    at = values
    for depth, key in enumerate(keys[:-1], start=1):
        if at.get(key) is None:
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict):
            raise ConfigError(
                f"--set {override}: {'.'.join(keys[:depth])} is a value, it has no key {keys[depth]!r}"
            )
    at[keys[-1]] = _parse_yaml(text, f"--set {override}")


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first few problems of a validation, each `dotted.path: what was expected`, in one line."""
    problems = []
    for detail in error.errors(include_url=False):
        path = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            problems.append(f"unknown key {path}{_nearest(path, kind)}")
        elif detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
            section = _section_at(kind, path)
            names = ", ".join(section.model_fields) if section else "keys and values"
            problems.append(f"{path}: expected a section with {names}, got {detail['input']!r}")
        else:
            message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
            problems.append(f"{path}: {message}, got {detail['input']!r}" if path else message)
    return " ".join("; ".join(problems[:3]).split())


def _nearest(path: str, kind: type[BaseModel]) -> str:
    """`, did you mean …?` with the known key most like `path`, by its whole path or its last part."""
    known = [name for name in _leaves(kind, "") if not path.startswith(f"{name}.")]
    by_path = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    by_name = difflib.get_close_matches(path.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.7)
    if by_name and not (by_path and by_path[0].rsplit(".", 1)[0] == path.rsplit(".", 1)[0]):
        return f", did you mean {last[by_name[0]]}?"
    return f", did you mean {by_path[0]}?" if by_path else f"; known here: {', '.join(_siblings(path, kind))}"


def _siblings(path: str, kind: type[BaseModel]) -> Iterator[str]:
    section = _section_at(kind, path.rpartition(".")[0]) or kind
    return iter(section.model_fields)


def _sections(kind: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    annotations = {name: field.annotation for name, field in kind.model_fields.items()}
    return {
        name: of for name, of in annotations.items() if isinstance(of, type) and issubclass(of, BaseModel)
    }


def _section_at(kind: type[BaseModel], path: str) -> type[BaseModel] | None:
    at: type[BaseModel] | None = kind
    for key in path.split(".") if path else ():
        at = _sections(at).get(key) if at else None
    return at


def _leaves(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    sections = _sections(kind)
    for name in kind.model_fields:
        yield f"{prefix}{name}"
        if name in sections:
            yield from _leaves(sections[name], f"{prefix}{name}.")


def _lines(config: BaseModel, indent: str, prefix: str, notes: Mapping[str, str]) -> Iterator[str]:
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value, dotted = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ", f"{dotted}.", notes)
            continue
        if field.description:
            yield f"{indent}# {' '.join(field.description.split())}"
        text = yaml.safe_dump(values[name], default_flow_style=True, width=10**6)
        note = f"  # {notes[dotted]}" if dotted in notes else ""
        yield f"{indent}{name}: {text.removesuffix(_END_OF_SCALAR).strip()}{note}"
