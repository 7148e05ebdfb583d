"""Prompt lists in their published forms, and everything that can be wrong with them."""

import csv
import hashlib
import io
import json
import threading
import time
import tracemalloc
import warnings

import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from memsub.__main__ import main
from memsub.io import downloads, lists
from memsub.io.lists import FORMS, plain_name, read_rows
from memsub.measure.metrics import SSCD
from memsub.models import MODELS, ModelInfo
from memsub.prompts import Prompts, load_prompts, read_prompts
from memsub.world import WORLDS
from memsub_extra.archives import recovery, session
from memsub_extra.prompt_lists import kinds
from memsub_extra.prompt_lists.captions import near_duplicates, too_long, without_near_duplicates
from servers import serving

CAPTIONS = ["A red house; by night", 'The "Best" Podcast', "Ein Haus am Wasser, Öl"]


def test_the_published_forms(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(CAPTIONS) + "\n\n", encoding="utf-8")
    rows = [{"caption": c, "index": i, "url": f"http://x/{i}.jpg"} for i, c in enumerate(CAPTIONS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pd.DataFrame({"Caption": CAPTIONS, "URL": "http://x/1.jpg", "type": ["VM", "TM", "N"], "Index": [5, 6, 7]})
    table.to_csv(tmp_path / "a.csv", sep=";")
    table.rename(columns=str.lower).rename(columns={"type": "overfit_type"}).to_parquet(tmp_path / "a.parquet")
    assert read_prompts(tmp_path / "a.txt")["prompt"].tolist() == CAPTIONS
    jsonl = read_prompts(tmp_path / "a.jsonl")
    assert jsonl["prompt"].tolist() == CAPTIONS
    assert jsonl["url"][2] == "http://x/2.jpg"
    for name in ("a.csv", "a.parquet"):
        found = read_prompts(tmp_path / name)
        assert found["prompt"].tolist() == CAPTIONS[:2]  # the third is marked as not memorized
        assert found["kind"].tolist() == ["verbatim", "template"]
        assert found["index"].tolist() == [5, 6]
    assert load_prompts(tmp_path / "a.csv").memorized == CAPTIONS[:2]
    with pytest.raises(
        ValueError, match=r"2 captions are memorized in .*a\.csv and heldout in .*a\.txt, such as 'A red"
    ):
        load_prompts({"memorized": tmp_path / "a.csv", "heldout": tmp_path / "a.txt"})
    (tmp_path / "b.txt").write_text(f"{CAPTIONS[0]}\nA kettle\nA sock\n")
    with pytest.warns(UserWarning, match=r"1 captions are memorized in .*a\.csv and heldout in .*b\.txt"):
        together = load_prompts({"memorized": tmp_path / "a.csv", "heldout": tmp_path / "b.txt"})
    assert [str(i) for i in together.memorized_rows["index"]] == ["5", "6"]  # names of folders of training images


WITHIN = ["by\u2028her", "Sofa\x85 grey", "Page\x0cbreak", "vertical\x0btab", "file\x1cseparator", "plain"]
"""Captions with characters at which Python's `splitlines` splits, and no text editor does."""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_line_is_what_a_text_editor_shows_as_one(tmp_path, end, encoding):
    lists = {
        "a.txt": WITHIN,
        "escaped.jsonl": [json.dumps({"caption": c}) for c in WITHIN],
        "a.jsonl": [json.dumps({"caption": c}, ensure_ascii=False) for c in WITHIN],
        "a.csv": ["caption;url", *(f"{c};x" for c in WITHIN)],
        "quoted.csv": ['"caption","url"', *(f'"{c}","x"' for c in WITHIN)],
    }
    for name, lines in lists.items():
        (tmp_path / name).write_bytes((end.join(lines) + end).encode(encoding))
        assert read_prompts(tmp_path / name)["prompt"].tolist() == WITHIN, name


def test_captions_that_look_like_missing_values_stay(tmp_path):
    captions = ["NA", "null", "None", "nan", "N/A", "true", "007", "1e5", "-"]
    (tmp_path / "a.csv").write_text("caption,url\n" + "".join(f"{c},x\n" for c in captions))
    (tmp_path / "b.csv").write_text("caption\n" + "\n".join(captions))
    (tmp_path / "a.txt").write_text("\n".join(captions))
    pd.DataFrame({"caption": captions}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "b.csv", "a.txt", "a.parquet"):
        assert read_prompts(tmp_path / name)["prompt"].tolist() == captions, name


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.txt", "one\n\n \ntwo\n\n", "lines 2, 3"),
        ("a.jsonl", '{"caption": "one"}\n{"caption": null}\n{"caption": " "}\n\n{"caption": "two"}\n', "lines 2, 3, 4"),
        ("a.csv", 'caption,url\n"one",x\n,y\n\n"two",z\n\n', "lines 3, 4"),
        ("a.csv", 'url,caption\nx,"one"\ny,\nz,"two"\n', "line 3"),
        ("a.txt", "one\n" + "\n" * 30 + "two", "lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 20 more"),
    ],
)
def test_rows_without_a_caption_are_named(tmp_path, name, content, where):
    (tmp_path / name).write_text(content)
    with pytest.warns(UserWarning, match=rf"{name}: no caption in {where}\."):
        assert read_prompts(tmp_path / name)["prompt"].tolist() == ["one", "two"]


def test_quotes_and_tabs_of_some_lines_stay(tmp_path):
    for captions in (['"Live, Laugh"', "a cat"], ['"Live, Laugh"'], ['"a" and "b"', '"c"'], ["a\tcat", "a dog"]):
        (tmp_path / "a.txt").write_text("\n".join(captions))
        assert read_prompts(tmp_path / "a.txt")["prompt"].tolist() == captions


def test_tables_as_programs_write_them(tmp_path):
    """Quotes, line breaks and the other separator within a caption; a suffix in capitals; one column alone."""
    lists = {
        "A.CSV": ("Caption\na cat; black\n", ["a cat; black"]),
        "semicolon.csv": ('caption,"url; old"\n"a cat, black; white",x\n', ["a cat, black; white"]),
        "break.csv": (
            'caption,url\n"a cat\non a mat",x\nThe "Best" Podcast,y\n',
            ["a cat\non a mat", 'The "Best" Podcast'],
        ),
        "blank.csv": ("\ncaption;index\na cat;07\n", ["a cat"]),
    }
    for name, (content, captions) in lists.items():
        (tmp_path / name).write_text(content)
        assert read_prompts(tmp_path / name)["prompt"].tolist() == captions, name
    assert read_prompts(tmp_path / "blank.csv")["index"].tolist() == ["07"]  # the name of a folder, as it stands there


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.txt", b"", "holds no captions"),
        ("a.txt", b" \n\n", "holds no captions"),
        ("a.txt", b"\xff\xfe\x00\xd8", "is not UTF-8"),  # half a character of UTF-16
        ("a.txt", b"one\n\ntw\xf6\n", "is not UTF-8 text from line 3 on"),
        ("a.txt", b"a\n\x00\x01\x02", "line 2, holds NUL characters and no captions"),
        ("a.jsonl", b'{"caption": "a"}\n{"cap', "line 2, is no JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1, is no JSON"),
        ("a.jsonl", b'{"words": "a"}', "no column 'caption'; its columns are: words"),
        ("a.jsonl", b'{"caption": "a"}\n{"words": "b"}', "line 2, has no column 'caption'"),
        ("a.jsonl", b'["a cat", 1]\n["a dog", 2]\n', 'line 1, is no JSON object and no string: ["a cat", 1]'),
        ("a.json", b'["a cat", 1]', "item 2, is no JSON object and no string: 1"),
        ("a.json", b'{"caption": ["a", "b"], "index": [1]}', "several lengths (caption: 2, index: 1)"),
        ("a.json", b'{"caption": ["a"], "url": "x"}', "several lengths (caption: 1, url: no list)"),
        ("a.json", b'{"data": [{"caption": "a"}]}', "no column 'caption'; its columns are: data"),
        ("a.json", b'[\n  "a",\n  "b"\n', "line 3, is no JSON"),
        ("a.json", b"3", "line 1, is no JSON object and no string: 3"),
        ("a.json", b'[{"caption": "a\\ud800"}]', "item 1, has a caption that is no text"),
        ("a.jsonl", b'{"caption": "a"}\n{"caption": "a\\u0000"}', "line 2, has a caption that is no text"),
        ("a.jsonl", b'{"caption": "a", "type": ["VM"]}', "line 1, has a type that is no text"),
        ("a.jsonl", b'{"caption": "a"}\n{"caption": 3}', "line 2, has a caption that is no text: 3"),
        ("a.jsonl", b'{"caption": ["a", "b"]}\n{"caption": "c"}', "line 1, has a caption that is no text"),
        ("a.jsonl", b'{"caption": "a", "caption": "b"}', "line 1, has the columns 'caption' and 'caption'"),
        ("a.jsonl", b'{"caption": "a", "index": "../x"}', "line 1, has the index '../x', which is no plain name"),
        ("a.csv", b"caption,index\na,1\nb,..\n", "line 3, has the index '..'"),
        ("a.csv", b"URL;type\nx;VM\n", "no column 'caption'; its columns are: url, type"),
        ("a.csv", b"", "no table"),
        ("a.csv", b"caption,url\na cat, black,x\n", "line 2, has 3 values and the header 2"),
        ("a.csv", b"caption\na cat, black\n", "line 2, has 2 values and the header 1"),
        ("a.csv", b'caption;url\na;x\n"b: the "new" video;x\nc;y\n', "line 3, is no row of values separated by ';'"),
        ("a.csv", b"caption,url\n", "holds no captions"),
        ("a.csv", b"caption,type\na,N\n", "holds no captions that it does not mark as not memorized"),
        ("a.parquet", b"PAR1 half a file", "truncated or no parquet"),
        ("a.xls", b"x", "unknown kind '.xls'"),
        ("a.tsv", b"a cat\thttp://x\n", "no column 'caption'; its columns are: a cat, http://x"),
        ("a.txt", b"caption;url\na cat;x\n", "begins with the header of a table, 'caption;url': name it .csv"),
        ("a.txt", b'{"caption": "a"}\n{"caption": "b"}', "is JSON inside: name it .json"),
        ("a.txt", b'[\n"a",\n"b"]', "is JSON inside: name it .json"),
        (
            "a.txt",
            b'"a cat"\n"a dog, ""Rex"""\n',
            "every line has quotes around it, which would be read",
        ),
        ("a.txt", b"'a cat',\n'a dog',\n", "every line has quotes around it"),
        ("a.txt", b"a cat\t1\n\na dog\t2\n", "every line has a tab in it"),
        ("a.csv", b"PAR1", "is parquet inside, not text"),
        ("a.csv", b"PK\x03\x04", "is a zip archive or an Excel sheet inside"),
        ("a.csv.gz", b"\x1f\x8b", "unknown kind '.gz': unpack or convert it"),
        ("a.csv", b"prompt,text\na,b\n", "has the columns 'prompt' and 'text', which mean the same"),
        ("a.txt", b"one\n" + b"x" * 10_001, "line 2, has a caption of 10,001 characters, more than 10,000"),
        ("a.csv", b"caption,index\n" + b"x" * 140_000 + b",3\n", "line 2, is no row of values"),
        ("captions", b"a cat\n", "it has no suffix"),
        ("a.txt", b"a cat\n\na dog\thttps://x.org/1.jpg\n", "line 3, holds an address beside its caption"),
        ("a.txt", b"http://x.org/1.jpg\ta cat\n", "line 1, holds an address beside its caption"),
        ("a.txt", b"a cat, https://x.org/1.jpg\na dog, https://x.org/2.jpg\n", "Name the file .tsv or .csv, and"),
        ("a.txt", b"https://x.org/1.jpg\nhttps://x.org/2.jpg\n", "line 1, holds an address"),
    ],
)
def test_a_file_that_is_no_list_is_named(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_prompts(tmp_path / name)
    assert name in str(error.value)
    assert named in str(error.value)
    if "that it does not mark" not in named:
        assert FORMS in str(error.value)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"Caption": ["A cat"], "caption": ["a cat"]}, "has the columns 'Caption' and 'caption', which mean the same"),
        ({"caption": ["a"], "type": ["x"], "overfit_type": ["MV"]}, "has the columns 'type' and 'overfit_type'"),
        ({"0": ["a cat"], "1": [2]}, "no column 'caption'; its columns are: 0, 1"),
        ({"caption": ["a", "b"], "index": ["1", "b/c"]}, "row 2, has the index 'b/c'"),
        ({"caption": [1, 2]}, "row 1, has a caption that is no text: 1"),
    ],
)
def test_parquet_of_another_shape_is_named(tmp_path, columns, named):
    pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError) as error:
        read_prompts(tmp_path / "a.parquet")
    assert named in str(error.value)


def test_numbers_stay_numbers_beside_rows_that_have_none(tmp_path):
    pd.DataFrame({"caption": ["a", None, "b"], "index": [3, 4, None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="no caption in row 2"):
        table = read_prompts(tmp_path / "a.parquet")
    assert table["prompt"].tolist() == ["a", "b"]
    assert table["index"][0] == 3 and str(table["index"][0]) == "3" and pd.isna(table["index"][1])


def test_a_world_has_the_prompts_of_its_models(monkeypatch):
    class World:
        def prompts(self):
            return Prompts(pd.DataFrame({"prompt": ["a"], "kind": ["verbatim"]}))

    monkeypatch.setitem(WORLDS, "another", World())
    monkeypatch.setitem(MODELS, "mine", ModelInfo("mine", "nowhere", "mine", "published", world="another"))
    assert load_prompts("mine").memorized == ["a"]
    assert len(load_prompts("tiny").memorized) == 100


def test_unknown_lists():
    with pytest.raises(ValueError, match=r"no prompt list named 'sd15'\. Did you mean 'sd14'"):
        load_prompts("sd15")
    with pytest.raises(FileNotFoundError, match=r"no prompt file at nothing\.txt"):
        load_prompts("nothing.txt")


def test_near_duplicates_and_captions_that_are_cut(pipe):
    captions = ["A cat on a red sofa in the sun", "Something else entirely", "A cat on a red sofa in the sun!"]
    assert near_duplicates(captions) == [None, None, 0]
    assert list(too_long(["a red heart", "a red heart " * 20], pipe.tokenizer)) == [1]
    table = pd.DataFrame({"prompt": [*captions, captions[0]], "kind": ["memorized"] * 3 + ["heldout"]})
    kept = without_near_duplicates(Prompts(table, ("memorized",)))
    assert kept.memorized == captions[:2]
    assert kept.of("heldout") == captions[:1]


# --- what is written is what is read -------------------------------------------------------------------------------

captions = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    | st.sampled_from(
        [*WITHIN, "NA", "null", "1984", "3.0", '"', '""', "'", 'a "b", c', "a;b\tc", "{", "[", "-", "#$%"]
    ),
    min_size=1,
    max_size=8,
)
indices = st.integers(-(10**12), 10**12) | st.sampled_from(["007", "a b", "x.y"]) | st.none()


def written(path, table: pd.DataFrame) -> None:
    """A table as other programs write it."""
    records = json.loads(table.to_json(orient="records"))
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix in (".csv", ".tsv"):
            options = {"delimiter": "\t" if path.suffix == ".tsv" else ",;"[len(table) % 2]}
            csv.writer(file, **options).writerows([table.columns, *table.itertuples(index=False)])
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=len(table) % 2 == 0) + "\n" for row in records)
        elif path.name == "columns.json":
            json.dump({name: list(column) for name, column in table.items()}, file, indent=len(table) % 2 or None)
        elif path.name == "strings.json":
            json.dump(table["caption"].tolist(), file)
        else:
            json.dump(records, file, indent=len(table) % 2 or None)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "columns.json", "strings.json", "a.parquet"])
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_what_is_read(tmp_path, name, data):
    listed = data.draw(captions)
    table = pd.DataFrame({"caption": listed, "index": [data.draw(indices) for _ in listed]}, dtype=object)
    path = tmp_path / name
    if path.suffix == ".parquet":
        table.astype({"index": "string"}).to_parquet(path)
    else:
        written(path, table)
    kept = [i for i, caption in enumerate(listed) if caption.strip()]
    if not kept:
        with pytest.raises(ValueError, match="holds no captions"):
            read_rows(path)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = read_rows(path)
    assert [row["prompt"] for row in rows] == [listed[i].strip() for i in kept]
    assert len(told) == (len(kept) < len(listed))  # nothing vanishes without a word
    if name != "strings.json":
        expected = [None if table["index"][i] is None else str(table["index"][i]) for i in kept]
        assert [None if row["index"] is None else str(row["index"]) for row in rows] == expected


@settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=captions,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_lines_that_are_written_are_read(tmp_path, lines, end, encoding):
    lines = [line.replace("\n", " ").replace("\r", " ").replace("\ufeff", "") for line in lines]
    (tmp_path / "a.txt").write_bytes(end.join(lines).encode(encoding))
    kept = [line.strip() for line in lines if line.strip()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kept:
            assert [row["prompt"] for row in read_rows(tmp_path / "a.txt")] == kept
        else:
            with pytest.raises(ValueError, match="holds no captions"):
                read_rows(tmp_path / "a.txt")


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), suffix=st.sampled_from([".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"]))
def test_noise_is_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert all(row["prompt"] for row in read_rows(path))
        except ValueError as error:
            assert str(path) in str(error) and FORMS in str(error)


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_lines_take_seconds(tmp_path):
    (tmp_path / "a.csv").write_text(
        "caption,index\n" + "".join(f'"caption {i}, of many",{i}\n' for i in range(100_000))
    )
    began = time.process_time()
    assert len(read_rows(tmp_path / "a.csv")) == 100_000
    assert time.process_time() - began < 10


def repeated(value: str, times: int) -> pyarrow.Table:
    """A column of gigabytes that is a small file."""
    return pyarrow.table({"caption": pyarrow.array([value]).dictionary_encode().take(pyarrow.array([0] * times))})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (repeated("x" * 9_000, 12_000), "is larger than a prompt list may be"),
        (repeated("x" * 1_000_000, 4_000), "row 1, has a caption of 1,000,000 characters"),
        (pyarrow.table({"caption": pyarrow.nulls(1_000_001, "string")}), "is larger than a prompt list may be"),
        (pyarrow.table({"caption": [[None] * 1_000_001]}), "is larger than a prompt list may be"),
        (pyarrow.table({"caption": [["a"], ["b"]]}), "row 1, has a caption that is no text: ['a']"),
        (pyarrow.table({"caption": [{"en": "a"}]}), "row 1, has a caption that is no text"),
        (pyarrow.table({"caption": [b"a"]}), "row 1, has a caption that is no text: b'a'"),
    ],
    ids=["repeated", "repeated and long", "rows", "items", "lists", "structures", "bytes"],
)
def test_parquet_has_limits(tmp_path, table, told):
    parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        read_rows(tmp_path / "a.parquet")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert told in str(error.value)


def test_other_columns_of_parquet_are_not_read(tmp_path):
    table = pyarrow.table(
        {"caption": ["a", None], "seeds": [[1, 2], [3]], "image": [b"x" * 10, b"y"], "index": [1.0, 2.0]}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="no caption in row 2"):
        assert read_rows(tmp_path / "a.parquet") == [{"prompt": "a", "index": 1}]


def test_text_has_limits(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a cat\n" * 300)
    (tmp_path / "a.json").write_text("[" * 300)
    monkeypatch.setattr(lists, "MOST_ROWS", 50)
    for name in ("a.txt", "a.json"):
        with pytest.raises(
            ValueError, match=r"is larger than a prompt list may be, 50 rows and 100 MB: cut it in parts"
        ):
            read_rows(tmp_path / name)
    monkeypatch.setattr(lists, "MOST_BYTES", 100)
    monkeypatch.setattr(lists, "MOST_ROWS", 10_000)
    with pytest.raises(ValueError, match="is larger than a prompt list may be"):
        read_rows(tmp_path / "a.txt")


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "list.txt").mkdir()
    with pytest.raises(ValueError, match=r"list\.txt is a folder or no plain file"):
        load_prompts(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("a.jsonl", '"a cat"\n"a dog"\n', ["a cat", "a dog"]),
        ("a.jsonl", '[{"caption": "a cat"}, {"caption": "a dog"}]\n', ["a cat", "a dog"]),
        ("a.json", '{"caption": "a cat"}\n{"caption": "a dog"}\n', ["a cat", "a dog"]),
        ("a.json", '{"captions": ["a cat", "a dog"]}', ["a cat", "a dog"]),
        ("a.json", '{"caption": {"0": "a cat", "1": "a dog"}, "url": {"0": "x", "1": null}}', ["a cat", "a dog"]),
        ("a.json", '[\n  "a cat",\n  {"text": "a dog"}\n]', ["a cat", "a dog"]),
        ("a.json", '"a cat"', ["a cat"]),
        ("a.JSONL", '{"prompt": "a cat"}', ["a cat"]),
        ("a.tsv", "caption\turl\na cat\t\na dog\t", ["a cat", "a dog"]),
        ("a.csv", 'Prompt ,"of\nwhat"\na cat,1\na dog,2\n', ["a cat", "a dog"]),
        ("a.txt", "\ufeffa cat\n\ufeffa dog\n", ["a cat", "a dog"]),
        ("a.txt", "prompt, photo\na cat\n", ["prompt, photo", "a cat"]),
        ("a.txt", "[sold] a cat\n{}\n", ["[sold] a cat", "{}"]),
    ],
)
def test_other_forms_that_are_read(tmp_path, name, content, captions):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_prompts(tmp_path / name)["prompt"].tolist() == captions


def test_one_index_has_one_name(tmp_path):
    values = [3, "3", 3.0, "007", "a b", -1]
    (tmp_path / "a.json").write_text(json.dumps([{"caption": "a", "index": value} for value in values]))
    assert [row["index"] for row in read_rows(tmp_path / "a.json")] == [3, 3, 3, "007", "a b", -1]
    (tmp_path / "a.csv").write_text("caption,index\na,3.0\nb,\n")  # as pandas writes whole numbers beside missing ones
    assert [row["index"] for row in read_rows(tmp_path / "a.csv")] == [3, None]


@pytest.mark.parametrize(
    "index", ["../x", "/x", "a/b", "a\\b", "C:x", ".", "..", "x.", " x", "x\n", "x\0", "CON", "nul.txt"]
)
def test_an_index_is_one_plain_name(index):
    with pytest.raises(ValueError, match="which is no plain name or number"):
        plain_name(index)


# --- downloads, from a server of our own ---------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves what `server.files` holds; "slow" nothing for a while."""
    files: dict[str, bytes] = {}

    def answer(request):
        name = request.path.lstrip("/")
        if name == "slow":
            stop.wait(5)
            return None
        return (200, {}, files[name]) if name in files else (404, {}, b"")

    stop = threading.Event()
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
    with serving(answer) as http:
        http.files = files
        yield http
        stop.set()


def sources(monkeypatch, server, name: str) -> None:
    monkeypatch.setitem(downloads.SOURCES, "sd14", {"memorized": server.address + name})
    monkeypatch.delitem(kinds.TYPES, "sd14")


def test_a_list_is_fetched_once_and_its_checksum_kept(server, monkeypatch):
    server.files["list.txt"] = b"one\ntwo\n"
    sources(monkeypatch, server, "list.txt")
    path = downloads.fetch("sd14", "memorized")
    assert path.read_bytes() == b"one\ntwo\n"
    lock = json.loads((downloads.cache() / "checksums.json").read_text())
    assert lock == {path.name: hashlib.sha256(b"one\ntwo\n").hexdigest()}
    server.files["list.txt"] = b"something else"
    assert downloads.fetch("sd14", "memorized").read_bytes() == b"one\ntwo\n"  # cached
    path.unlink()
    with pytest.raises(ValueError, match="not what was published or fetched first"):
        downloads.fetch("sd14", "memorized")
    assert not path.exists()


def test_the_fetch_command_writes_the_checksums_it_saw(server, monkeypatch, tmp_path, capsys):
    rows = [{"caption": "red", "index": 3, "url": server.address + "red.png"}]
    rows.append({"caption": "gone", "index": 4, "url": server.address + "gone.png"})
    server.files |= {
        "list.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "sscd.pt": b"metric",
        "red.png": png("red"),
    }
    sources(monkeypatch, server, "list.jsonl")
    monkeypatch.setitem(SSCD, "sscd_disc_large", server.address + "sscd.pt")
    monkeypatch.setattr(recovery, "SOURCES", recovery.SOURCES[:1])  # not the web's archives
    monkeypatch.setattr(session, "PRIVATE", True)
    command = ["fetch", "sd14", "--images", str(tmp_path / "gt")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 training images" in printed
    lock = json.loads((downloads.cache() / "checksums.json").read_text())
    assert lock["sscd.pt"] == hashlib.sha256(b"metric").hexdigest()
    assert all(checksum in printed for checksum in lock.values())
    (downloads.cache() / "sscd.pt").write_bytes(b"something else")
    assert main(command) == 1
    assert "sscd.pt is not what was fetched first" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.txt", "slow"])
def test_a_server_that_fails_is_named_and_leaves_nothing(server, monkeypatch, name):
    sources(monkeypatch, server, name)
    with pytest.raises(ConnectionError, match=rf"could not be fetched from {server.address}{name}.*put that file at"):
        downloads.fetch("sd14", "memorized", timeout=0.2)
    assert not list(downloads.cache().glob("*.txt"))


def png(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 70), colour).save(buffer, "PNG")
    return buffer.getvalue()
