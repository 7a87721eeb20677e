"""A study's command, made from its configuration: each field is an option, described by the field itself."""

import inspect
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dualform.cli.guard import guarded
from dualform.cli.running import RunOptions, run_options
from dualform.errors import ConfigError
from dualform.option import PANELS, PROTOCOL, Option, parse_names, parse_number_or_word, parse_numbers
from dualform.seeds import parse_whole_numbers
from dualform.studies.fold_settings import require_used


@dataclass(frozen=True)
class Setting:
    """One field of a configuration as the command line has it."""

    path: tuple[str, ...]
    """Names that lead to the field: `("fold", "texts")`."""
    field: FieldInfo
    default: Any
    option: Option
    names: tuple[str, ...]
    """On the command line; empty for a positional argument."""
    kind: Any
    """Type of what is typed."""
    read: Callable[[Any], Any]
    """Value of the field from what was typed."""

    @property
    def parameter(self) -> str:
        """Name of the command's parameter."""
        return "_".join(self.path)

    @property
    def help(self) -> str:
        """First sentence of the description, and the default."""
        shown = self.option.default or _shown(self.default, self.field.annotation, self.option, self.names)
        if self.path[-1].endswith("limit") and self.option.null and self.default is not None:
            shown += f"; 0 for {self.option.null}"
        text = first_sentence(self.field.description or "")
        return _without_markup(f"{text} ({shown})" if shown else text)


def settings_of(config: type[BaseModel], only: Collection[str] = ()) -> list[Setting]:
    """All settings that the command of a study takes, in the order of `--help`.

    A configuration may name the fields that are no options of its command in `without_options`, and other names of
    options in `option_names`, by the field's path (`fold.method`).

    Args:
        config: The configuration.
        only: Fields to take, where not all are.
    """
    without = set(getattr(config, "without_options", ()))
    renamed: dict[str, tuple[str, ...]] = getattr(config, "option_names", {})
    found = [
        _setting(path, field, default, renamed.get(".".join(path), ()))
        for path, field, default in _fields(config)
        if not {".".join(path), path[0]} & without and (not only or path[0] in only)
    ]
    arguments = sorted((one for one in found if one.option.argument), key=lambda one: one.option.argument)
    options = [one for one in found if not one.option.argument]
    return [*arguments, *sorted(options, key=lambda one: _rank(one.option.panel))]


def _rank(panel: str) -> float:
    """Panels that only one study has stand behind those of the protocol."""
    return PANELS.index(panel) if panel in PANELS else PANELS.index(PROTOCOL) + 0.5


def flags_of(config: type[BaseModel]) -> dict[str, str]:
    """The option of each field, by the field's path: `{"fold.texts": "--fold-texts", ...}`."""
    return {".".join(one.path): one.names[-1] for one in settings_of(config) if one.names}


def refuse_unread(config: type[BaseModel], settings: dict[str, Any]) -> None:
    """Refuse settings of a fold that its method does not look at.

    Args:
        config: The study's configuration, whose options are named.
        settings: What was given of it.

    Raises:
        ConfigError: There are some.
    """
    names = {path.removeprefix("fold."): flag for path, flag in flags_of(config).items()}
    require_used(settings.get("fold", {}), names)


def study_command(
    config: type[BaseModel], folder: str = "", only: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command that takes each field of a configuration as an option.

    The function's parameter `settings` gets what was given of the fields, as a dictionary; groups of settings are
    dictionaries of their own. A parameter `run` gets the options around a run (`--out`, `--overwrite`, `--json`,
    `--track`). Any other parameter is an option of this command alone, declared as typer wants it.

    Args:
        config: The configuration.
        folder: What the folder of a run is called unless `--out` names another, for `--help`.
        only: Fields to take, where not all are.

    Returns:
        The decorator.
    """
    settings = settings_of(config, only)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = dict(inspect.signature(function, eval_str=True).parameters)
        own.pop("settings")
        runs = own.pop("run", None) is not None
        around = {one.name: one for one in (run_options(folder) if runs else ())}
        parameters = [
            *(parameter for setting in settings for parameter in _parameters(setting)),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*around.values(), *own.values())),
        ]

        @guarded
        def command(**given: Any) -> None:
            # `dualform plan` leaves out what says nothing about the cost of a run.
            more: dict[str, Any] = {name: given.get(name, one.default) for name, one in own.items()}
            if runs:
                more["run"] = RunOptions(**{name: given.get(name, one.default) for name, one in around.items()})
            function(settings=read_settings(settings, given), **more)

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__module__ = function.__module__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        # Typer would look through to the wrapped function, which takes anything.
        del command.__wrapped__  # type: ignore[attr-defined]
        return command

    return decorate


def read_settings(settings: list[Setting], given: dict[str, Any]) -> dict[str, Any]:
    """What was given of a configuration's fields.

    Args:
        settings: The settings of a command.
        given: Its parameters' values; None where an option was not given.

    Returns:
        Field -> value, without those that were not given; a group of settings is a dictionary.

    Raises:
        ConfigError: Something cannot be read, or was given twice.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        value = given.get(setting.parameter)
        if (single := setting.option.single) and (one := given.get(_name_of(single))) is not None:
            if value is not None:
                raise ConfigError(f"{single} {one} and {setting.names[-1]} {value} were both given: choose one.")
            _put(found, setting.path, (one,))
        elif value is not None:
            _put(found, setting.path, setting.read(value))
    return found


def _put(found: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for group in path[:-1]:
        found = found.setdefault(group, {})
    found[path[-1]] = value


def _parameters(setting: Setting) -> Iterator[inspect.Parameter]:
    """The command's parameters for a setting: one, or two with an option for a single value."""
    option, required = setting.option, setting.field.is_required()
    if option.argument:
        info = typer.Argument(help=setting.help, show_default=False)
    else:
        info = typer.Option(*setting.names, help=setting.help, rich_help_panel=option.panel, show_default=False)
    if option.single:
        text = f"A single one, in place of {setting.names[-1]}" if option.several else setting.help
        one = typer.Option(option.single, help=text, rich_help_panel=option.panel, show_default=False)
        yield _parameter(_name_of(option.single), Annotated[int | None, one], required=False)
    if setting.names or option.argument:
        kind = setting.kind if required else setting.kind | None
        yield _parameter(setting.parameter, Annotated[kind, info], required=required)


def _parameter(name: str, annotation: Any, required: bool) -> inspect.Parameter:
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name_of(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _fields(config: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """Path, field and default: a class's own fields before those that it shares with other studies."""
    seen: set[str] = set()
    for kind in config.__mro__:
        for name in inspect.get_annotations(kind):
            if name not in config.model_fields or name in seen:
                continue
            seen.add(name)
            field = config.model_fields[name]
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
                default = None if field.is_required() else field.get_default(call_default_factory=True)
                yield (name,), field, default
                continue
            for path, inner, default in _fields(field.annotation):
                group = field.default
                yield (name, *path), inner, getattr(group, path[0]) if isinstance(group, BaseModel) else default


def _setting(path: tuple[str, ...], field: FieldInfo, default: Any, names: tuple[str, ...]) -> Setting:
    option = next((one for one in field.metadata if isinstance(one, Option)), Option())
    kind, read = _kind_and_reader(path[-1], field.annotation)
    if option.repeated or (option.argument and get_origin(field.annotation) is tuple):
        kind, read = list[str], option.read or tuple
    elif option.read is not None:
        kind, read = str, option.read
    if not names:
        name = path[-1].replace("_", "-")
        names = option.names or ((f"--{name}/--no-{name}",) if kind is bool else (f"--{name}",))
    if option.argument or not option.several:
        names = ()
    return Setting(path, field, default, option, names, kind, read)


def _kind_and_reader(name: str, annotation: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Type of what is typed for a field, and how its value is read from that."""
    choices = [one for one in _alternatives(annotation) if one is not types.NoneType]
    if len(choices) == 1 and get_origin(choices[0]) is tuple:
        parts = _alternatives(get_args(choices[0])[0])
        if parts == [int]:
            return str, lambda text: parse_whole_numbers(text, name)
        if parts == [float]:
            return str, lambda text: parse_numbers(name, text)
        if float in parts:
            words = _words(parts)
            return str, lambda text: tuple(parse_number_or_word(name, part.strip(), words) for part in text.split(","))
        return str, parse_names
    if choices in ([bool], [int], [float]):
        return choices[0], lambda value: value
    if float in choices:
        return str, lambda text: parse_number_or_word(name, text, _words(choices))
    # Text, or one of a few words: a wrong one is reported with all other mistakes, by the configuration.
    return str, lambda text: text


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union; a type by itself is its only one."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in _alternatives(part)]
    return [annotation]


def _words(alternatives: list[Any]) -> tuple[str, ...]:
    return tuple(word for one in alternatives if get_origin(one) is Literal for word in get_args(one))


def first_sentence(text: str) -> str:
    """The first sentence of a description, without its full stop and backticks."""
    words = " ".join(text.split())
    end = words.find(". ")
    return (words if end < 0 else words[:end]).removesuffix(".").replace("`", "")


def _without_markup(text: str) -> str:
    """Text in which rich takes no square bracket for a style."""
    return text.replace("[", "\\[")


def _shown(value: Any, annotation: Any, option: Option, names: tuple[str, ...]) -> str:
    """A default as a user would type it; empty where there is none to speak of."""
    if value is None:
        return option.null
    if isinstance(value, bool):
        on, _, off = names[0].partition("/")
        return (on if value else off).lstrip("-") if off and (value or not off.startswith("--no-")) else ""
    if isinstance(value, tuple):
        return _shown_list(value, annotation)
    if isinstance(value, dict):
        return ""
    return _number(value) if isinstance(value, float) else str(value)


def _shown_list(values: tuple[Any, ...], annotation: Any) -> str:
    words = _words(_alternatives(get_args(annotation)[0]))
    if words and values == words:
        return "all"
    whole = all(isinstance(value, int) for value in values)
    if whole and len(values) > 2 and values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]}..{values[-1]}"
    return ",".join(_number(value) if isinstance(value, float) else str(value) for value in values)


def _number(value: float) -> str:
    """`1e-4`, `0.3`, `10`."""
    if value == 0 or abs(value) >= 0.1:
        return f"{value:g}"
    digits, _, power = f"{value:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
