"""YAML without surprises: `3e-4` is a number, `no` and `12:30` are words, `017` is seventeen, a key twice is an error.

PyYAML reads YAML 1.1; this gives it the core schema of YAML 1.2. Nothing here knows about our settings.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from shards.errors import UserError


class _Loader(yaml.SafeLoader):
    """A safe loader that starts with no implicit types at all (the rules follow below)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text; mistakes name `place` and the line."""
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UserError(f"{place}{line}: not YAML: {e.problem}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{place}: not YAML: {e}") from None
