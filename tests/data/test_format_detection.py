"""Files as other programs write them: each is read, or refused with what it is and what to do."""

import bz2
import gzip
import io
import json
import lzma
import math
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest

from tests.data.test_channel_tables import channel
from trainbox.contract.job import Channel
from trainbox.data import ColumnSpec, estimate_bytes, log_unread, read_table
from trainbox.data.formats.byte_stream import compression_from_magic
from trainbox.data.formats.format_detection import identify_unsupported
from trainbox.errors import DataError

ROWS = [[1.0, 0.5, 2.0], [0.0, 0.25, 3.0]]
CSV = "1,0.5,2\n0,0.25,3\n"

READ: dict[str, tuple[str, str | bytes]] = {
    "names that are numbers": ("a.csv", "target,0,1\n" + CSV),
    "names that are numbers from 1": ("a.csv", "y,1,2\n" + CSV),
    "names that are numbers with a point": ("a.csv", "y,0.0,1.0\n" + CSV),
    "names that are numbers, quoted": ("a.csv", '"target","0","1"\n' + CSV),
    "a comment first": ("a.csv", "# written by a program\n" + CSV),
    "a comment before the header": ("a.csv", "# a\n#b,c\ny,a,b\n" + CSV),
    "a comment between": ("a.csv", "1,0.5,2\n# half of it\n0,0.25,3\n# the end"),
    "a comment between, behind blanks": ("a.csv", "1,0.5,2\n  # half of it\r\n0,0.25,3\n"),
    "blanks": ("a.txt", "1 0.5 2\n0 0.25 3\n"),
    "several blanks": ("a.txt", "  1  0.5   2\n  0  0.25  3  \n"),
    "blanks and tabs": ("a.txt", "1\t0.5 2\n0\t0.25 3\n"),
    "blanks below a header": ("a.txt", "y a b\n1 0.5 2\n0 0.25 3\n"),
    "blanks below a quoted header": ("a.txt", '"y" "a" "b"\r\n1 0.5 2\r\n0 0.25 3\r\n'),
    "tabs": ("a.tsv", CSV.replace(",", "\t")),
    "tabs, a header and CRLF": ("a.tsv", ("y,a,b\n" + CSV).replace(",", "\t").replace("\n", "\r\n")),
    "semicolons": ("a.csv", CSV.replace(",", ";")),
    "vertical bars": ("a.csv", CSV.replace(",", "|")),
    "a delimiter that Excel names": ("a.csv", "sep=;\n" + CSV.replace(",", ";")),
    "blanks around cells": ("a.csv", "1, 0.5, 2\n0 , 0.25 ,3\n"),
    "quoted numbers": ("a.csv", '"1","0.5","2"\n"0","0.25","3"\n'),
    "a BOM": ("a.csv", b"\xef\xbb\xbf" + CSV.encode()),
    "a BOM and a header": ("a.csv", b"\xef\xbb\xbfy,a,b\r\n" + CSV.replace("\n", "\r\n").encode()),
    "carriage returns alone": ("a.csv", CSV.replace("\n", "\r")),
    "lines of blanks": ("a.csv", "1,0.5,2\n   \n0,0.25,3\n \t\n"),
    "the end mark of DOS": ("a.csv", CSV + "\x1a"),
    "the header once more": ("a.csv", "y,a,b\n1,0.5,2\ny,a,b\n0,0.25,3\n"),
    "no line end": ("a.csv", CSV.rstrip()),
    "gzip without an ending": ("part-0", gzip.compress(CSV.encode())),
    "gzip under another name": ("a.csv", gzip.compress(CSV.encode())),
    "gzip in capitals": ("A.CSV.GZ", gzip.compress(CSV.encode())),
    "bzip2 without an ending": ("part-0", bz2.compress(CSV.encode())),
    "zstd without an ending": ("part-0", pa.compress(CSV.encode(), codec="zstd", asbytes=True)),
    "plain text with the name of a packed file": ("a.csv.gz", CSV),
}


@pytest.mark.parametrize(("name", "content"), READ.values(), ids=READ.keys())
def test_what_common_tools_write_is_read(tmp_path: Path, name: str, content: str | bytes) -> None:
    directory = channel(tmp_path, {name: content})
    table = read_table(directory)
    assert table.labels.tolist() == [row[0] for row in ROWS]
    assert table.features.tolist() == [row[1:] for row in ROWS]
    assert estimate_bytes(directory) > 0


def test_names_that_are_numbers_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_table(channel(tmp_path, {"a.csv": "target,0,1,2\n1,2,3,4\n"}))
    assert table.feature_names == ("0", "1", "2")
    assert "a header (target, 0, 1, 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["abc,7,3\n1,2,3\n", "?,0,1\n1,2,3\n", "none ,0,1\n1,2,3\n", "x,0.5,1\n1,2,3\n", "red,0,1\nblue,1,0\n", "y,3,4\n"],
)
def test_a_first_line_that_may_be_a_row_is_not_taken_for_a_header(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"train/a\.csv:1: .* is not a number"):
        read_table(channel(tmp_path, {"a.csv": text}))


def test_comments_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_table(channel(tmp_path, {"a.csv": "1,2\n# x\n0,2\n# y\n", "b.csv": "# z\n1,2\n"}))
    said = capsys.readouterr().err
    assert said.count("lines that begin with # are comments and are skipped") == 2


@pytest.mark.parametrize("word", ["NA", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "<NA>", "#N/A", ""])
def test_what_tools_write_for_a_missing_value_is_missing(tmp_path: Path, word: str) -> None:
    for text in (f"1,{word},2\n", f"1,0,1\n0, {word} ,2\n", f"1,{word},2\n1,2,3\n", f'1,0,1\n"0","{word}","2"\n'):
        table = read_table(channel(tmp_path, {"a.csv": text}))
        assert sum(map(math.isnan, table.features[:, 0].tolist())) == 1


@pytest.mark.parametrize("word", ["?", "-", ".", "missing", "\\N", "(null)", "#DIV/0!", "unknown"])
def test_another_word_for_a_missing_value_is_named_with_the_hyperparameter(tmp_path: Path, word: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(channel(tmp_path, {"a.csv": f"1,2,3\n0,{word},3\n"}))
    message, _, given = str(caught.value).partition("missing=")
    assert message.startswith("train/a.csv:2: column 2: ")
    columns = ColumnSpec(missing=tuple(json.loads(given)))
    assert math.isnan(read_table(tmp_path / "train", columns=columns).features[1, 0])


ODD_CELLS = {
    "1.234,5": "decimal point",
    "0,5": "decimal point",
    "1 234": "thousands without separators",
    "'0.5'": "double quotes",
    "50%": "without a percent sign",
    "$5.20": "without a currency sign",
    "2024-01-31": "write a time as seconds",
    "12:30:05": "write a time as seconds",
    "0.5 # good": "a line of its own",
    "3:0.5": "this looks like libsvm",
    "1.5D+03": "write exponents with e",
    "\u22125": "write a minus as '-'",
    "\u00a05": "no blanks but ordinary ones",
}


@pytest.mark.parametrize(("cell", "hint"), ODD_CELLS.items())
def test_a_number_written_in_another_way_gets_a_hint_of_its_own(tmp_path: Path, cell: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(channel(tmp_path, {"a.csv": f'1,2,3\n0,"{cell}",3\n'}))
    assert str(caught.value).startswith("train/a.csv:2: column 2: ")
    assert hint in caught.value.hint


ODD_LINES = {
    "a delimiter at the end": ("y,a\n1,2,\n", "remove the delimiter at the end"),
    "names of rows": ("y a\n1 1 2\n2 0 3\n", "row.names=FALSE"),
    "decimal commas and semicolons": ("1;0,5\n0;0,25\n", "decimal point"),
    "decimal commas and tabs": ("1\t0,5\n0\t0,25\n", "decimal point"),
    "another delimiter": ("1~0.5~2\n0~0.25~3\n", "delimiter to '~'"),
    "another delimiter below a header": ("y^a\n1^0.5\n", "delimiter to '^'"),
    "one column": ("1\n0\n", "text/libsvm"),
    "a doubled delimiter": ("1||2||3\n0||2||3\n", "one character"),
    "quotes around lines": ('"1,2,3"\n"0,2,3"\n', "remove the quotes"),
    "a title": ("My data\ny,a\n1,2\n", "start it with #"),
    "comments of another kind": ("% made by hand\n1,2,3\n", "start it with #"),
    "a header with another delimiter": ("y;a;b\n1,2,3\n", "remove the line"),
    "a delimiter at the end of the header": ("y,a,\n1,2\n", "the end of the header"),
    "an index and names that are numbers": (",y,0,1\n0,1,2,3\n", "index=False"),
    "an index and numbers": (",0,1\n0,1,2\n", "index=False"),
    "another word for a missing value at once": ("1,?\n0,2\n", 'nan","?"]'),
    "single quotes": ("'1','2'\n'0','3'\n", "double quotes"),
    "tuples": ("(1, 2, 3)\n(0, 2, 3)\n", "without them"),
    "a comment behind the cells of the first line": ("1,2,3 # ok\n0,2,3\n", "a line of its own"),
    "labels of text in libsvm": ("yes 1:0.5 2:1\nno 1:3\n", "a row is label"),
    "names in libsvm": ("1 a:0.5 b:1\n0 a:3\n", "a row is label"),
    "commas in libsvm": ("1,1:0.5,2:1\n0,1:3\n", "separate the pairs by blanks"),
}


@pytest.mark.parametrize(("text", "hint"), ODD_LINES.values(), ids=ODD_LINES.keys())
def test_lines_that_are_cut_in_another_way_get_a_hint(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(channel(tmp_path, {"a.csv": text}))
    assert hint in caught.value.hint


def test_the_delimiter_that_the_hint_names_is_the_one(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"a.csv": "1~0.5~2\n0~0.25~3\n"})
    assert read_table(directory, columns=ColumnSpec(delimiter="~")).features.tolist() == [[0.5, 2], [0.25, 3]]


def test_a_delimiter_at_the_end_of_all_lines_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_table(channel(tmp_path, {"a.csv": "y,a,\n1,2,\n0,3,\n"})).features.shape == (2, 2)
    assert (
        "a.csv:1: lines end with a delimiter: column 3, after it, is a feature without values"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("cell", ["1,234", "0,5", "50%", "$5", "1_000", "\u22125"])
def test_a_column_of_numbers_in_another_spelling_is_no_column_of_texts(tmp_path: Path, cell: str) -> None:
    directory = channel(tmp_path, {"a.csv": f'y,a\n1,"{cell}"\n0,"{cell}"\n'})
    with pytest.raises(DataError, match=r"a\.csv:2: column 2 \('a'\): .* is not a number\n  hint: write "):
        read_table(directory, columns=ColumnSpec(texts=True))
    table = read_table(directory, columns=ColumnSpec(texts=True, categorical=("a",)))
    assert table.coding.features == {0: (cell,)}


@pytest.mark.parametrize("text", ["0,1,2,target\n1,2,3,0\n", "target,0,1\n1,2,3\n", "y,1,2,3\n0,2,3,red\n"])
def test_names_that_are_numbers_are_names_where_texts_are_taken_too(tmp_path: Path, text: str) -> None:
    table = read_table(channel(tmp_path, {"a.csv": text}), columns=ColumnSpec(texts=True))
    assert len(table.labels) == 1
    assert table.feature_names == tuple(text.partition("\n")[0].split(",")[1:])


def test_colours_are_no_comments(tmp_path: Path) -> None:
    table = read_table(channel(tmp_path, {"a.csv": "#ff0000,1\n#00ff00,2\n"}), columns=ColumnSpec(texts=True))
    assert len(table.labels) == 2
    with pytest.raises(DataError, match="empty files"):
        read_table(channel(tmp_path / "b", {"a.csv": "# a\n# b\n"}), columns=ColumnSpec(texts=True))


# ---- libsvm ----


@pytest.mark.parametrize("first", ["1\n", "1:0.5\n".replace(":0.5", ""), "# a\n1\n\n0\n", "1 # nothing\n", " 1 \r\n"])
def test_libsvm_whose_first_rows_have_no_feature_is_libsvm(tmp_path: Path, first: str) -> None:
    table = read_table(channel(tmp_path, {"part-0": first + "0 1:0.5 3:2\n"}))
    assert table.features.shape[1] == 4
    assert table.labels[0] == 1


def test_a_content_type_of_csv_refuses_libsvm_whose_first_row_has_no_feature(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"part-0": "1\n0 1:0.5\n"})
    with pytest.raises(DataError, match=r"train/part-0:2 is libsvm, but the channel's content type is 'text/csv'"):
        read_table(Channel("train", directory, content_type="text/csv"))


# ---- what is no table ----


def _zip(names: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return sink.getvalue()


def _saved(save: object) -> bytes:
    sink = io.BytesIO()
    save(sink)  # type: ignore[operator]
    return sink.getvalue()


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo("a.csv")
        info.size = len(CSV)
        archive.addfile(info, io.BytesIO(CSV.encode()))
    return sink.getvalue()


TABLE = pa.table({"y": [1.0, 0.0], "a": [0.5, 0.25]})
FOREIGN: dict[str, tuple[bytes, str, str]] = {
    "zip": (_zip({"a.csv": CSV.encode()}), "a zip archive", "unpack it"),
    "xlsx": (_zip({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), r"an Excel workbook \(\.xlsx\)", "CSV UTF-8"),
    "xls": (bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 504, r"an Excel workbook \(\.xls\)", "CSV UTF-8"),
    "npz": (_saved(lambda sink: np.savez(sink, x=np.ones(3))), r"NumPy arrays \(\.npz\)", "savetxt"),
    "npy": (_saved(lambda sink: np.save(sink, np.ones(3))), r"a NumPy array \(\.npy\)", "savetxt"),
    "torch": (_zip({"archive/data.pkl": b"", "archive/version": b"3"}), r"a file of torch\.save", "write CSV"),
    "a pickle": (pickle.dumps(ROWS), "a Python pickle", "write CSV"),
    "a pickle of protocol 2": (pickle.dumps(ROWS, protocol=2), "a Python pickle", "write CSV"),
    "a packed pickle": (zlib.compress(pickle.dumps(ROWS)), "packed with zlib", "write CSV"),
    "tar": (_tar(), "a tar archive", "unpack it"),
    "tar within gzip": (gzip.compress(_tar()), "a tar archive", "unpack it"),
    "xz": (lzma.compress(CSV.encode()), "packed with xz", "gzip"),
    "JSON lines": (b'{"label": 1, "x": 0.5}\n{"label": 0, "x": 1}\n', "JSON", "write CSV"),
    "JSON": (b'[\n {"label": 1}\n]\n', "JSON", "write CSV"),
    "JSON arrays": (b"[1, 0.5]\n[0, 1]\n", "JSON", "write CSV"),
    "Feather": (_saved(lambda sink: pa.feather.write_feather(TABLE, sink)), "an Arrow or Feather file", "write CSV"),
    "ORC": (_saved(lambda sink: pa.orc.write_table(TABLE, sink)), "an ORC file", "write CSV"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "HTML or XML", "fetch the data itself"),
    "an error of S3": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "HTML or XML", "fetch"),
    "ARFF": (b"% a comment\n@RELATION iris\n@DATA\n1,2\n", r"an ARFF file \(Weka\)", "write CSV"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS", "git lfs pull"),
    "UTF-16": (CSV.encode("utf-16"), "not UTF-8 text: it is UTF-16", "CSV UTF-8"),
    "UTF-16 without a mark": (CSV.encode("utf-16-le"), "not UTF-8 text: it is UTF-16", "CSV UTF-8"),
    "UTF-16, the other way": (CSV.encode("utf-16-be"), "not UTF-8 text: it is UTF-16", "CSV UTF-8"),
    "a PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image", "reads tables"),
    "gzip within gzip": (gzip.compress(gzip.compress(CSV.encode())), "packed twice", "unpack it once"),
    "a table of HTML": (b"<table><tr><td>1</td></tr></table>", "HTML or XML", "fetch"),
    "zeros": (b"\0" * 512, "nothing but bytes of zero", "upload it again"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file", "write CSV"),
}


@pytest.mark.parametrize("name", ["part-0", "a.csv", "a.parquet", "a.libsvm"])
@pytest.mark.parametrize(("content", "what", "hint"), FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_no_table_is_refused_with_what_it_is_and_what_to_do(
    tmp_path: Path, content: bytes, what: str, hint: str, name: str
) -> None:
    with pytest.raises(DataError, match=rf"train/{name} is {what}") as caught:
        read_table(channel(tmp_path, {name: content}))
    assert hint in caught.value.hint


def test_what_is_no_table_is_refused_whatever_the_content_type_says(tmp_path: Path) -> None:
    directory = channel(tmp_path, {"part-0": pickle.dumps(ROWS)})
    for text in ("text/csv", "text/libsvm", "application/x-parquet", "application/x-recordio-protobuf"):
        with pytest.raises(DataError, match=r"train/part-0 is a Python pickle"):
            read_table(Channel("train", directory, content_type=text))


@pytest.mark.parametrize(
    "text",
    [
        "[y],[a]\n1,2\n",
        "<y>,a\n1,2\n",
        "{y},a\n1,2\n",
        "x,^\n1,2\n",
        "RDXa,b\n1,2\n",
        "PARENT,ORC\n1,2\n",
        "ORC,b\n",
        "GIF,b\n1,2\n",
        "<NA>,1\n",
    ],
)
def test_names_of_columns_that_begin_oddly_are_names(text: str) -> None:
    assert identify_unsupported(text.encode()) is None


def test_parquet_is_known_without_an_ending_and_not_within_gzip(tmp_path: Path) -> None:
    content = _saved(lambda sink: pa.parquet.write_table(TABLE, sink))
    assert read_table(channel(tmp_path, {"part-0": content})).features.tolist() == [[0.5], [0.25]]
    with pytest.raises(DataError, match=r"train/a\.parquet\.gz is Parquet within another compression"):
        read_table(channel(tmp_path / "packed", {"a.parquet.gz": gzip.compress(content)}))


def test_a_name_that_says_parquet_and_a_content_that_does_not(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet: it begins with '1,0\.'") as caught:
        read_table(channel(tmp_path, {"a.parquet": CSV}))
    assert "name it by what it holds" in caught.value.hint


def test_a_mark_is_more_than_some_letters() -> None:
    assert compression_from_magic(b"BZh,a\n1,2\n") is None
    assert compression_from_magic(bz2.compress(b"")) == "bz2"


# ---- channels ----


def test_a_channel_that_nobody_reads_is_said_with_the_one_that_may_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    log_unread(["train", "validaton", "code", "model", "extra"], ["train"])
    assert capsys.readouterr().err == (
        "trainbox: the channel 'extra' is not read\n"
        "trainbox: the channel 'validaton' is not read - did you mean 'validation'?\n"
    )
    log_unread(["train", "validation", "test"], ["train", "validation"])
    assert capsys.readouterr().err == "trainbox: the channel 'test' is not read\n"
