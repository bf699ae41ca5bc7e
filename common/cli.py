"""How every script meets its user: one line for an error, one bar for progress, colours only on a terminal."""

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn, Protocol, TypeVar

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from common.errors import UserError, is_out_of_memory

# a pipe or a file has no width to fit into, and a table cut to 80 columns is lost there
console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, highlight=False, emoji=False)

EVERYWHERE = """\
Every script also takes --quiet, which shows what went wrong and nothing else, --version, and --tyro-write-completion
{bash,zsh,tcsh} FILE, which writes what completes its flags in a shell. Colours and bars are for terminals; NO_COLOR=1
leaves out the colours."""


Flags = TypeVar("Flags")


def parse_flags(kind: type[Flags], argv: Sequence[str], doc: str | None = None, **others: Any) -> Flags:
    """Read a script's flags from its command line.

    Parameters
    ----------
    kind
        A dataclass, whose fields are the flags.
    doc
        What --help says above them: the script's docstring. Run, Reads and Writes stay lines of their own.
    others
        For tyro, as they are.
    """
    text = re.sub(r"(?<!\n)\n(?=(Reads|Writes):)", "\n\n", doc) if doc else None
    return tyro.cli(kind, args=list(argv), description=text, config=(tyro.conf.OmitArgPrefixes,), **others)


def run_script(main: Callable[[list[str]], None]) -> Callable[..., None]:
    """Decorate `main(argv)` of a script: what is no bug becomes one line on stderr; --version and --quiet are seen to.

    Raises
    ------
    SystemExit
        With code 2 on a `UserError`, a file that the system denies, and want of memory; with 130 on Ctrl-C.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> None:
        words = list(sys.argv[1:] if argv is None else argv)
        if "--version" in words:
            print("garage-scrna", version("garage-scrna"))
            return
        quiet = "--quiet" in words
        try:
            with speaking(quiet=quiet):
                main([word for word in words if word != "--quiet"])
        except SystemExit as left:
            if not left.code and {"-h", "--help"} & set(words):
                console.print(EVERYWHERE, soft_wrap=True, markup=False)
            raise
        except UserError as error:
            _refuse(str(error))
        except KeyboardInterrupt as stop:
            complain("stopped", *stop.args)
            sys.exit(130)
        except Exception as error:
            if is_out_of_memory(error):
                reason = (str(error).splitlines() or [""])[0] or "no more can be had"
                _refuse(f"memory ran out ({reason}): give fewer cells or genes (--n-top-genes), or free some memory")
            if isinstance(error, OSError) and error.filename:
                _refuse(f"{error.filename} cannot be used ({error.strerror}): mend that, or give another path")
            raise

    return wrapped


def _refuse(message: str) -> NoReturn:
    complain("error", message)
    sys.exit(2)


def complain(kind: str, message: str = "") -> None:
    """Say what went wrong, --quiet or not, in one line that starts with its kind."""
    told = f"[bold red]{kind}{':' if message else ''}[/] {escape(' '.join(message.split()))}"
    Console(stderr=True, highlight=False, emoji=False).print(told.rstrip(), soft_wrap=True)


@contextmanager
def speaking(*, quiet: bool = False, json: bool = False) -> Iterator[None]:
    """Within a block show nothing but what went wrong (`complain`), or leave stdout to a JSON object."""
    before = console.quiet, errors.quiet
    console.quiet, errors.quiet = console.quiet or quiet or json, errors.quiet or quiet
    try:
        yield
    finally:
        console.quiet, errors.quiet = before


class Reporter(Protocol):
    """What a training loop calls after each step to be seen."""

    def __call__(self, stage: str, step: int, total: int, **values: float) -> None:
        """Show how far a stage is, and the latest values of its losses."""


def silent(stage: str, step: int, total: int, **values: float) -> None:
    """Report nothing: the reporter of importers."""


@contextmanager
def progress_bar() -> Iterator[Reporter]:
    """Yield a reporter that draws one bar a stage on stderr, with the latest values and the time left."""
    columns = (
        TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )  # fmt: skip
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, int] = {}

        def report(stage: str, step: int, total: int, **values: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, values="")
            shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
            bars.update(tasks[stage], completed=step, total=total, values=shown)  # type: ignore[arg-type]

        yield report
