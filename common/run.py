"""The folder of a run: every file appears whole or not at all, `run.json` last; a killed run can go on.

docs/results.md says what stands in it.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import resource
import signal
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import anndata
import h5py
import pandas as pd
import torch
from anndata import AnnData
from filelock import FileLock, Timeout

from common.checks import existing, reading
from common.cli import errors
from common.errors import UserError, is_out_of_memory

Checkpoint = Callable[[Callable[[], dict[str, Any]]], None]
"""What a training loop calls after each step with a function that returns its state."""

CHECKPOINT_SECONDS = 20.0  # between two checkpoints within a stage: a kill costs at most this much work
HDF5_CACHES = 5_000_000  # bytes that may wait for the closing of an HDF5 file
M_MMAP_THRESHOLD, MMAP_BYTES = -3, 2**20  # of glibc's mallopt: from this size on memory is mapped, and given back
CSV_ROWS = 500  # rows of cells.csv made dense at a time
CHECKED = ("cells.h5ad", "heldout.csv", "seeds.csv")  # what others read of a run; model.pt has checksums inside
PACKAGES = ("anndata", "numpy", "scanpy", "scikit-learn", "scipy", "torch", "torch-geometric")


def no_checkpoint(make_state: Callable[[], dict[str, Any]]) -> None:
    """Keep nothing: the checkpoint of importers."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it to `path` when the block ends well.

    Raises
    ------
    UserError
        If the disk is full or the folder cannot be written to; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name without its content
        part.replace(path)
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise _as_user_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _as_user_error(error: OSError, path: Path) -> UserError:
    # HDF5 hides the errno in its message
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        f"errno = {code}," in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    )
    if full:
        return UserError(f"no room left to write {path}: free some space or choose another folder with --out")
    reason = error.strerror or str(error).splitlines()[0]
    return UserError(f"cannot write {path} ({reason}): choose a folder you can write to with --out")


def check_writable(folder: Path) -> None:
    """Make sure, before anything is computed, that files can be made in a folder; it is made only when needed.

    Raises
    ------
    UserError
        If they cannot.
    """
    try:
        nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
        probe = nearest / f".{folder.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _as_user_error(error, folder) from error


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it while the block lasts.

    The system frees what a killed run had claimed. A folder that is empty in the end is removed, if it was made here.

    Raises
    ------
    UserError
        If another run is at work there, or files cannot be made in it.
    """
    path = folder / ".running"
    lock = FileLock(path, blocking=False)
    try:
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another run is at work in {folder}: wait until it ends, or choose --out") from error
    except OSError as error:
        raise _as_user_error(error, folder) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the release: whoever waits for this file finds it gone, and makes another
        lock.release()
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=2, default=str) + "\n")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json; its `files` are the SHA-256 of those files of the run that hold no checksum of their own.

    `checksum` is that of all the rest.
    """
    sums = {name: file_digest(folder / name) for name in CHECKED if (folder / name).exists()}
    content = {**record, "files": sums}
    write_json(folder / "run.json", {**content, "checksum": _checksum(content)})


def load_record(path: Path) -> dict[str, Any]:
    """Read a run.json; one without `checksum`, older or changed by hand, is taken as it is.

    Raises
    ------
    UserError
        If it is not readable, or not what was written.
    """
    with reading(path, "record of a run"):
        content: dict[str, Any] = json.loads(path.read_text())
        known = content.pop("checksum", None)
    if known is not None and known != _checksum(content):
        raise UserError(
            f"{path} is damaged, or was changed since its run: repeat the run, or remove the line 'checksum' if the "
            "change is yours"
        )
    return content


def _checksum(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, default=str).encode())


def intact(path: Path) -> Path:
    """Return the path of a run's file, if it is what the run wrote.

    Raises
    ------
    UserError
        If it is missing, or its SHA-256 is not the one in run.json.
    """
    record = path.with_name("run.json")
    sums = load_record(record).get("files", {}) if record.exists() else {}
    known = sums.get(existing(path).name)  # of runs made before there were any, nothing
    if known is not None and known != file_digest(path):
        raise UserError(f"{path} is damaged, or was changed since its run: repeat the run")
    return path


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV table without index atomically, packed if its name ends in .gz."""
    packed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None  # no time: the same table, the same file
    with atomic(path) as part:
        table.to_csv(part, index=False, compression=packed)


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts atomically, so that `read_tensors` can read them."""
    with atomic(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:  # torch reports a full disk so
            if is_out_of_memory(error):
                raise
            raise OSError(errno.ENOSPC, "no space left on device") from error


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote; never runs code from the file.

    Raises
    ------
    UserError
        If the file is missing, cut short, not ours, or a bit of it has changed.
    """
    if not path.is_file():
        there = "" if path.parent.is_dir() else ", and so is its folder"
        raise UserError(f"{path} is missing{there}: give the folder of a finished run")
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # torch itself does not compare checksums
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged or was not written by GARAGE: run again without it") from error
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path} was not written by GARAGE: give the folder of a GARAGE run")
    return content


def _hold(n_bytes: int, path: Path) -> IO[bytes]:
    """Take room on the disk for a file to grow by so much, until what is returned is closed.

    HDF5 must never meet a full disk while it writes: it would retry until the process ends, print errors and perhaps
    crash.
    """
    held = tempfile.TemporaryFile(dir=path.parent, buffering=0)  # noqa: SIM115, the caller closes it
    held.seek(path.stat().st_size if path.exists() else 0)
    left = memoryview(bytes(n_bytes))
    while left:
        left = left[held.write(left) :]
    return held


def _map_large_arrays() -> None:
    """Avoid fragmentation by arrays of varying size, about 1 kB a cell drawn; slows drawing by a quarter.

    By default glibc raises the size from which memory is mapped to what was freed last. Other C libraries stay as they
    are. It lasts as long as the process.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)


def write_cells(folder: Path, blocks: Iterable[AnnData], name: str = "cells", *, text: bool = True) -> pd.DataFrame:
    """Write cells, block by block, as `<name>.h5ad` and as `<name>.csv` (cell, cell_type, then genes).

    Both appear whole or not at all.

    Parameters
    ----------
    blocks
        One at least, X CSR; all with the same genes and `uns`.
    text
        Whether to write the csv file, too.

    Returns
    -------
    obs of all cells.
    """
    _map_large_arrays()
    obs: list[pd.DataFrame] = []
    X = None
    with contextlib.ExitStack() as stack:
        part = stack.enter_context(atomic(folder / f"{name}.h5ad"))
        _hold(HDF5_CACHES, part).close()
        file = stack.enter_context(h5py.File(part, "w"))
        stack.enter_context(_hold(HDF5_CACHES, part))  # given back just before HDF5 closes its file
        csv = stack.enter_context(stack.enter_context(atomic(folder / f"{name}.csv")).open("w")) if text else None
        for block in blocks:
            _hold(block.X.data.nbytes + block.X.indices.nbytes + block.X.indptr.nbytes, part).close()
            if X is None:
                # by cells drawn so far, which may be more than an int32 counts in the end
                anndata.io.write_elem(file, "X", block.X, dataset_kwargs={"compression": "gzip", "indptr_dtype": "i8"})
                X = anndata.io.sparse_dataset(file["X"])
            else:
                X.append(block.X)
            if csv is not None:
                for start in range(0, block.n_obs, CSV_ROWS):
                    _text(block[start : start + CSV_ROWS]).to_csv(csv, header=not obs and not start, index_label="cell")
            obs.append(block.obs)
        ends = file["X/indptr"][:]
        if ends[-1] < 2**31:  # scipy slices matrices only if both kinds of indices are of one type
            del file["X/indptr"]
            file["X"].create_dataset("indptr", data=ends.astype("i4"), maxshape=(None,), compression="gzip")
        table = pd.concat(obs)
        _hold(int(table.memory_usage(deep=True).sum()), part).close()
        for key, value in (("obs", table), ("var", block.var), ("uns", dict(block.uns))):
            anndata.io.write_elem(file, key, value)
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return table


def _text(cells: AnnData) -> pd.DataFrame:
    """Return cells as cells.csv shows them."""
    values = cells.X.toarray()
    whole = cells.uns["scale"] == "counts"
    table = pd.DataFrame(values.astype("int64") if whole else values, cells.obs_names, cells.var_names)
    table.insert(0, "cell_type", cells.obs["cell_type"].astype(str), allow_duplicates=True)
    return table


class ResumableRun:
    """Checkpoints of a run in `checkpoint.pt`, bound to what was asked for.

    Parameters
    ----------
    folder
        The run's folder.
    identity
        What a checkpoint must agree in to be gone on from, such as data, parameters and seed.
    resume
        Go on from the folder's checkpoint, if there is one; otherwise start anew.
    writes
        Whether checkpoints are written, or only read.

    Raises
    ------
    UserError
        If the checkpoint is damaged or belongs to something else.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, resume: bool, writes: bool = True) -> None:
        self.path, self.identity, self.writes = folder / "checkpoint.pt", identity, writes
        self.content: dict[str, Any] = {"format": "garage-checkpoint-1", "identity": identity, "stages": {}}
        self._last = time.monotonic()
        self._stopping = False
        if resume and self.path.exists():
            self.read()

    def read(self) -> None:
        """Go on from the folder's checkpoint; errors as of the class."""
        found, identity = read_tensors(self.path), self.identity
        other = [key for key, value in identity.items() if found.get("identity", {}).get(key) != value]
        if other:
            raise UserError(
                f"{self.path} belongs to a run with other {' and '.join(other)}: repeat that run's flags, "
                "or leave out --resume to start anew"
            )
        self.content = found

    def state(self, stage: str) -> dict[str, Any] | None:
        """Return where a stage stood, None if it had not begun."""
        return self.content["stages"].get(stage)

    def checkpoint(self, stage: str) -> Checkpoint:
        """Return what the training loop of a stage is to call after each step."""

        def offer(make_state: Callable[[], dict[str, Any]]) -> None:
            if self._stopping or time.monotonic() - self._last >= CHECKPOINT_SECONDS:
                self.save(stage, make_state())
            self._stop_if_asked()

        return offer

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C finish the step it comes in and save the state before it stops the block; twice stops at once.

        Raises
        ------
        KeyboardInterrupt
            At the end of the step, or of the block.
        """
        usual = signal.getsignal(signal.SIGINT)
        if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
            yield  # started in the background, or by someone with a will of their own
            return

        def ask(*_: object) -> None:
            signal.signal(signal.SIGINT, usual)
            self._stopping = True
            errors.print("stopping after this step; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stopping:
            raise KeyboardInterrupt("--resume goes on from here")

    def save(self, stage: str, state: dict[str, Any]) -> None:
        """Write the state of a stage now."""
        if not self.writes:
            return
        self.content["stages"][stage] = state
        write_tensors(self.path, self.content)
        self._last = time.monotonic()

    def forget(self) -> None:
        """Remove the checkpoint of a finished run."""
        self.path.unlink(missing_ok=True)


class Stopwatch:
    """Seconds, by the clock and of the processor, and peak memory of each stage, for `run.json`."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block. Peak memory is the process's so far, in MB."""
        start, cpu_start = time.monotonic(), time.process_time()
        yield
        unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes there, in KB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        self.stages[name] = {
            "seconds": round(time.monotonic() - start, 2), "cpu_seconds": round(time.process_time() - cpu_start, 2),
            "peak_memory_mb": round(peak, 1),
        }  # fmt: skip


def digest(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of some bytes, none of which is copied."""
    sum_ = hashlib.sha256()
    for i, part in enumerate(parts):
        sum_.update(b"\0" * (i > 0))
        sum_.update(part)
    return sum_.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Describe what a run's result may depend on besides its inputs."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "versions": versions, "device": str(device), "threads": torch.get_num_threads(),
        "machine": platform.machine(), "git_commit": _git_commit(),
    }  # fmt: skip


def _git_commit() -> str | None:
    """Return the commit of the code, with a plus sign if it was changed since; None outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
