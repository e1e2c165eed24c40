"""Configuration files and overrides -> one validated, frozen `RunConfig`. What the fields mean is in the models.

A file is YAML, or TOML by its suffix. `extends: other.yaml` (relative to the file) puts it on top of another one,
`key.path=value` on the command line goes on top of all. Mappings merge key by key, except where the choice
of a tagged union changes: then the new mapping stands alone.

Relative paths in `prepare.input`, `teacher.model` and the tokenizers are looked up beside the file that states them,
then in the working directory.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shards.errors import UserError

from .complaints import Layer, complaints, models_at
from .config import RunConfig
from .sweep import variants_of
from .yaml12 import parse_yaml

COMMAND_LINE = "command line"
_VARIANT_SECTIONS = ("train", "eval")
_PATHS = (("prepare", "input"), ("prepare", "tokenizer"), ("teacher", "model"), ("teacher", "tokenizer"))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated run of a file and its overrides.

    Raises:
        UserError: one line for every mistake, each with file, path, value and remedy.
    """
    layers = [*_read_layers(path, seen=()), Layer(COMMAND_LINE, parse_overrides(overrides))]
    tree: dict[str, Any] = {}
    for layer in layers:
        tree = merge(tree, layer.tree)
    config = _validate(tree, layers)
    if config.sweep is not None:
        config = config.model_copy(update={"variants": config.variants | variants_of(config.sweep)})
    for name, changes in config.variants.items():
        _variant(tree, layers, name, changes)
    return config


def variant_config(config: RunConfig, name: str) -> RunConfig:
    """The run of one variant: the run `<name>/<variant>` over the same dump."""
    tree = merge(config.model_dump(mode="json"), expand(config.variants[name]))
    tree.update(name=f"{config.name}/{name}", dump_name=config.dump_name or config.name, variants={}, sweep=None)
    return RunConfig.model_validate(tree)


def merge(base: dict[str, Any], over: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """`over` on top of `base`, both left as they are."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        here = (*path, key)
        if isinstance(old, dict) and isinstance(value, dict) and not _other_choice(here, old, value):
            result[key] = merge(old, value, here)
        else:
            result[key] = value
    return result


def expand(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        branch: Any = value
        for part in reversed(key.split(".")):
            branch = {part: branch}
        tree = merge(tree, branch)
    return tree


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["train.steps=5"]` -> `{"train": {"steps": 5}}`; values are YAML."""
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UserError(f"{COMMAND_LINE}: {text!r}: not an override; write key.path=value, as in train.steps=50")
        tree = merge(tree, expand({key: parse_yaml(value, f"{COMMAND_LINE}: {key}")}))
    return tree


def _read_layers(path: Path, seen: tuple[Path, ...]) -> list[Layer]:
    """The file and, before it, what it extends."""
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself by way of {', '.join(p.name for p in seen)}; break the circle")
    tree = _read_file(path)
    parent = tree.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent!r} is not a file name; name one file")
    _localise(tree, path.parent)
    below = _read_layers(path.parent / parent, (*seen, path.resolve())) if parent else []
    return [*below, Layer(str(path), tree)]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; see configs/ for examples, or write one: minicodformer init my.yaml --data FILE"
        ) from None
    except (IsADirectoryError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a configuration file ({e}); name a .yaml or .toml file") from None
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise UserError(f"{path}: not TOML ({e})") from None
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: unknown kind of file {path.suffix!r}; configurations are .yaml or .toml")
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {type(tree).__name__}, not settings; start with 'name: my-run'")
    return tree


def _localise(tree: dict[str, Any], folder: Path) -> None:
    """Make paths absolute that exist beside the file; the others count from the working directory."""

    def local(value: Any) -> Any:
        if isinstance(value, list):
            return [local(item) for item in value]
        beside = folder / value if isinstance(value, str) and value else None
        return str(beside.resolve()) if beside is not None and beside.exists() else value

    for section, key in _PATHS:
        if isinstance(tree.get(section), dict) and key in tree[section]:
            tree[section] = {**tree[section], key: local(tree[section][key])}


def _other_choice(path: tuple[str, ...], old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Does `new` choose another member of the union at `path` than `old`?"""
    members = models_at(path)
    if len(members) < 2:
        return False
    if all("kind" in m.model_fields for m in members):
        return "kind" in new and new["kind"] != old.get("kind", new["kind"])
    return True


def _validate(tree: dict[str, Any], layers: Sequence[Layer]) -> RunConfig:
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as e:
        raise UserError("\n".join(complaints(e, tree, layers))) from None


def _variant(tree: dict[str, Any], layers: Sequence[Layer], name: str, changes: dict[str, Any]) -> None:
    """Refuse a variant that does not validate, at once and by name."""
    where = f"{layers[-2].label}: variants.{name}"
    if not name.replace("-", "_").replace(".", "_").isidentifier():
        raise UserError(f"{where}: {name!r} is not a folder name; use letters, digits, '_', '-' and '.'")
    for key in changes:
        if key.split(".")[0] not in _VARIANT_SECTIONS:
            raise UserError(f"{where}: {key}: variants share one dump; only train.* and eval.* may differ")
    layer = Layer(where, expand(changes))
    _validate(merge({**tree, "variants": {}, "sweep": None}, layer.tree), [*layers, layer])
