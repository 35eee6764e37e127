"""How the shapes and types in signatures are checked while the tests run: as mypy reads them, so an int is a float."""

import ast
import dataclasses
import functools
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, Self, TypeVar

import jaxtyping
from beartype import BeartypeConf, beartype

Function = TypeVar("Function", bound=Callable[..., Any])


class SignatureError(TypeError):
    """A value does not fit the signature: a TypeError, as most of what would come of it."""


_check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=SignatureError))


def check_function(function: Function) -> Function:
    """The same function, which raises a SignatureError. The check is compiled at the first call: one process calls few of all functions."""
    checked: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not checked:
            checked.append(_checked(function))
        with jaxtyping.jaxtyped("context"):  # a letter is one number in one call
            return checked[0](*args, **kwargs)

    return call  # type: ignore[return-value]


def check_class(checked: type) -> type:
    """The same class; a dataclass checks its fields when an object is made."""
    if dataclasses.is_dataclass(checked):
        checked.__init__ = check_function(checked.__init__)  # type: ignore[misc]
    return checked


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked by beartype as far as its annotations can be read.

    What is imported for types alone does not exist now, and `Self` can be read in whole classes only.
    """
    annotations = function.__annotations__
    for name, annotation in annotations.items():
        try:
            known = typing.get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), function.__globals__)[
                "it"
            ]
        except NameError:
            known = Any
        annotations[name] = Any if known is Self else known
    return _check(function)


class _Decorate(ast.NodeVisitor):
    """Decorates the classes, functions and methods of a module, but no function inside a function.

    jaxtyping's own import hook decorates those too, and so compiles their checks at every call of the outer function.
    """

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        node.decorator_list.insert(0, self._decorator("check_class", node))  # outermost: sees a finished dataclass
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        node.decorator_list.append(self._decorator("check_function", node))

    def _decorator(self, name: str, node: ast.stmt) -> ast.expr:
        expression = ast.parse(f"__import__('shapes').{name}", mode="eval").body
        return ast.fix_missing_locations(ast.copy_location(expression, node))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compiled every time: the bytecode that Python keeps is that of the plain module."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        _Decorate().visit(tree)
        return compile(tree, path, "exec", dont_inherit=True)  # type: ignore[no-any-return]


class _Finder(MetaPathFinder):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = tuple(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(tuple(f"{package}." for package in self.packages)):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_modules(packages: Sequence[str]) -> None:
    """Check the functions of all modules of these packages that are imported from now on."""
    sys.meta_path.insert(0, _Finder(packages))
