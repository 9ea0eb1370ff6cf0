"""What editors, terminals and disks do to text, and what is made of it."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.command import plain_output
from data.files import UserError, read_csv, read_json, read_text, text_lines, whole_file, writable_folder

ROOT = Path(__file__).resolve().parents[1]
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("start", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path, start, end):
    path = tmp_path / "file"
    path.write_bytes(start + end.join([b'{"a":', "  \"Gr\u00fc\u00dfe\u2028\"}".encode(), b""]))
    assert read_text(path) == '{"a":\n  "Grüße\u2028"}\n'
    assert read_json(path) == {"a": "Grüße\u2028"}
    assert list(text_lines(path)) == [(1, '{"a":'), (2, '  "Grüße\u2028"}')]


def test_what_is_no_utf8_text_is_named(tmp_path):
    path = tmp_path / "file"
    for data in ("Grüße".encode("latin-1"), '{"a": 1}'.encode("utf-16")):
        path.write_bytes(data)
        for reader in (read_text, read_json, lambda path: list(text_lines(path)), lambda path: list(read_csv(path))):
            with pytest.raises(UserError, match=f"{path}: not UTF-8 text .*; save it as UTF-8"):
                reader(path)
    path.write_text("{")
    with pytest.raises(UserError, match=f"{path}: not JSON .*; make it anew"):
        read_json(path, "make it anew")


def test_read_csv_takes_columns_by_name(tmp_path):
    data = BOM + b"b,a,\"c,d\"\r\n1,2,3\r\n\r\n4,\"5\n6\",7\r\n"
    (tmp_path / "x.csv").write_bytes(data)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(data))
    for name in ("x.csv", "x.csv.gz"):
        assert list(read_csv(tmp_path / name, "c,d", "a", "b")) == [(2, "3", "2", "1"), (5, "7", "5\n6", "4")]
        with pytest.raises(UserError, match="no column e; it has b, a, c,d; mend it"):
            list(read_csv(tmp_path / name, "e", remedy="mend it"))
        rows = list(read_csv(tmp_path / name, "a", optional=("x", "b")))
        assert rows == [(2, "2", None, "1"), (5, "5\n6", None, "4")]


def test_a_file_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), whole_file(tmp_path / "x") as file:
        file.write("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with whole_file(tmp_path / "x") as file:
        file.write("é\n")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xa9\n" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_refused_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/x", tmp_path / "file/x/y"):
        with pytest.raises(UserError, match="can't be written .*; give another folder with --out"):
            writable_folder(path, "--out")
    writable_folder(tmp_path / "new/folder", "--out")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="can't be written"):
        writable_folder(tmp_path / "new", "--out")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_no_terminal_ends_a_command(encoding):
    code = "from data.command import plain_output; plain_output(); print('a … █ é')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0 and done.stderr == b""
    assert done.stdout.decode(encoding).startswith("a ") and done.stdout.endswith(os.linesep.encode())


def test_plain_output_takes_any_stream(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", object())
    plain_output()
