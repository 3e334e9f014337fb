"""Docstrings as Markdown: Sphinx's roles become links, and stars of formulas stay stars.

Methods that are called with the arguments of another class show them.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Class, Extension, Function, Module, Object, Parameters

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):`~?\.?([\w.]+)`")
# Code and *emphasis* are left alone. What remains, as in θ*, is part of a formula.
_STAR = re.compile(r"`[^`]*`|(?<![*\w])\*(?=[^\s*])[^*\n]+\*(?!\w)|(?<=\w)\*(?!\*)")


class Docstrings(Extension):
    """Rewrites the docstrings of a package when it has been read."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of everything in the package."""
        public = {str(name): m[str(name)] for m in _modules(pkg) for name in m.exports or ()}
        for item in _documented(pkg):
            item.docstring.value = _as_markdown(item.docstring.value, item, public)
        for function in _functions(pkg):
            _show_arguments_taken(function, pkg)


def _modules(module: Module) -> list[Module]:
    """The module and all below it, from the inside out: what is exported on top counts."""
    children = [child for child in module.modules.values() if not child.is_alias]
    return [found for child in children for found in _modules(child)] + [module]


def _documented(item: Object) -> list[Object]:
    members = [m for m in item.members.values() if not m.is_alias]
    found = [inner for member in members for inner in _documented(member)]
    return found if item.docstring is None else [item, *found]


def _functions(item: Object) -> list[Function]:
    members = [m for m in item.members.values() if not m.is_alias]
    found = [inner for member in members for inner in _functions(member)]
    return [item, *found] if isinstance(item, Function) else found


def _show_arguments_taken(function: Function, package: Module) -> None:
    """Replace the parameters by what ``@takes_arguments_of(...)`` says that it is called with."""
    for decorator in function.decorators:
        if decorator.callable_path.endswith(".takes_arguments_of"):
            taken = package.modules_collection[decorator.value.arguments[0].canonical_path]
            assert isinstance(taken, Class)
            owner, _options = function.parameters
            function.parameters = Parameters(owner, *[*taken.parameters][1:])


def _as_markdown(text: str, item: Object, public: dict[str, Object]) -> str:
    text = _ROLE.sub(lambda role: _link(role[1], item, public), text)
    return _STAR.sub(lambda star: "∗" if star[0] == "*" else star[0], text)


def _link(name: str, item: Object, public: dict[str, Object]) -> str:
    """A link to what a role names, or only its name if the reference does not have it."""
    *owner, last = name.split(".")
    if last in public:
        return f"[`{last}`][{public[last].path}]"
    inside = item if item.is_class else item.parent
    class_ = public.get(owner[-1] if owner else inside.name)
    member = class_.members.get(last) if class_ is not None else None
    if member is None or member.docstring is None:
        return f"`{last}`"
    return f"[`{name}`][{class_.path}.{last}]"
