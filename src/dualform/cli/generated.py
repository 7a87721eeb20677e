"""Generates a study's command from its configuration: each field becomes an option, with the field's description."""

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
from dualform.configuration import InvalidSettingsError
from dualform.errors import ConfigError
from dualform.option import PANELS, PROTOCOL, Option, parse_names, parse_number_or_word, parse_numbers
from dualform.seeds import parse_whole_numbers
from dualform.studies.fold_settings import require_used


@dataclass(frozen=True)
class Setting:
    """A field of a configuration as an option or argument of a command."""

    path: tuple[str, ...]
    """Names that lead to the field, such as `("fold", "texts")`."""
    field: FieldInfo
    default: Any
    option: Option
    names: tuple[str, ...]
    """Names of the option on the command line, such as `("-k", "--k")`; messages use the last. Empty for a positional
    argument, and for a setting that is given by `option.single` only."""
    kind: Any
    """Type of the option's value, for typer."""
    read: Callable[[Any], Any]
    """Converts the option's value to the field's."""

    @property
    def parameter(self) -> str:
        """Name of the command's parameter."""
        return "_".join(self.path)

    @property
    def help(self) -> str:
        """First sentence of the description, with the default."""
        default = self.option.default or _format_default(self.default, self.field.annotation, self.option, self.names)
        if self.path[-1].endswith("limit") and self.option.null and self.default is not None:
            default += f"; 0 for {self.option.null}"
        text = first_sentence(self.field.description or "")
        return _escape_markup(f"{text} ({default})" if default else text)


def settings_of(config: type[BaseModel], only: Collection[str] = ()) -> list[Setting]:
    """All settings of a study's command, in the order of `--help`.

    A configuration class can list fields without options in `without_options`, and set the names of options in
    `option_names`; both use the paths of fields, such as `fold.method`.

    Args:
        config: The configuration class.
        only: Fields to include; all of them by default.
    """
    without = set(getattr(config, "without_options", ()))
    renamed: dict[str, tuple[str, ...]] = getattr(config, "option_names", {})
    settings = [
        _setting(path, field, default, renamed.get(".".join(path), ()))
        for path, field, default in _fields(config)
        if not {".".join(path), path[0]} & without and (not only or path[0] in only)
    ]
    arguments = sorted((each for each in settings if each.option.argument), key=lambda each: each.option.argument)
    options = [each for each in settings if not each.option.argument]
    return [*arguments, *sorted(options, key=lambda each: _rank(each.option.panel))]


def _rank(panel: str) -> float:
    """Sort key of panels; those of a single study follow the panel of the protocol."""
    return PANELS.index(panel) if panel in PANELS else PANELS.index(PROTOCOL) + 0.5


def flags_of(config: type[BaseModel]) -> dict[str, str]:
    """The option of each field, by the field's path: `{"fold.texts": "--fold-texts", ...}`."""
    return {".".join(setting.path): setting.names[-1] for setting in settings_of(config) if setting.names}


def refuse_unread(config: type[BaseModel], settings: dict[str, Any]) -> None:
    """Check that the given settings of a fold are used by its method.

    Args:
        config: The study's configuration class; messages name the options of its fields.
        settings: The given settings.

    Raises:
        ConfigError: The method does not use some of them.
    """
    names = {path.removeprefix("fold."): flag for path, flag in flags_of(config).items()}
    require_used(settings.get("fold", {}), names)


def study_command(
    config: type[BaseModel], folder: str = "", only: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function into a command that has an option for each field of a configuration.

    The function's parameter `settings` receives the given settings as a dictionary, in which groups of settings are
    nested dictionaries. A parameter `run` receives the general options of a run (`--out`, `--overwrite`, `--json`,
    `--track`). All other parameters become further options and are declared as for typer.

    Args:
        config: The configuration class.
        folder: Default name of the run's folder, for `--help`.
        only: Fields to include; all of them by default.

    Returns:
        The decorator.
    """
    settings = settings_of(config, only)

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = dict(inspect.signature(function, eval_str=True).parameters)
        own.pop("settings")
        has_run = own.pop("run", None) is not None
        general = {parameter.name: parameter for parameter in (run_options(folder) if has_run else ())}
        parameters = [
            *(parameter for setting in settings for parameter in _parameters(setting)),
            *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*general.values(), *own.values())),
        ]

        @guarded
        def command(**given: Any) -> None:
            # `dualform plan` omits options that do not affect the cost of a run.
            further: dict[str, Any] = {name: given.get(name, each.default) for name, each in own.items()}
            if has_run:
                further["run"] = RunOptions(**{name: given.get(name, each.default) for name, each in general.items()})
            try:
                function(settings=read_settings(settings, given), **further)
            except InvalidSettingsError as error:
                raise error.renamed(typed_names(settings, given)) from error

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__module__ = function.__module__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        # Otherwise typer would use the signature of the wrapped function.
        del command.__wrapped__  # type: ignore[attr-defined]
        return command

    return decorate


def read_settings(settings: list[Setting], given: dict[str, Any]) -> dict[str, Any]:
    """The given values of a configuration's fields.

    Args:
        settings: The settings of a command.
        given: Values of its parameters; None for an option that was not given.

    Returns:
        Field -> value for the fields that were given; a group of settings is a nested dictionary.

    Raises:
        ConfigError: A value is invalid, or was given twice.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        value = given.get(setting.parameter)
        if (flag := setting.option.single) and (number := given.get(_name_of(flag))) is not None:
            if value is not None:
                raise ConfigError(f"{flag} {number} and {setting.names[-1]} {value} were both given: choose one.")
            _store(values, setting.path, (number,))
        elif value is not None:
            _store(values, setting.path, setting.read(value))
    return values


def typed_names(settings: list[Setting], given: dict[str, Any]) -> dict[str, str]:
    """The options that were given, by the path of their field: `{"fold.texts": "--fold-texts"}`.

    Args:
        settings: The settings of a command.
        given: Values of its parameters; None for an option that was not given.
    """
    names = {}
    for setting in settings:
        path, value = ".".join(setting.path), given.get(setting.parameter)
        if setting.option.single and given.get(_name_of(setting.option.single)) is not None:
            names[path] = setting.option.single
        elif setting.names and value is not None:
            on, _, off = setting.names[-1].partition("/")
            names[path] = off if value is False and off else on
    return names


def _store(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for group in path[:-1]:
        values = values.setdefault(group, {})
    values[path[-1]] = value


def _parameters(setting: Setting) -> Iterator[inspect.Parameter]:
    """The command's parameters for a setting: one, or two with an option for a single value."""
    option, required = setting.option, setting.field.is_required()
    if option.argument:
        info = typer.Argument(help=setting.help, show_default=False)
    else:
        info = typer.Option(*setting.names, help=setting.help, rich_help_panel=option.panel, show_default=False)
    if option.single:
        text = f"A single value, in place of {setting.names[-1]}" if option.several else setting.help
        single = typer.Option(option.single, help=text, rich_help_panel=option.panel, show_default=False)
        yield _parameter(_name_of(option.single), Annotated[int | None, single], required=False)
    if setting.names or option.argument:
        kind = setting.kind if required else setting.kind | None
        yield _parameter(setting.parameter, Annotated[kind, info], required=required)


def _parameter(name: str, annotation: Any, required: bool) -> inspect.Parameter:
    default = inspect.Parameter.empty if required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _name_of(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _fields(config: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """Path, field and default of each field; a class's own fields come before inherited ones."""
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
    option = next((entry for entry in field.metadata if isinstance(entry, Option)), Option())
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
    """Type of a field's option, and the function that converts its value to the field's."""
    choices = [kind for kind in _alternatives(annotation) if kind is not types.NoneType]
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
    # Text or one of several words; the configuration checks it together with all other settings.
    return str, lambda text: text


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _words(alternatives: list[Any]) -> tuple[str, ...]:
    return tuple(word for kind in alternatives if get_origin(kind) is Literal for word in get_args(kind))


def first_sentence(text: str) -> str:
    """The first sentence of a description, without its full stop and backticks."""
    words = " ".join(text.split())
    end = words.find(". ")
    return (words if end < 0 else words[:end]).removesuffix(".").replace("`", "")


def _escape_markup(text: str) -> str:
    """Escape square brackets, which rich would read as styles."""
    return text.replace("[", "\\[")


def _format_default(value: Any, annotation: Any, option: Option, names: tuple[str, ...]) -> str:
    """A default as a user would type it; empty if there is none."""
    if value is None:
        return option.null
    if isinstance(value, bool):
        on, _, off = names[0].partition("/")
        return (on if value else off).lstrip("-") if off and (value or not off.startswith("--no-")) else ""
    if isinstance(value, tuple):
        return _format_list(value, annotation)
    if isinstance(value, dict):
        return ""
    return _number(value) if isinstance(value, float) else str(value)


def _format_list(values: tuple[Any, ...], annotation: Any) -> str:
    words = _words(_alternatives(get_args(annotation)[0]))
    if words and values == words:
        return "all"
    integers = all(isinstance(value, int) for value in values)
    if integers and len(values) > 2 and values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]}..{values[-1]}"
    return ",".join(_number(value) if isinstance(value, float) else str(value) for value in values)


def _number(value: float) -> str:
    """`1e-4`, `0.3`, `10`."""
    if value == 0 or abs(value) >= 0.1:
        return f"{value:g}"
    digits, _, power = f"{value:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"
