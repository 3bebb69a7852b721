"""Recipes: experiments as TOML files, loaded strictly, found by name, changed by `--set`, and written back."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vidmodels import methods
from vidmodels.methods import METHODS
from vidmodels.optimizers import optimizer_faults
from vidmodels.schedules import schedule_faults
from vidmodels.types import Recipe
from vidprep.errors import UnknownName, UsageError, suggest

__all__ = ["differences", "dump_recipe", "list_recipes", "load_recipe", "read_recipe"]

FOLDER = Path(methods.__file__).parent


def list_recipes(method: str | None = None) -> list[str]:
    """Names of the recipes that come with the package, as METHOD/NAME, sorted.

    Args:
        method: only those of this method.

    Raises:
        UnknownName: no such method.
    """
    if method is not None and method not in METHODS:
        raise UnknownName(f"no method {method!r}; {suggest(method, METHODS)}")
    return sorted(name for name in _files() if method is None or name.startswith(f"{method}/"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name (NAME, or METHOD/NAME where several methods have it) or from a `.toml` file.

    Args:
        name_or_path: "toy", "taps/toy" or "my/recipe.toml".
        overrides: "train.lr=0.02" and the like, applied before anything is checked; values are TOML, and what is no
            TOML value counts as text ("train.optimizer=adamw").

    Raises:
        UnknownName: no recipe of this name.
        UsageError: ambiguous name, no such file, no TOML, or settings that do not fit: all of them in one message.
    """
    path = _find(name_or_path)
    if not path.is_file():
        raise UsageError(f"{path}: no such recipe file; `vidmodels list` names the recipes that are here.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: a recipe is a TOML text in UTF-8 ({error}).") from error
    return read_recipe(text, source_file=str(path), name=path.stem, overrides=overrides)


def read_recipe(text: str, *, source_file: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from TOML text.

    Args:
        text: the TOML.
        source_file: where it comes from, for messages.
        name: the recipe's name unless the text gives one.
        overrides: as for `load_recipe`.

    Raises:
        UsageError: as for `load_recipe`.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source_file}: not valid TOML: {error}.") from error
    for override in overrides:
        _apply(table, override)
    faults: list[str] = []
    table.setdefault("name", name)
    table.setdefault("model", {})
    method = METHODS.get(table["method"]) if isinstance(table.get("method"), str) else None
    if "method" in table and method is None:
        faults.append(f"method: no method {table['method']!r}, {suggest(str(table['method']), METHODS)}")
    recipe = _build(Recipe, table, "", faults, {"model": method.Config if method else None})
    if isinstance(recipe, Recipe) and recipe.train is not None:
        faults += [f"train.{fault}" for fault in (*optimizer_faults(recipe.train), *schedule_faults(recipe.train))]
        recipe = None if faults else recipe
    if recipe is None:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UsageError(f"{source_file}: {count}: {'; '.join(fault.rstrip('.') for fault in faults)}")
    assert isinstance(recipe, Recipe)  # noqa: S101 - tells the type checker what was built
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML text that `read_recipe` reads back equal, defaults written out."""
    return "\n".join(_dump_table(recipe, "")) + "\n"


def differences(there: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Where two tables of settings differ, a sentence each: "train.lr: 0.1 there, 0.2 now"."""
    found = []
    for name in {**there, **now}:
        old, new = there.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{path}{name}.")
        elif old != new:
            found.append(f"{path}{name}: {old!r} there, {new!r} now")
    return found


def _files() -> dict[str, Path]:
    found = {}
    for path in FOLDER.glob("*/recipes/**/*.toml"):
        method = tomllib.loads(path.read_text(encoding="utf-8"))["method"]
        found[f"{method}/{path.stem}"] = path
    return found


def _find(name_or_path: str | Path) -> Path:
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or name.endswith(".toml"):
        return Path(name)
    files = _files()
    fitting = [known for known in files if name in (known, known.partition("/")[2])]
    if len(fitting) > 1:
        raise UsageError(f"recipe {name!r} is ambiguous: {' or '.join(sorted(fitting))}?")
    if not fitting:
        known_names = set(files) if "/" in name else {known.partition("/")[2] for known in files}
        raise UnknownName(f"no recipe {name!r}; {suggest(name, known_names)}")
    return files[fitting[0]]


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise UsageError(f"--set {override!r}: expected KEY=VALUE, such as train.lr=0.02.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {override!r}: {part} is a value, not a table of settings.")
    table[parts[-1]] = value


def _build(
    kind: type, table: object, path: str, faults: list[str], types: Mapping[str, type | None] | None = None
) -> Any:
    """An instance of the dataclass `kind`, or None with the reasons appended to `faults`.

    `types` overrides the declared types of some fields; None there leaves a field unchecked.
    """
    if not isinstance(table, dict):
        faults.append(f"{path.rstrip('.')}: expected a table of settings, got {table!r}")
        return None
    known = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind) | dict(types or {})
    before = len(faults)
    faults += [f"{path}{key}: unknown key, {suggest(key, known)}" for key in table if key not in known]
    faults += [
        f"{path}{name}: missing"
        for name, field in known.items()
        if name not in table and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    values = {
        name: _value(hints[name], table[name], f"{path}{name}", faults)
        for name in known
        if name in table and hints[name] is not None
    }
    if len(faults) > before:
        return None
    try:
        return kind(**values)
    except (ValueError, UsageError) as error:
        faults.append(f"{path.rstrip('.') or 'recipe'}: {error}")
        return None


def _value(hint: Any, value: object, path: str, faults: list[str]) -> Any:
    if get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint):
        inner = [part for part in get_args(hint) if part is not NoneType]
        if len(inner) == 1 and dataclasses.is_dataclass(inner[0]):
            hint = inner[0]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{path}.", faults)
    try:
        # As JSON: there a list is a tuple's way of writing, and yet a text is no number.
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except TypeError:
        faults.append(f"{path}: dates and times are no settings, got {value}")
    except ValidationError as error:
        for fault in error.errors():
            place = "".join(f"[{part}]" for part in fault["loc"] if isinstance(part, int))
            faults.append(f"{path}{place}: {fault['msg']}, got {fault['input']!r}")
    return None


def _dump_table(value: Any, path: str) -> list[str]:
    lines, tables = [], []
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if dataclasses.is_dataclass(entry):
            name = f"{path}{field.name}"
            tables += ["", f"[{name}]", *_dump_table(entry, f"{name}.")]
        elif entry is not None and entry != {}:  # TOML has no null; the default of an optional setting is None
            lines.append(f"{field.name} = {_literal(entry)}")
    return lines + tables


def _literal(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(_literal(entry) for entry in value)}]"
        case dict():
            return f"{{ {', '.join(f'{name} = {_literal(entry)}' for name, entry in value.items())} }}"
    raise TypeError(f"a recipe holds texts, numbers, truth values, lists and tables, not {type(value).__name__}")
