"""Every check of the project, in the environment that ``pip install -e '.[dev]'`` has set up.

``nox --list`` names them, ``nox`` runs those that a change must pass, ``nox -s NAME`` one of them.
What follows ``--`` is handed on: ``nox -s tests -- tests/core -x``.
"""

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests", "docs"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and the directions of imports."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Quick tests."""
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Trainings of minutes."""
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into site/."""
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Timings."""
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="venv")
def wheel(session: nox.Session) -> None:
    """The built package in an environment of its own: quick tests, and the types a user sees."""
    dist, beside = (Path(session.create_tmp()) / name for name in ("dist", "beside"))
    for folder in (dist, beside):
        shutil.rmtree(folder, ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    (built,) = dist.glob("*.whl")
    session.install(f"{built}[test]")
    for folder in ("tests", "docs"):  # some tests compare a page with what they find
        shutil.copytree(folder, beside / folder)
    shutil.copy("pyproject.toml", beside)
    session.chdir(beside)  # where no source of the package is
    session.run("mypy", "--config-file=", "--strict", "tests/support/typed_user.py")
    session.run("python", "-m", "pytest", *session.posargs)
