"""Hooks on the modules of a model, in force for the length of a `with` block.

    with Hooks(model) as hooks:
        hooks.before("model.layers.0", lambda x: print(x.shape))
        hooks.after("model.layers.3.mlp", lambda x, out: 2 * out)
        model(input_ids=ids)

A callback that returns None only observes, and then the forward is what it would be without it, bit for bit; anything
else that it returns takes the place of what the module is given or returns. Modules may be named or passed themselves.
Callbacks on one module run in the order in which they were added, once for each time that the module runs. All are
removed when the block ends, also when it raises. Every hook that dualform sets is set here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Self

from torch import Tensor, nn

from dualform.models.compat import forward_hooks

Before = Callable[[Any], Any]
"""From a module's first input to another one, or None."""

After = Callable[[Any, Any], Any]
"""From a module's first input and its output to another output, or None."""


class StopForward(Exception):  # noqa: N818 # no error: the way out of a forward
    """Ends the forward and the `with` block of the hooks that raised it; use `Hooks.stop`."""

    def __init__(self, hooks: "Hooks") -> None:
        super().__init__("the rest of this forward is not needed")
        self.hooks = hooks


class Hooks:
    """Hooks on some modules of one model.

    Args:
        model: The model that names refer to; None where modules are passed themselves.
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
        """Remove all of them, the last one first."""
        while self._removals:
            self._removals.pop()()

    def stop(self) -> NoReturn:
        """Called in a callback: no later module runs, and the program goes on behind the `with` block."""
        raise StopForward(self)

    def before(self, module: str | nn.Module, callback: Before) -> None:
        """Observe or replace a module's first input.

        Args:
            module: The module.
            callback: Receives the first positional argument, or else the one named `hidden_states`, as families
                differ in this; None where there is neither.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            x = callback(first_input(args, kwargs))
            if x is None:
                return None
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        self._add(self._find(module).register_forward_pre_hook(hook, with_kwargs=True))

    def before_call(self, module: str | nn.Module, callback: Callable[[Any, Any], Any]) -> None:
        """Observe or replace all that a module is called with.

        Args:
            module: The module.
            callback: From positional and keyword arguments to others, as a pair, or None.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return callback(args, kwargs)

        self._add(self._find(module).register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: str | nn.Module, callback: After, *, whole: bool = False, always: bool = False) -> None:
        """Observe or replace a module's output.

        Args:
            module: The module.
            callback: Receives the first input, as in `before`, and the output.
            whole: Pass a tuple on as it is. Otherwise the callback receives its first entry, the hidden states, and
                the other entries stay.
            always: Call it also when the module's forward raises, with None for the output.
        """

        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            x = first_input(args, kwargs)
            if whole or out is None or isinstance(out, Tensor):
                return callback(x, out)
            states = callback(x, out[0])
            return None if states is None else (states, *out[1:])

        self._add(self._find(module).register_forward_hook(hook, with_kwargs=True, always_call=always))

    def after_each(self, modules: Sequence[str], callback: Callable[[int, Any, Any], Any]) -> None:
        """`after` on several modules; the callback receives the module's index in front."""
        for index, module in enumerate(modules):
            self.after(module, partial(callback, index))

    def instead(self, module: str | nn.Module, forward: Callable[..., Any]) -> None:
        """Have a function answer in a module's place: its own forward does not run, its hooks do."""
        attributes = vars(self._find(module))
        # accelerate puts a forward of its own there.
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
    """The first positional argument, else the one named `hidden_states`; None without either."""
    return args[0] if args else kwargs.get("hidden_states")


def attach_permanently(module: nn.Module, before: Callable[..., Any], after: Callable[..., Any] | None = None) -> None:
    """Add hooks that stay until `detach`; adding them twice has no further effect.

    Args:
        module: The module.
        before: A function of a module (not a closure, so that a deep copy's hook is known again): called with module,
            positional and keyword arguments before each forward.
        after: Called with module, positional arguments and output after each forward, also one that raises.
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
