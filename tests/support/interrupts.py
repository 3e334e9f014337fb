"""Interrupts in the middle of the package's code, as Ctrl-C makes them."""

import ast
import random
import sys
from functools import cache
from pathlib import Path

import avalanche_hnet

PACKAGE = str(Path(avalanche_hnet.__file__).parent)


class LineInterrupt(KeyboardInterrupt):
    """Ctrl-C at a line that was chosen beforehand."""


def count_lines(call):
    """How many lines of the package ``call`` runs."""
    counter = _Tracer(None)
    counter.run(call)
    return counter.n_lines


def interrupted(call, number):
    """Run ``call`` up to its line of this number, and whether it was interrupted there."""
    try:
        _Tracer(number).run(call)
    except LineInterrupt:
        return True
    return False


def some_lines(n_lines, n_chosen, seed=0):
    """Numbers of lines, all or so many of them."""
    everything = range(n_lines)
    if n_lines <= n_chosen:
        return [*everything]
    return sorted(random.Random(seed).sample(everything, n_chosen))


class _Tracer:
    """Counts lines, but for those that tidy up, and interrupts at one of them.

    Python can be interrupted in a ``finally``, too, or where a ``with`` is left. What would have
    been tidied up then stays as it is, here as everywhere.
    """

    def __init__(self, number):
        self.number = number
        self.n_lines = 0
        self.latest = {}  # line of each frame

    def run(self, call):
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)

    def _enter(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        return self._line

    def _line(self, frame, event, argument):
        before, self.latest[frame] = self.latest.get(frame), frame.f_lineno
        if event == "return":
            del self.latest[frame]
        if event == "line" and not _tidies_up(frame) and not _leaves_with(frame, before):
            if self.n_lines == self.number:
                sys.settrace(None)
                raise LineInterrupt(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            self.n_lines += 1
        return self._line


def _tidies_up(frame):
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE) and frame.f_lineno in _cleaning_lines(name):
            return True
        frame = frame.f_back
    return False


def _leaves_with(frame, line_before):
    """Whether the line is a ``with`` statement whose body has come to its end."""
    end = _with_statements(frame.f_code.co_filename).get(frame.f_lineno, 0)
    return line_before is not None and frame.f_lineno < line_before <= end


@cache
def _with_statements(name):
    """The last line of each ``with`` statement, by its first one."""
    tree = ast.parse(Path(name).read_text())
    return {n.lineno: n.end_lineno for n in ast.walk(tree) if isinstance(n, ast.With)}


@cache
def _cleaning_lines(name):
    """Numbers of the lines in ``finally`` and ``except`` clauses."""
    lines = set()
    for node in ast.walk(ast.parse(Path(name).read_text())):
        if isinstance(node, ast.Try):
            for part in [*node.finalbody, *node.handlers]:
                lines.update(range(part.lineno, part.end_lineno + 1))
    return lines
