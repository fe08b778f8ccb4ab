"""CSV and JSON Lines in the dialects in which people export them."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import blocks, tables, text_tables
from storage.encodings import Decoder, read_utf8
from storage.errors import UserError
from storage.json_lines import read_json_lines
from storage.text_tables import read_csv

TEXT = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=8) | st.sampled_from(
    ["a,b", "a;b", "a\tb", "a|b", 'say "x"', "two\nlines", "007", "1,5"]
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1")


def as_utf8(content: bytes) -> tuple[bytes, str | None]:
    return Decoder()(content)


def rows(text: str, name: str = "items.csv") -> tuple[list[dict[str, object]], list[str]]:
    read = read_csv if name.endswith(".csv") else read_json_lines
    (block,) = read([(text.encode(), True)], name)
    return block.rows.to_dicts(), block.bad


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.tuples(TEXT, TEXT, st.floats(0, 1e6).map(lambda number: round(number, 2))), max_size=6),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(ENCODINGS),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    newline=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_a_table_comes_back_from_every_dialect(table, separator, encoding, quoting, newline, last) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=newline)
    writer.writerow(["item_id", "title", "price"])
    for n, (title, _, price) in enumerate(table):
        writer.writerow([f"p-{n}", title, price if separator == "," else str(price).replace(".", ",")])
    text = out.getvalue() if last else out.getvalue().removesuffix(newline)
    content, guess = as_utf8(text.encode(encoding))
    ((frame, bad, _),) = read_csv([(content, True)], "items.csv")
    assert bad == []
    assert frame["item_id"].to_list() == [f"p-{n}" for n in range(len(table))]
    known = guess is None or guess.endswith("Latin-1")
    if encoding == "latin-1":  # some texts are UTF-8 by chance, or nearly so
        known = guess is not None and guess.endswith(("Latin-1", "Windows-1252"))
    if known or text.isascii():
        assert frame["title"].to_list() == [title or None for title, _, _ in table]
    if table:
        assert frame["price"].to_list() == [price for _, _, price in table]


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_table_or_one_sentence(content: bytes) -> None:
    for read in (read_csv, read_json_lines):
        with contextlib.suppress(UserError):
            list(read([(as_utf8(content)[0], True)], "items"))


@pytest.mark.parametrize("mark", ["", "sep=;\n", "\n\n"], ids=["plain", "excel", "empty lines"])
def test_the_separator_is_that_of_the_header(mark: str) -> None:
    assert rows(mark + 'item_id;"title, or name";media\n1;"a;b, c";x.jpg|y.jpg\n') == (
        [{"item_id": "1", "title, or name": "a;b, c", "media": "x.jpg|y.jpg"}],
        [],
    )


def test_rows_that_are_none_are_told_with_their_line() -> None:
    text = 'item_id,title\n1,a\n2,b,extra\n\n"3\n",c\n4\n,\n5,e,,\n6,f\n'
    found, bad = rows(text)
    assert [row["item_id"] for row in found] == ["1", "3\n", "5", "6"]  # in their order, surplus empty fields left out
    other = "has another number of fields ({}) than the header (2)"
    assert bad == [f"line 3 {other.format(3)}", f"line 7 {other.format(1)}"]


def test_a_row_that_is_none_may_have_a_long_field() -> None:
    found, bad = rows(f'item_id,title\n1,a\n2,"{"x" * 200_000}",extra\n3,c\n')
    assert [row["item_id"] for row in found] == ["1", "3"]
    assert bad == ["line 3 has another number of fields (3) than the header (2)"]


def test_quotes_behind_backslashes_are_quotes() -> None:
    lines = [r'1,"a \"quoted\" word"', r'2,"\"all\""', r'3,"27\", black"', r'4,"C:\\"', "5,plain", r'6,"\N"']
    found, bad = rows("item_id,title\n" + "\n".join(lines) + "\n")
    titles = ['a "quoted" word', '"all"', '27", black', "C:\\", "plain", "\\N"]
    assert ([row["title"] for row in found], bad) == (titles, [])


def test_backslashes_at_the_end_of_fields_are_backslashes() -> None:
    found, _ = rows('item_id,title,note\n1,"C:\\","x"\n2,"a ""b\\"" c","y"\n3,5\\" wide,z\n')
    assert [row["title"] for row in found] == ["C:\\", 'a "b\\" c', '5\\" wide']


def test_fields_of_columns_without_a_name_may_be_missing() -> None:
    assert rows("item_id,title,,\n1,a\n2,b,,\n3\n") == (
        [
            {"item_id": "1", "title": "a", "Unnamed: 2": None, "Unnamed: 3": None},
            {"item_id": "2", "title": "b", "Unnamed: 2": None, "Unnamed: 3": None},
        ],
        ["line 4 has another number of fields (1) than the header (4)"],
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('item_id,title\n1,a\n2,"b\n3,c\n', 3),
        ('item_id,title,media\n1,"a\nb",c\n2,"b,c\n3,c,d\n', 4),
        ('item_id,title\n1,a\n"2,b\n3,c', 3),
    ],
)
def test_a_quote_that_is_never_closed_is_told_with_its_line(text: str, line: int) -> None:
    with pytest.raises(UserError, match=f"on line {line} that is never closed"):
        rows(text)


def test_lines_that_a_stray_quote_joins_count_one_by_one() -> None:
    found, bad = rows('item_id,title,media\n1,a,b\n2,"5 inch,b\n3,c,"d"\n4,e,f\n')
    assert [row["item_id"] for row in found] == ["1", "4"]
    assert [line[:6] for line in bad] == ["line 3", "line 4"]


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("\n", "is empty"), ("item_id,title,title\n1,a,b\n", "two columns 'title'")]
)
def test_a_header_that_cannot_be_used_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        rows(text)


def test_numbers_booleans_and_texts() -> None:
    found, _ = rows("item_id;title;price;sold;size;none\n007;007;1,5;True;1;\n8;8;nan;false;S;\n")
    assert found == [
        {"item_id": "007", "title": "007", "price": 1.5, "sold": 1.0, "size": "1", "none": None},
        {"item_id": "8", "title": "8", "price": None, "sold": 0.0, "size": "S", "none": None},
    ]


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["1.002", "12,50", "-1.234.002,5"], [1002, 12.5, -1234002.5]),
        (["1.002", "3.004"], [1.002, 3.004]),  # without a comma a point may be a decimal one
        (["1.002", "3.5", "12,50"], [1.002, 3.5, 12.5]),
        (["0.125", "12,50"], [0.125, 12.5]),
        (["1,5", "2"], [1.5, 2]),
    ],
)
def test_points_part_thousands_where_commas_are_decimal(cells: list[str], numbers: list[float]) -> None:
    found, _ = rows("item_id;price\n" + "".join(f"{n};{cell}\n" for n, cell in enumerate(cells)))
    assert [row["price"] for row in found] == numbers


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "_c0", "...1"])
def test_the_index_of_a_data_frame_is_no_column(tmp_path: Path, name: str) -> None:
    uri = tmp_path / "interactions.csv"
    uri.write_text(f"{name},user_id,item_id,timestamp\n0,u,a,1\n")
    assert blocks.scan(str(uri)).rows.columns == blocks.columns(str(uri)) == ["user_id", "item_id", "timestamp"]


def test_the_index_that_arrow_keeps_is_no_column(tmp_path: Path) -> None:
    uri = str(tmp_path / "items.parquet")
    pl.DataFrame({"item_id": ["a"], "__index_level_0__": [3]}).write_parquet(uri)
    assert blocks.scan(uri).rows.columns == blocks.columns(uri) == ["item_id"]


def test_an_encoding_that_is_guessed_is_told(tmp_path: Path) -> None:
    cases = ("é".encode(), None), ("é".encode("cp1252"), "Windows-1252"), (b"\x81", "Latin-1")
    for case, (content, note) in enumerate(cases):
        uri = tmp_path / f"items-{case}.csv"
        uri.write_bytes(b"item_id\n" + content + b"\n")
        told = f"{uri} is not UTF-8 and was read as {note}: if letters look wrong, save it as UTF-8"
        assert blocks.scan(str(uri)).notes == ([told] if note else [])
    assert as_utf8(codecs.BOM_UTF16_BE + "é".encode("utf-16-be")) == ("é".encode(), None)


def test_one_bad_byte_does_not_garble_the_other_letters(tmp_path: Path) -> None:
    uri = tmp_path / "items.csv"
    uri.write_bytes("item_id,title\nä,é \ufffd\nb,".encode() + b"caf\xe9 \n" + "c,ü\n".encode() + b"\xf0\x9f")
    found = blocks.scan(str(uri))
    assert found.rows["title"].to_list() == ["é \ufffd", "caf\ufffd ", "ü"]
    told = "is no UTF-8 in 2 places, the first on line 3, read as \ufffd: if letters look wrong, save it as UTF-8"
    assert found.notes == [f"{uri} {told}"]
    marked, told = as_utf8(codecs.BOM_UTF8 + b"item_id\ncaf\xe9\n")
    assert (marked.decode(), told) == (
        "item_id\ncaf\ufffd\n",
        "is no UTF-8 in 1 places, the first on line 2, read as \ufffd",
    )
    few = "é,".encode() + "é à ü".encode("cp1252")  # more bytes that are no UTF-8 than characters that are
    assert as_utf8(few) == (few.decode("cp1252").encode(), "is not UTF-8 and was read as Windows-1252")


def test_a_quote_that_takes_in_other_rows_is_told(tmp_path: Path) -> None:
    rows = [f"{n},t {n}" for n in range(40)]
    rows[5], rows[20] = '5,"27 inch', '20,"27 inch'
    uri = tmp_path / "items.csv"
    uri.write_text("item_id,title\n" + "\n".join(rows) + "\n")
    (note,) = blocks.scan(str(uri)).notes
    assert "has a title of 16 lines, which begins with '27 inch'" in note


def test_json_lines_of_mixed_types_become_text_and_bad_lines_are_told() -> None:
    text = '{"item_id": 1, "media": "a.jpg", "x": 1}\n\n{"item_id": "b", "media": ["a.jpg"], "x": NaN}\nbroken\n[1]\n'
    found, bad = rows(text + '{"item_id": "c", "media": {"uri": "a"}, "x": true}\n', "items.jsonl")
    assert bad == ["line 4 is no JSON object", "line 5 is no JSON object"]
    assert [row["item_id"] for row in found] == ["1", "b", "c"]
    assert [row["media"] for row in found] == ["a.jpg", '["a.jpg"]', '{"uri": "a"}']


def test_a_key_that_an_object_has_twice_keeps_both_values() -> None:
    found, _ = rows('{"item_id": "1", "attributes": {"colour": "red", "colour": "blue"}}\n', "items.jsonl")
    assert found[0]["attributes"] == '{"colour": ["red", "blue"]}'


@pytest.mark.parametrize(("text", "says"), [("", "no line"), ("x", "no line"), ('[{"item_id": 1}]', "one JSON array")])
def test_what_is_no_json_lines_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        rows(text, "items.jsonl")


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl", "items.parquet"])
def test_errors_are_not_those_of_the_parser(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'\x00\xff"junk')
    with pytest.raises(UserError) as caught:
        tables.check(str(tmp_path))
    assert "polars" not in str(caught.value).lower()
    assert "truncate" not in str(caught.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_equal_lines_that_are_no_rows_have_their_own_numbers(newline: str) -> None:
    text = newline.join(["item_id,title", "1", "1,a", "1", "1", "11,b", "", '"1', '"', "1", ""])
    assert [line.partition(" has")[0] for line in rows(text)[1]] == [f"line {n}" for n in (2, 4, 5, 8, 9, 10)]


FIELD = st.sampled_from(["", " ", "x", "1"])


@settings(max_examples=80, deadline=None)
@given(table=st.lists(st.lists(FIELD, min_size=1, max_size=5), min_size=1, max_size=6))
def test_surplus_fields_are_left_out_where_they_are_empty(table: list[list[str]]) -> None:
    text = "".join(",".join([f"p{n}", *fields]) + "\n" for n, fields in enumerate(table))
    found, bad = rows("item_id,title,note\n" + text)
    fine = [len(fields) >= 2 and not any(field.strip() for field in fields[2:]) for fields in table]
    assert [row["item_id"] for row in found] == [f"p{n}" for n, kept in enumerate(fine) if kept]
    assert [row["title"] or "" for row in found] == [
        fields[0] for fields, kept in zip(table, fine, strict=True) if kept
    ]
    assert [line.split(" ", 2)[1] for line in bad] == [str(n + 2) for n, kept in enumerate(fine) if not kept]
    assert all("than the header (3)" in line for line in bad)


def test_a_separator_at_the_end_of_every_line_costs_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "_fields", lambda text, separator: pytest.fail("row by row"))
    found, bad = rows("item_id,title\n" + "".join(f"{n},vase,,\n" for n in range(9)))
    assert (len(found), bad, list(found[0])) == (9, [], ["item_id", "title"])


CELL = st.sampled_from(["", "x", "1", "a,b", 'say "x"', "two\nlines", "é", "tail\n", '"'])


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=12),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    newline=st.sampled_from(["\n", "\r\n"]),
    stray=st.booleans(),
)
def test_a_file_in_blocks_is_the_file_as_a_whole(
    table: list[list[str]], sizes: list[int], newline: str, stray: bool
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=newline).writerows([["item_id", "title", "note"], *table])
    content = (out.getvalue() + ('x,5" wide,y' + newline) * stray).encode()
    (whole,) = read_csv([(content, True)], "items.csv")
    ends = [len(content.partition(b"\n")[0]) + 1]
    while ends[-1] < len(content):
        ends.append(ends[-1] + sizes[len(ends) % len(sizes)])
    parts = [(content[a:b], b >= len(content)) for a, b in zip([0, *ends], ends, strict=False)]
    blocks_of = list(read_csv(parts, "items.csv", whole.numbers))
    assert pl.concat([block.rows for block in blocks_of]).equals(whole.rows)
    assert [line for block in blocks_of for line in block.bad] == whole.bad


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_in_blocks_is_the_text_as_a_whole(encoding: str) -> None:
    content = "item_id,title\nä,é€😀\nö,ü\n".replace("€😀", "" if encoding == "latin-1" else "€😀").encode(encoding)
    whole = as_utf8(content)[0]
    for size in range(1, 12):
        assert b"".join(block for block, _, _ in read_utf8(io.BytesIO(content), size)) == whole


def test_damage_is_told_with_its_line_in_every_block() -> None:
    content = "item_id\né\n".encode() + b"a\n" * 20 + b"caf\xe9\n"
    notes = [note for _, note, _ in read_utf8(io.BytesIO(content), 8) if note]
    assert notes == ["is no UTF-8 in 1 places, the first on line 23, read as \ufffd"]


def test_a_quote_that_is_never_closed_is_told_with_its_line_in_later_blocks() -> None:
    parts = [(b"item_id,title\n1,a\n", False), (b'2,b\n3,"c\n', False), (b"4,d\n", True)]
    with pytest.raises(UserError, match="on line 4 that is never closed"):
        list(read_csv(parts, "items.csv"))


def test_what_a_table_says_of_numbers_holds_for_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    for n, cell in enumerate(("1.002,5", "1.002", "x")):
        (tmp_path / "items" / f"{n}.csv").write_text(f"item_id;price\n{n};{cell}\n")
    assert blocks.scan(str(tmp_path / "items")).rows["price"].to_list() == [1002.5, 1002, None]


def test_lines_of_json_are_numbered_over_all_blocks() -> None:
    parts = [(b'{"item_id": "a"}\n{"item', False), (b'_id": "b"}\nbroken\n', False), (b'{"item_id": 3}', True)]
    found = list(read_json_lines(parts, "items.jsonl"))
    assert [row["item_id"] for block in found for row in block.rows.to_dicts()] == ["a", "b", 3]
    assert [line for block in found for line in block.bad] == ["line 3 is no JSON object"]


@pytest.mark.parametrize("name", ["items.csv", "items.csv.gz", "items.jsonl"])
def test_an_empty_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    with pytest.raises(UserError, match=r"is empty: its first line must name|has no line that is a JSON object"):
        tables.check(str(tmp_path))


def test_a_file_that_ends_with_a_block_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "items.csv").write_bytes(b"item_id\nab\ncd\n\xc3\xa9")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8)
    assert blocks.scan(str(tmp_path / "items.csv")).rows["item_id"].to_list() == ["ab", "cd", "é"]
