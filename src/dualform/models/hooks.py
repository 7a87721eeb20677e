"""Hooks on the modules of a model, active until a `with` block ends.

    with Hooks(model) as hooks:
        hooks.before("model.layers.0", lambda x: print(x.shape))
        hooks.after("model.layers.3.mlp", lambda x, out: 2 * out)
        model(input_ids=ids)

A callback that returns None only observes, and the forward's results are the same as without it, bit for bit. Any other
return value replaces the module's input or output. Modules are given by name or directly. Callbacks on one module run
in the order in which they were added, each time the module runs. All are removed when the block ends, also if it
raises. dualform sets all its hooks through this module.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Self

from torch import Tensor, nn

from dualform.models.compat import forward_hooks

Before = Callable[[Any], Any]
"""Function of a module's first input; returns a replacement or None."""

After = Callable[[Any, Any], Any]
"""Function of a module's first input and its output; returns a replacement of the output or None."""


class StopForward(Exception):  # noqa: N818 # not an error
    """Ends a forward and the `with` block of the hooks that raised it; use `Hooks.stop`."""

    def __init__(self, hooks: "Hooks") -> None:
        super().__init__("the rest of this forward is not needed")
        self.hooks = hooks


class Hooks:
    """Hooks on modules of one model.

    Args:
        model: The model that module names refer to; None if modules are given directly.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._removals: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool | None:
        self.remove()
        return isinstance(error, StopForward) and error.hooks is self

    def remove(self) -> None:
        """Remove all hooks, the last one first."""
        while self._removals:
            self._removals.pop()()

    def stop(self) -> NoReturn:
        """Stop the forward from a callback: no later module runs, and the program continues after the `with` block."""
        raise StopForward(self)

    def before(self, module: str | nn.Module, callback: Before) -> None:
        """Observe or replace a module's first input.

        Args:
            module: Name of the module, or the module.
            callback: Receives the first positional argument, else the keyword argument `hidden_states` (families
                differ), else None.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            x = callback(first_input(args, kwargs))
            if x is None:
                return None
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        self._add(self._find(module).register_forward_pre_hook(hook, with_kwargs=True))

    def before_call(self, module: str | nn.Module, callback: Callable[[Any, Any], Any]) -> None:
        """Observe or replace all arguments of a module.

        Args:
            module: Name of the module, or the module.
            callback: Receives positional and keyword arguments; returns replacements, as a pair, or None.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return callback(args, kwargs)

        self._add(self._find(module).register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: str | nn.Module, callback: After, *, whole: bool = False, always: bool = False) -> None:
        """Observe or replace a module's output.

        Args:
            module: Name of the module, or the module.
            callback: Receives the first input, as in `before`, and the output.
            whole: Pass a tuple to the callback unchanged. Otherwise the callback receives and replaces only its first
                entry, the hidden states.
            always: Call it also if the module's forward raises, with None as the output.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            x = first_input(args, kwargs)
            if whole or out is None or isinstance(out, Tensor):
                return callback(x, out)
            states = callback(x, out[0])
            return None if states is None else (states, *out[1:])

        self._add(self._find(module).register_forward_hook(hook, with_kwargs=True, always_call=always))

    def after_each(self, modules: Sequence[str], callback: Callable[[int, Any, Any], Any]) -> None:
        """`after` on several modules; the callback's first argument is the module's index."""
        for index, module in enumerate(modules):
            self.after(module, partial(callback, index))

    def replace_forward(self, module: str | nn.Module, forward: Callable[..., Any]) -> None:
        """Run a function instead of a module's own forward; the module's hooks still run."""
        attributes = vars(self._find(module))
        # accelerate sets this attribute, too.
        before = attributes.get("forward")
        attributes["forward"] = forward

        def restore() -> None:
            if before is None:
                attributes.pop("forward", None)
            else:
                attributes["forward"] = before

        self._removals.append(restore)

    def _find(self, module: str | nn.Module) -> nn.Module:
        if not isinstance(module, str):
            return module
        assert self._model is not None
        return self._model.get_submodule(module)

    def _add(self, handle: Any) -> None:
        self._removals.append(handle.remove)


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first positional argument, else the keyword argument `hidden_states`, else None."""
    return args[0] if args else kwargs.get("hidden_states")


def attach_permanently(module: nn.Module, before: Callable[..., Any], after: Callable[..., Any] | None = None) -> None:
    """Add hooks that stay until `detach`; adding the same functions again has no effect.

    Args:
        module: The module.
        before: Called with module, positional and keyword arguments before each forward. A module-level function, not
            a closure, so that it is recognised on a deep copy of the module.
        after: Called with module, positional arguments and output after each forward, also if it raises.
    """
    before_hooks, after_hooks = forward_hooks(module)
    if before not in before_hooks.values():
        module.register_forward_pre_hook(before, with_kwargs=True)
    if after is not None and after not in after_hooks.values():
        module.register_forward_hook(after, always_call=True)


def detach(module: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove hooks that `attach_permanently` added."""
    for hooks in forward_hooks(module):
        for number, hook in list(hooks.items()):
            if hook in functions:
                del hooks[number]
