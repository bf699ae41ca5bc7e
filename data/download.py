"""Fetch the data sets of the paper, as published with it, into `data/`.

Run:    python data/download.py --dataset yan      (or pollen, cbmc, muraro, all)
Reads:  the DATASETS table of config.py, and the network
Writes: data/expression_matrix/<file>, data/cell_types/<file>

An interrupted download goes on where it stopped: what has come so far is kept as <file>.part. A file takes its name
only when its SHA-256 is the published one.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests
from pooch import file_hash
from pooch.core import stream_download

from common.checks import check_known
from common.cli import Reporter, console, parse_flags, progress_bar, run_script
from common.errors import UserError
from config import DATA_DIR, DATASETS

# the repository keeps its large files in Git LFS, and it is from their pointers that the checksums are known
LFS_FILES = "https://media.githubusercontent.com/media/RitwikGanguly/GARAGE/main/data"
PLAIN_FILES = "https://raw.githubusercontent.com/RitwikGanguly/GARAGE/main/data"
BLOCK = 2**18  # bytes
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Args:
    """Fetch the published files of a data set."""

    dataset: str
    """yan, pollen, cbmc, muraro, or all"""
    base_url: str | None = None
    """where expression_matrix/ and cell_types/ lie; by default the repository of the paper"""
    force: bool = False
    """fetch again what is already there"""


@run_script
def main(argv: list[str]) -> None:
    """Fetch what the flags ask for, and say what was written."""
    args = parse_flags(Args, argv, __doc__)
    choices = [*DATASETS, "all"]
    check_known(args.dataset, choices, "there is no data set")
    for name in DATASETS if args.dataset == "all" else [args.dataset]:
        row = DATASETS[name]
        for file, sha256 in ((row.expression, row.expression_sha256), (row.labels, row.labels_sha256)):
            if file:
                base = args.base_url or (LFS_FILES if sha256 else PLAIN_FILES)
                fetch(f"{base.rstrip('/')}/{file}", DATA_DIR / file, sha256, force=args.force)
        if not row.expression:
            _say(f"{name} comes with scanpy: there is nothing to fetch")
        _say(f"next: python data_generation/garage.py --dataset {name}")


def fetch(url: str, path: Path, sha256: str | None, *, force: bool) -> None:
    """Fetch one file unless it is there and valid.

    Parameters
    ----------
    url
        Where the file is.
    path
        Where it goes.
    sha256
        Its published checksum; None if there is none, in which case any file at `path` counts as valid.
    force
        Fetch it in any case.

    Raises
    ------
    UserError
        If the server cannot be reached, answers with an error, or sends another file. `path` is then as it was.
    """
    if path.exists() and not force and sha256 in (None, file_hash(str(path))):
        _say(f"{path} is there already")
        return
    by_hand = f"try again later, or fetch {url} by hand and save it as {path}"
    try:
        with progress_bar() as report:
            part = path.with_name(f"{path.name}.part")
            stream_download(url, path, sha256, partial(_download, part=part, report=report))
    except requests.RequestException as error:
        answer = error.response  # an empty one if the server said no, so not to be tested for truth
        reason = type(error).__name__ if answer is None else f"{answer.status_code} {answer.reason}"
        raise UserError(f"{path.name} could not be fetched ({reason}): {by_hand}") from error
    except ValueError as error:  # pooch's word for another checksum
        raise UserError(f"{url} is not the published {path.name}, its SHA-256 differs: {by_hand}") from error
    _say(f"wrote {path}")
    if sha256 is None:
        _say(f"no checksum is published for {path.name}; the SHA-256 found is {file_hash(str(path))}")


def _download(url: str, target: str, _: object, *, part: Path, report: Reporter) -> None:
    """Download to `part`, going on where an earlier attempt stopped, then move it to `target`."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # bytes are counted in the file, not in a compressed stream of it
    if done:
        headers["Range"] = f"bytes={done}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code != requests.codes.range_not_satisfiable:
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            done = done if resumed else 0
            total = done + int(response.headers.get("Content-Length", 0))
            with part.open("ab" if resumed else "wb") as file:
                for block in response.iter_content(BLOCK):
                    done += file.write(block)
                    report(part.stem, done // 1024, max(done, total) // 1024)
    part.replace(target)


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
