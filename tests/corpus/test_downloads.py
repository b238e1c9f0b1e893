"""Fetching in several goes, from a server that breaks off; extracting whole or not at all."""

import http.server
import tarfile
import threading

import pytest
from limits import longest_file

from espnet_speechllm_xl.corpus.downloads import extract, fetch
from espnet_speechllm_xl.errors import UserError, of_machine

CONTENT = bytes(range(256)) * 5000


class Breaking(http.server.BaseHTTPRequestHandler):
    """Sends ``most`` bytes at a time, whatever it promised; continues where it is asked to if ``ranges``."""

    most, ranges, asked = 500_000, True, []

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if begin >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        self.wfile.write(CONTENT[begin : begin + self.most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Breaking, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/corpus.tar"
        served.shutdown()


def test_a_broken_download_is_continued(server, tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match=r"the same command continues what has come\): try again"):
            fetch(server, tmp_path / "corpus.tar")
        assert not (tmp_path / "corpus.tar").exists()
    fetch(server, tmp_path / "corpus.tar")
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert Breaking.asked == [None, "bytes=500000-", "bytes=1000000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.tar"]


def test_a_full_disk_is_no_fault_of_the_server(server, tmp_path):
    with longest_file(200_000), pytest.raises(OSError) as caught:
        fetch(server, tmp_path / "corpus.tar")
    assert of_machine(caught.value).startswith(f"{tmp_path / '.corpus.tar.part'} cannot be written: File too large")


def test_a_server_without_ranges_begins_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Breaking, "ranges", False)
    with pytest.raises(UserError, match="500000 of 1280000 bytes came|IncompleteRead"):
        fetch(server, tmp_path / "corpus.tar")
    monkeypatch.setattr(Breaking, "most", len(CONTENT))
    fetch(server, tmp_path / "corpus.tar")
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"of an older archive"])
def test_a_download_that_was_stopped_before_its_renaming(server, tmp_path, monkeypatch, left):
    monkeypatch.setattr(Breaking, "most", len(CONTENT))
    (tmp_path / ".corpus.tar.part").write_bytes(left)
    fetch(server, tmp_path / "corpus.tar")
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert len(Breaking.asked) == (1 if left == CONTENT else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.tar"]


def test_an_archive_is_extracted_whole_or_not_at_all(tmp_path):
    (tmp_path / "corpus/part").mkdir(parents=True)
    (tmp_path / "corpus/part/file").write_text("text")
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "corpus", "corpus")
    extract(tmp_path / "good.tar.gz", "corpus/part", tmp_path / "out/part", "its publisher")
    assert (tmp_path / "out/part/file").read_text() == "text"
    with pytest.raises(UserError, match="holds no corpus/other: it is another archive; get it from its publisher"):
        extract(tmp_path / "good.tar.gz", "corpus/other", tmp_path / "out/other", "its publisher")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "good.tar.gz").read_bytes()[:-20])
    with tarfile.open(tmp_path / "long.tar", "w") as tar:
        tar.add(tmp_path / "corpus/part/file", "corpus/" + "x" * 300)
    with pytest.raises(
        UserError, match="long.tar cannot be extracted into .*out: File name too long: give shorter names$"
    ):
        extract(tmp_path / "long.tar", "corpus", tmp_path / "out/other", "its publisher")
    with pytest.raises(UserError, match="cannot be extracted"):
        extract(tmp_path / "cut.tar.gz", "corpus/part", tmp_path / "out/again", "its publisher")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part"]
