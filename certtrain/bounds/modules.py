"""Checks that a module computes what its class says, since bounds are for the class's forward pass only.

torch.fx takes a layer of torch as one step, and does not see hooks, wrappers or
replaced methods. So all of these are refused here.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as calling
from torch.nn.parameter import is_lazy

from certtrain.bounds.activations import ACTIVATIONS
from certtrain.bounds.graph import Add, Normalize
from certtrain.bounds.shape_layers import REARRANGING
from certtrain.errors import UnsupportedLayer

# Modules that wrap a network, and the attribute that holds it.
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
PLAIN = {bool, int, float, str}
REGISTERS = ("_parameters", "_buffers", "_modules")  # where a module keeps them
CALLS = ("__call__", "_wrapped_call_impl", "_call_impl")  # these run when a module is called, before its forward


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one step of a forward pass, which is not traced further."""
    return isinstance(module, (Normalize, Add, *REARRANGING, *ACTIVATIONS)) or (
        type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    )


def check_modules(model: nn.Module) -> None:
    """Raise UnsupportedLayer for the first module that may compute something other than its class says."""
    _check_global_hooks()
    for name, module in model.named_modules():
        title = f"layer {name!r}" if name else type(module).__name__
        for check in (_check_wrapper, _check_tensors, _check_hooks, _check_calls, _check_methods):
            check(title, module)
        if is_layer(module):
            _check_layer(title, module)


class ModuleState:
    """All that a forward pass can change: the attributes of a network's modules, and those of its layers."""

    def __init__(self, model: nn.Module) -> None:
        self.values: dict[str, object] = {}
        self.layers: dict[str, object] = {}
        self.kept: list[object] = []  # else a new object could get the address of one of these
        for path, module in model.named_modules():
            held = {**vars(module), **module._parameters, **module._buffers, **module._modules}
            held = {name: value for name, value in held.items() if name not in REGISTERS}
            named = {f"{path}.{name}".lstrip("."): _comparable(value) for name, value in held.items()}
            self.kept.append(held)
            self.values |= named
            self.layers |= named if is_layer(module) else {}

    def changed_since(self, before: "ModuleState") -> str:
        """The first name whose value differs."""
        names = self.values.keys() | before.values.keys()
        return min(name for name in names if self.values.get(name) != before.values.get(name))


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of each module afterwards, since a network that is traced may store symbols."""
    kept = {module: dict(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, attributes in kept.items():
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update({name: value for name, value in attributes.items() if name not in now or now[name] is not value})


def _comparable(value: object, inside: tuple[int, ...] = ()) -> object:
    """What two states of a value are compared by; `inside` are the values that hold this one."""
    if type(value) in PLAIN:  # most are, and the checks below take time
        return value
    if isinstance(value, fx.Proxy):
        return fx.Proxy
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in inside:
        return id(value)
    within = (*inside, id(value))
    if isinstance(value, (tuple, list, deque)):
        return tuple(_comparable(item, within) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_comparable(item, within) for item in value)
    if isinstance(value, dict):
        return tuple((_comparable(key, within), _comparable(item, within)) for key, item in value.items())
    if isinstance(value, SimpleNamespace):
        return _comparable(vars(value), within)
    return id(value)


def _check_wrapper(title: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if kind in WRAPPERS and type(module).__module__.startswith("torch."):
        inner = WRAPPERS[kind]
        raise UnsupportedLayer(f"{title} is a {kind} around the network; give the network, model.{inner}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedLayer(
            f"{title} was compiled by torch.jit, so its layers cannot be read; give the module that it was made from"
        )
    if module._compiled_call_impl is not None:
        raise UnsupportedLayer(
            f"{title} was compiled in place by compile(); give an uncompiled network with the same weights"
        )


def _check_tensors(title: str, module: nn.Module) -> None:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or type(tensor) in (Tensor, nn.Parameter):
            continue
        if is_lazy(tensor):
            raise UnsupportedLayer(f"{title} has no weights yet; run the network once, on an input of its shape")
        raise UnsupportedLayer(
            f"{title} keeps {name!r} as a {type(tensor).__name__}, which may compute in its own way; "
            "keep it as a plain nn.Parameter or tensor"
        )


def _check_hooks(title: str, module: nn.Module) -> None:
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    if not hooks:
        return
    advice = "remove it"
    if any(_place(hook).startswith("torch.nn.utils") for hook in hooks):
        advice = "let torch.nn.utils (as in prune.remove, remove_weight_norm or remove_spectral_norm) write its weights"
    raise UnsupportedLayer(f"{title} has a forward hook, which bounds cannot follow; {advice}")


def _place(hook: Any) -> str:
    return str(getattr(hook, "__module__", ""))


def _check_global_hooks() -> None:
    if calling._global_forward_pre_hooks or calling._global_forward_hooks:
        raise UnsupportedLayer(
            "a global forward hook is registered (torch.nn.modules.module.register_module_forward_hook or "
            "register_module_forward_pre_hook), which bounds cannot follow; remove it"
        )


def _check_calls(title: str, module: nn.Module) -> None:
    """A GraphModule's own `__call__` is allowed: it only explains errors."""
    for name in CALLS:
        if getattr(type(module), name) is not getattr(nn.Module, name) and not (
            isinstance(module, fx.GraphModule) and name == "__call__"
        ):
            raise UnsupportedLayer(
                f"{title} is a {type(module).__name__}, whose class overrides {name}; move that code into its forward"
            )


def _check_methods(title: str, module: nn.Module) -> None:
    """An instance of a layer may not replace any method, and any other module none of those that torch calls."""
    methods = _methods((type(module) if is_layer(module) else nn.Module).__mro__)
    for name in vars(module):
        if name == "forward" or name in methods:
            raise UnsupportedLayer(
                f"{title} has another {name!r} than its class {type(module).__name__}; "
                "define it in a class, not on the instance"
            )


@cache
def _methods(bases: tuple[type, ...]) -> frozenset[str]:
    return frozenset(name for base in bases for name, value in vars(base).items() if callable(value))


def _check_layer(title: str, layer: nn.Module) -> None:
    for name, value in vars(layer).items():
        if isinstance(value, Tensor):
            raise UnsupportedLayer(f"{title} keeps {name!r} as a plain tensor; make it an nn.Parameter")
    if type(layer).__module__.startswith("torch.nn.modules.") and not _is_torchs(type(layer).forward):
        raise UnsupportedLayer(f"{title} is a {type(layer).__name__}, whose forward was replaced in torch's own class")
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine != (layer.weight is not None):
        raise UnsupportedLayer(
            f"{title} has affine = {layer.affine}, but its weight says otherwise; create the layer again"
        )


def _is_torchs(function: Any) -> bool:
    """Whether the function's code is in the folder of torch's modules. A decorator copies its name, not its file."""
    code = getattr(function, "__code__", None)
    return code is not None and _folder(code) == _folder(nn.Module.register_buffer.__code__)


def _folder(code: Any) -> str:
    return str(code.co_filename).replace("\\", "/").rpartition("/")[0]
