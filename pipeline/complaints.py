"""Turns pydantic's validation errors into lines for people: file, path, value, remedy, nearest name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .config import RunConfig

_UNKNOWN, _MISSING, _NO_TAG, _BAD_TAG = "extra_forbidden", "missing", "union_tag_not_found", "union_tag_invalid"
_ABSENT = object()


@dataclass(frozen=True)
class Layer:
    """One source of settings: a file or the command line."""

    label: str
    tree: dict[str, Any]


@dataclass(frozen=True)
class _Problem:
    path: tuple[str | int, ...]
    branch: str
    """Which member of an untagged union pydantic tried; empty outside of unions."""
    union: tuple[str | int, ...]
    """Where that union stands."""
    kind: str
    text: str
    value: Any


def complaints(error: ValidationError, tree: Mapping[str, Any], layers: Sequence[Layer]) -> list[str]:
    """One line for each mistake in `tree`; `layers` (last wins) tell which file to name."""
    problems = [_problem(details, tree) for details in error.errors(include_url=False)]
    lines = []
    for place, members in groupby(problems, key=lambda p: p.union if p.branch else p.path):
        group = list(members)
        for text in _union_lines(place, group, tree) if group[0].branch else [_line(p) for p in group]:
            lines.append(f"{_origin(place, layers)}: {text}")
    return list(dict.fromkeys(lines))


def models_at(path: Sequence[str | int]) -> tuple[type[BaseModel], ...]:
    """The config models that may stand at a dotted path; several for a union, none for plain values."""
    found: tuple[type[BaseModel], ...] = (RunConfig,)
    for key in path:
        annotations = [m.model_fields[key].annotation for m in found if key in m.model_fields]
        found = tuple(model for a in annotations for model in _models_in(a))
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for a in get_args(annotation) for model in _models_in(a)]


def _problem(details: Any, tree: Any) -> _Problem:
    """Split pydantic's `loc` into the path in the file and the names of union members, which no user wrote."""
    path: list[str | int] = []
    union: tuple[str | int, ...] = ()
    branch, here, last = "", tree, len(details["loc"]) - 1
    for i, key in enumerate(details["loc"]):
        inside = _get(here, key)
        if inside is not _ABSENT:
            here = inside
            path.append(key)
        elif i == last and details["type"] == _MISSING:
            path.append(key)
        elif not _is_tag(path, str(key)):
            branch, union = str(key), tuple(path)
    return _Problem(tuple(path), branch, union, details["type"], _plain(details), details["input"])


def _get(value: Any, key: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(key, _ABSENT)
    if isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
        return value[key]
    return _ABSENT


def _is_tag(path: Sequence[str | int], key: str) -> bool:
    """Is `key` the value of `kind` in a tagged union at `path`?"""
    members = models_at(path)
    return any("kind" in m.model_fields and m.model_fields["kind"].default == key for m in members)


def _plain(details: Any) -> str:
    text = details["msg"].removeprefix("Value error, ")
    if details["type"] == _BAD_TAG:
        context = details["ctx"]
        text = f"unknown kind {context['tag']!r}; choose one of {context['expected_tags']}"
    elif details["type"] == _NO_TAG:
        kinds = [m.model_fields["kind"].default for m in models_at(details["loc"])]
        text = f"needs a 'kind', one of {', '.join(kinds)}"
    text = re.sub(r"valid dictionary or instance of \w+", "mapping", text).replace("valid tuple", "list, as in [a, b]")
    return text[:1].lower() + text[1:]


def _line(problem: _Problem) -> str:
    place = _dotted(problem.path)
    if problem.kind == _UNKNOWN:
        return f"{place}: not a field{_hint(problem.path)}"
    if problem.kind == _MISSING:
        return f"{place}: missing; give it a value"
    if problem.kind in (_BAD_TAG, _NO_TAG):
        return f"{place}: {problem.text}"
    if problem.kind == "value_error" and isinstance(problem.value, dict):
        return f"{place or 'settings'}: {problem.text}"
    return f"{place}: {_short(problem.value)} is wrong: {problem.text}"


def _union_lines(place: tuple[str | int, ...], group: list[_Problem], tree: Any) -> list[str]:
    """An untagged union: the member whose keys fit tells what is wrong, else the choice is shown."""
    misfits = {p.branch for p in group if p.kind in (_UNKNOWN, _MISSING)}
    fitting = [p for p in group if p.branch not in misfits]
    members = models_at(place)
    if members and not fitting:
        choices = " | ".join("{" + ", ".join(m.model_fields) + "}" for m in members)
        unknown = [p for p in group if p.kind == _UNKNOWN]
        hint = next((h for p in unknown if (h := _hint(p.path))), "")
        value = tree
        for key in place:
            value = _get(value, key)
        return [f"{_dotted(place)}: {_short(value)} fits none of {choices}{hint}"]
    if len(fitting) == 1:
        return [_line(fitting[0])]
    texts = " or ".join(dict.fromkeys(p.text for p in fitting))
    return [f"{_dotted(place)}: {_short(fitting[0].value)} is wrong: {texts}"]


def _hint(path: tuple[str | int, ...]) -> str:
    """The nearest field name beside an unknown one."""
    names = [name for model in models_at(path[:-1]) for name in model.model_fields]
    near = difflib.get_close_matches(str(path[-1]), names, n=1)
    return f" (did you mean '{near[0]}'?)" if near else f" (fields: {', '.join(names)})" if names else ""


def _origin(path: tuple[str | int, ...], layers: Sequence[Layer]) -> str:
    """The last layer that says something at the deepest known part of `path`."""
    for depth in range(len(path), 0, -1):
        for layer in reversed(layers):
            here: Any = layer.tree
            for key in path[:depth]:
                here = _get(here, key)
            if here is not _ABSENT:
                return layer.label
    return layers[-2].label if len(layers) > 1 else layers[-1].label


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(key) for key in path)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
