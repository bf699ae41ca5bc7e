"""Downloads from a local server: whole, resumed, wrong, and impossible."""

import dataclasses
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from config import DATASETS
from data import download

CONTENT = {"expression_matrix/yan_process.csv": b"1,2\n3,4\n" * 50_000, "cell_types/yan_celltype.csv": b"a\nb\n"}
CONTENT |= {"expression_matrix/pollen_process.txt": b"1 2\n", "cell_types/pollenc.txt": b"c\n"}


class Server(ThreadingHTTPServer):
    """Serves CONTENT under /data/, keeps the Range of every request, and hangs up after `cut` bytes if told to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.cut = [], None
        self.url = f"http://127.0.0.1:{self.server_port}/data/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = CONTENT.get(self.path.removeprefix("/data/"))
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if content is None:
            self.send_error(404)
            return
        self.send_response(416 if start >= len(content) else 206 if asked else 200)
        self.send_header("Content-Length", str(max(0, len(content) - start)))
        self.end_headers()
        self.wfile.write(content[start : self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    """Files go to a temporary folder, and what the server has counts as published."""
    rows = {
        name: dataclasses.replace(
            row,
            expression_sha256=row.expression_sha256 and hashlib.sha256(CONTENT[row.expression]).hexdigest(),
            labels_sha256=row.labels_sha256 and hashlib.sha256(CONTENT[row.labels]).hexdigest(),
        )
        for name, row in DATASETS.items()
        if name in ("pbmc68k", "yan", "pollen")
    }
    monkeypatch.setattr(download, "DATASETS", rows)
    monkeypatch.setattr(download, "DATA_DIR", tmp_path)
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        download.main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_all_is_fetched_once(server, data_dir, capsys):
    download.main(["--dataset", "all", "--base-url", server.url])
    assert files(data_dir) == CONTENT
    said = capsys.readouterr().out
    assert f"wrote {data_dir / 'cell_types/yan_celltype.csv'}" in said
    assert "next: python data_generation/garage.py --dataset yan" in said
    assert "pbmc68k comes with scanpy" in said
    found = hashlib.sha256(CONTENT["cell_types/pollenc.txt"]).hexdigest()
    assert f"no checksum is published for pollenc.txt; the SHA-256 found is {found}" in said

    download.main(["--dataset", "all", "--base-url", server.url])
    assert len(server.ranges) == 4
    assert "is there already" in capsys.readouterr().out
    download.main(["--dataset", "pollen", "--base-url", server.url, "--force"])
    assert len(server.ranges) == 6


def test_interrupted_download_goes_on(server, data_dir, capsys, monkeypatch):
    monkeypatch.setattr(download, "BLOCK", 10_000)  # what has come of an unfinished block is lost
    server.cut = 100_000
    assert "could not be fetched" in fails(capsys, "--dataset", "yan", "--base-url", server.url)
    assert list(files(data_dir)) == ["expression_matrix/yan_process.csv.part"]
    server.cut = None
    download.main(["--dataset", "yan", "--base-url", server.url])
    assert server.ranges[1] == "bytes=100000-"
    assert files(data_dir) == {name: CONTENT[name] for name in CONTENT if "yan" in name}


def test_whole_part_is_taken(server, data_dir):
    part = data_dir / "expression_matrix" / "yan_process.csv.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT["expression_matrix/yan_process.csv"])
    download.main(["--dataset", "yan", "--base-url", server.url])
    assert files(data_dir) == {name: CONTENT[name] for name in CONTENT if "yan" in name}


def test_wrong_checksum_leaves_no_trace(server, data_dir, capsys, monkeypatch):
    monkeypatch.setitem(download.DATASETS, "yan", DATASETS["yan"])
    message = fails(capsys, "--dataset", "yan", "--base-url", server.url)
    assert "SHA-256 differs" in message
    assert "by hand" in message
    assert files(data_dir) == {}


def test_invalid_file_is_replaced_only_by_a_valid_one(server, data_dir, capsys):
    path = data_dir / "cell_types" / "yan_celltype.csv"
    path.parent.mkdir()
    path.write_bytes(b"other")
    server.cut = 1
    fails(capsys, "--dataset", "yan", "--base-url", server.url)
    assert path.read_bytes() == b"other"
    server.cut = None
    download.main(["--dataset", "yan", "--base-url", server.url])
    assert path.read_bytes() == CONTENT["cell_types/yan_celltype.csv"]


def test_server_says_no(server, data_dir, capsys):
    message = fails(capsys, "--dataset", "yan", "--base-url", server.url + "elsewhere")
    assert "404" in message
    assert str(data_dir / "expression_matrix" / "yan_process.csv") in message
    assert files(data_dir) == {}


def test_offline(data_dir, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/data"
    message = fails(capsys, "--dataset", "yan", "--base-url", url)
    assert "error:" in message
    assert f"fetch {url}/expression_matrix/yan_process.csv by hand and save it as {data_dir}" in message
    assert files(data_dir) == {}


def test_unknown_set(capsys):
    assert "did you mean 'yan'" in fails(capsys, "--dataset", "yann")
