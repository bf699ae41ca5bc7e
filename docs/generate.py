"""What the documentation says of flags, defaults and metrics, made of the code that decides it.

`conf.py` writes these pages into docs/_generated/ before each build; nothing in them is typed a second time.
"""

import ast
import contextlib
import importlib
import inspect
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

from common.metrics.catalogue import METRICS, Metric
from common.summary import markdown_table
from config import BASELINES, DATASETS, PRESETS, ROOT, Dataset, Params, Range, SelectionParams

BETTER = {"lower": "Lower is better", "higher": "Higher is better", "near": "The nearer the better"}
WIDTH = "100"  # columns of a --help


def pages() -> dict[str, str]:
    """Return every page by name, in Markdown."""
    return {"configuration": configuration(), "commands": commands(), "datasets": datasets()}


def metrics() -> dict[str, str]:
    """Return for each metric of the catalogue what it is called and means, its direction, ideal, range and source."""
    return {name: _describe(name, metric) for name, metric in METRICS.items()}


def _describe(name: str, metric: Metric) -> str:
    ideal = "no ideal" if math.isnan(metric.ideal) else f"ideally {metric.ideal:g}"
    span = f"from {metric.low:g} to {metric.high:g}".replace("inf", "infinity")
    return (
        f"**{metric.label}** (`{name}`). {metric.meaning} *{BETTER[metric.better]}, {ideal}; {span}.* {metric.source}."
    )


def configuration() -> str:
    """Return the hyperparameters of all presets and baselines, and the columns of the table of data sets."""
    shared = list(field_docs(SelectionParams))
    presets = {name: kind() for name, kind in PRESETS.items()}
    parts = ["## Stage 1, both presets\n", _parameters(presets, shared)]
    for name, params in presets.items():
        own = [field for field in field_docs(type(params)) if field not in shared]
        parts += [f"## Stage 2, preset {name}\n", _parameters({name: params}, own)]
    for name, both in BASELINES.items():
        parts += [f"## Baseline {name}\n", _parameters(both, list(field_docs(type(both["tuned"]))))]
    columns = ((field, field_docs(Dataset)[field.name]) for field in fields(Dataset))
    rows = [[f"`{field.name}`", doc, _default(field.default)] for field, doc in columns]
    return "\n".join([*parts, "## Columns of DATASETS\n", _table(["column", "meaning", "default"], rows)])


def _parameters(presets: Mapping[str, Params], names: Sequence[str]) -> str:
    """Return a table of hyperparameters, with a column of defaults for each preset."""
    kind = type(next(iter(presets.values())))
    docs, hints = field_docs(kind), get_type_hints(kind, include_extras=True)
    rows = [
        [
            _flag(name),
            docs[name],
            *(_default(getattr(params, name)) for params in presets.values()),
            _allowed(hints[name]),
        ]
        for name in names
    ]
    return _table(["flag", "meaning", *presets, "takes"], rows)


def _flag(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of words, which stand on the left."""
    return markdown_table(head, rows).replace("---:", "---")


def field_docs(kind: type) -> dict[str, str]:
    """Return what stands under each field of a dataclass, in the order of its fields; a subclass may leave it out."""
    docs: dict[str, str] = dict.fromkeys((field.name for field in fields(kind)), "")
    for cls in reversed([cls for cls in kind.__mro__ if cls.__module__ == kind.__module__]):
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for statement, after in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                docs[statement.target.id] = " ".join(after.value.value.split())  # type: ignore[attr-defined,union-attr]
    return docs


def _default(value: Any) -> str:
    """Return a default as it is typed on a command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value is None else "required" if not isinstance(value, (int, float, str)) else str(value)


def _allowed(hint: Any) -> str:
    """Return what a flag takes, from the type of its field."""
    kind, allowed = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if kind is bool:
        return "a switch (`--no-` for no)"
    if get_origin(kind) is tuple:
        return "whole numbers"
    whole = set(get_args(kind) or [kind]) <= {int, NoneType}
    words = str(allowed) if isinstance(allowed, Range) else "a number"
    return words.replace("a number", "a whole number") if whole else words


def datasets() -> str:
    """Return the table of the named data sets."""
    return _table(
        ["`--dataset`", "cells", "a type is rare up to", "source"],
        [[f"`{name}`", row.description, f"{row.rare_threshold} cells", row.source] for name, row in DATASETS.items()],
    )


def scripts() -> list[str]:
    """Return the path of every script, relative to the repository; the TensorFlow-1 references take no flags."""
    folders = (path for path in ROOT.iterdir() if (path / "__init__.py").exists())
    found = (path for folder in folders for path in folder.rglob("*.py") if not path.stem.endswith("_tf1"))
    return sorted(str(path.relative_to(ROOT)) for path in found if '__name__ == "__main__"' in path.read_text())


def help_of(script: str, *flags: str) -> str:
    """Return what a script prints for --help, paths relative to the repository."""
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit), patch.dict(os.environ, COLUMNS=WIDTH):
        main([*flags, "--help"])
    return text.getvalue().replace(f"{ROOT}/", "")


def flags_of(text: str) -> str:
    """Return the flags in the text of a --help, which come after the description."""
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines[lines.index(" options") + 1 :]).strip("\n")


def commands() -> str:
    """Return each script's docstring and flags."""
    parts = []
    for script in scripts():
        doc = ast.get_docstring(ast.parse((ROOT / script).read_text()))
        parts.append(f"## {script}\n\n```text\n{doc}\n```\n\n```text\n{flags_of(help_of(script))}\n```\n")
    return "\n".join(parts)
