"""Folders of training images and tables as people have them: no image goes to another caption, and none is lost
without a word. All made here, in the layouts of what is published."""

import csv
import io
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from memsub.prompts import load_prompts, read_prompts
from memsub_extra.prompt_lists import kinds, wordings
from memsub_extra.prompt_lists.images import match_images, read_matched
from memsub_extra.prompt_lists.joining import ByCaption
from memsub_extra.prompt_lists.unpack import unpack_parquet

CAPTIONS = ["Harbour at Dawn; a print", 'The "Loud" Kettle', "Wool sock, left", "Map of Nowhere", "Tin robot"]


def listed(**columns) -> pd.DataFrame:
    return pd.DataFrame({"prompt": CAPTIONS, "kind": "memorized", "index": [11, 12, 13, 14, 15]} | columns)


def numbered() -> pd.DataFrame:
    return listed().drop(columns="index")


def put(path, seed: int, mode: str = "RGB") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(noise).resize((40, 30))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    (image if image.mode in (mode, "I;16") else image.convert(mode)).save(path)
    return path.read_bytes()


def put_all(folder, *names: str) -> None:
    for seed, name in enumerate(names):
        put(folder / name, seed)


def names(matched) -> dict[int, list[str]]:
    return {
        place: [file.relative_to(matched.folder).as_posix() for file in files] for place, files in matched.files.items()
    }


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}/0.png", "{}.jpg"])
def test_a_folder_that_begins_with_0_is_refused_beside_a_list_that_begins_with_1(tmp_path, name):
    put_all(tmp_path, *(name.format(i) for i in range(5)))
    with pytest.raises(
        ValueError, match=r"numbered from 1 \('Harbour at Dawn; a print' is 1\), .* its neighbour's image"
    ):
        match_images(numbered(), tmp_path)
    # Where the list says indices, 0 is one of them; and where a table says whose images they are, nobody counts.
    assert len(match_images(listed(index=range(5)), tmp_path).files) == 5
    rows = [{"text": caption, "file": name.format(i)} for i, caption in enumerate(CAPTIONS[:2])]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert names(match_images(numbered(), tmp_path)) == {0: [name.format(0)], 1: [name.format(1)]}


def test_captions_keep_their_numbers_where_others_are_left_out(tmp_path):
    put_all(tmp_path, *(f"{i}.png" for i in range(1, 6)))
    few = numbered().assign(row=range(5)).iloc[[0, 2, 4]].reset_index(drop=True)
    assert names(match_images(few, tmp_path)) == {0: ["1.png"], 1: ["3.png"], 2: ["5.png"]}


def test_what_a_table_gives_to_another_caption_is_not_used_by_number(tmp_path):
    put_all(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "metadata.csv").write_text("text,file\nTin robot,2.png\nMap of Nowhere,3.png\n")
    matched = match_images(numbered(), tmp_path)
    assert names(matched) == {0: ["1.png"], 3: ["3.png"], 4: ["2.png"]}
    assert "index 2 is 'Tin robot' there, and 'The \"Loud\" Kettle' in the list" in matched.notes[0]


def test_rows_of_another_list_are_told_by_their_captions(tmp_path):
    put_all(tmp_path, "a.png", "b.png", "c.png")
    table = tmp_path / "prompt_to_ref.csv"
    table.write_text(
        "prompt_idx;ref_file;Caption\n0;a.png;Of another list\n1;b.png;wool sock, left\n9;c.png;Tin robot\n"
    )
    matched = match_images(listed(), tmp_path)
    assert names(matched) == {2: ["b.png"], 4: ["c.png"]}
    assert "3 captions are not those of the list's rows of their numbers; the caption decides" in matched.notes[0]
    assert "Of no caption in the list: a.png" in matched.notes[1]
    table.write_text(",prompt_idx,ref_file\n0,0,a.png\n1,1,MISSING\n2,2,b.png\n")  # as pandas numbers its rows
    (tmp_path / "._list.txt").write_bytes(b"\0\5\xff")
    (note, _) = match_images(listed(), tmp_path).notes
    assert "says no captions" in note and "unchecked. It has 3 rows and the list 5: was it made for another?" in note
    (tmp_path / "list.csv").write_text("caption\nOf another list\nOne more\nAnd one\n")
    matched = match_images(listed(), tmp_path)
    assert not matched.files
    assert "no caption of the list beside it is in the prompt list" in matched.notes[0]


# --- what is named, there and used --------------------------------------------------------------------------------


def test_files_that_are_named_and_not_there_and_images_of_no_caption_are_tallied(tmp_path):
    put_all(tmp_path, "a.png", "11/0.png", "cats/1.png", "cats/2.png")
    (tmp_path / "metadata.csv").write_text("text,image\nTin robot,a.png\nMap of Nowhere,b.png\nOther,c.svg\n")
    (tmp_path / "prompt_to_ref.csv").write_text('prompt_idx,ref_file,prompt\n1,gone.jpg,The "Loud" Kettle\n')
    matched = match_images(listed(), tmp_path)
    assert names(matched) == {0: ["11/0.png"], 4: ["a.png"]}
    tally = matched.tally
    assert (len(tally.named), tally.existing) == (4, ["a.png"])
    assert sorted(tally.missing) == ["b.png", "c.svg", "gone.jpg"]
    assert (tally.used, tally.unused) == (["11/0.png", "a.png"], ["cats/1.png", "cats/2.png"])
    assert matched.notes == [tally.summary()]
    assert (
        "2 of 5 captions have images; tables name 4 files, 1 of them are there; of 4 image files 2" in tally.summary()
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "it holds nothing, 0 image files in all"),
        ({"cats/1.png": 1}, "it holds 'cats', 1 image files in all"),
        ({"gt/gt/13/0.png": 1}, "gt/gt holds '13': name that folder"),
        ({"00013.png": 1}, "'00013' is not '13': rename it, or name it in a table"),
        (
            {"x.csv": "caption,where\nTin robot,q\n"},
            r"x\.csv was read: 1 captions, 1 of them in the list; it has no colu",
        ),
        (
            {"x.csv": "words,file\na,b\n"},
            r"x\.csv is passed over \(.*no column 'caption'; its columns are: words, file",
        ),
        ({"x.csv": "text|file\na|b\n"}, r"x\.csv is passed over \(.*columns are: text\|file.*"),
        ({"x.csv": "Tin robot,a.png\n"}, r"x\.csv is passed over \(.*its columns are: tin robot, a\.png"),
        ({"x.csv": b"text,file\nK\xf6ln,a.png\n"}, r"x\.csv is passed over \(.* is not UTF-8 text from line 2 on"),
        ({"x.csv": "text,file\nTin robot,gone.png\n"}, r"Tables name 1 files that are not there: gone\.png"),
        ({"x.csv": "text,file\nOther,1.png\n", "1.png": 1}, r"1 captions, 0 of them in the list"),
        ({"images.zip": "PK", "13/0.avif": "x"}, r"unpack them: images\.zip\. 1 images are of a kind that is not read"),
    ],
)
def test_a_folder_without_images_of_the_list_says_what_it_holds(tmp_path, content, told):
    for name, what in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, int):
            put(tmp_path / name, what)
        else:
            (tmp_path / name).write_bytes(what if isinstance(what, bytes) else what.encode())
    matched = match_images(listed(), tmp_path)
    assert not matched.files
    with pytest.raises(ValueError, match=told):
        raise ValueError(matched.tally.nothing_matched())
    assert "(file_name, filename, ref_file, image)" in matched.tally.nothing_matched()
    (tmp_path / "x.zip").write_bytes(b"PK")
    assert "it is a file: unpack it" in match_images(listed(), tmp_path / "x.zip").tally.nothing_matched()


def test_hidden_files_links_and_suffixes_in_capitals(tmp_path):
    put_all(
        tmp_path, "11/0.PNG", "12/._0.png", "12/.ipynb_checkpoints/0.png", "__MACOSX/13.png", ".x.png", "disk/x.png"
    )
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "._list.csv").write_bytes(b"\0\5")
    (tmp_path / "14").symlink_to(tmp_path / "disk")
    (tmp_path / "round").symlink_to(tmp_path)
    matched = match_images(listed(), tmp_path)
    assert names(matched) == {0: ["11/0.PNG"], 3: ["14/x.png"]}
    assert matched.tally.unused == ["disk/x.png", "round/ (a linked folder)"]


def test_names_of_windows_captions_of_another_case_and_an_index_of_two_captions(tmp_path):
    put_all(tmp_path, "images/a.png", "images/b.png", "13.png")
    (tmp_path / "metadata.csv").write_text("text;file_name\nTIN ROBOT;images\\a.png\nthe “loud” kettle;images/b.png\n")
    matched = match_images(listed(index=[13, 12, 13, 14, 15]), tmp_path, one_image_each=False)
    assert names(matched) == {0: ["13.png"], 2: ["13.png"], 4: ["images/a.png"]}
    assert matched.notes[0] == "1 captions have the index of another, and its images: 13 is of captions 1 and 3"
    assert matched.tally.unused == ["images/b.png"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_images_of_every_mode_are_read_and_truncated_ones_are_told(tmp_path):
    for index, (mode, suffix) in enumerate([("P", "png"), ("LA", "png"), ("CMYK", "jpg"), ("I;16", "png")], 11):
        put(tmp_path / f"{index}.{suffix}", index, mode)
    (tmp_path / "15.png").write_bytes(put(tmp_path / "x.png", 5)[:200])
    read = read_matched(match_images(listed(), tmp_path), 16)
    assert sorted(read.images) == [0, 1, 2, 3]
    (told,) = read.broken.values()
    assert "15.png is truncated or no image" in told


# --- packs that are tables ----------------------------------------------------------------------------------------


def test_all_images_of_an_index_are_unpacked_and_counted(tmp_path):
    def row(index, caption, seed):
        data = None if seed is None else put(tmp_path / "x.png", seed)
        return {"index": index, "text": caption, "ground_truth": {"bytes": data, "path": "x"}}

    first = [row(11, CAPTIONS[0], 1), row(11, CAPTIONS[0], 2), row(11, CAPTIONS[0], 2), row(12, CAPTIONS[1], 3)]
    second = [row(12, CAPTIONS[4], 4), row(None, "Of no index", 5), row(14, CAPTIONS[3], None)]
    pd.DataFrame(first).to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(second).to_parquet(tmp_path / "b.parquet")
    both = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.warns(UserWarning, match=r"b\.parquet, row 2: no index; b\.parquet, row 3: no image"):
        said = unpack_parquet(both, tmp_path / "gt")
    assert "4 training images of 7 rows, 1 the same again, 1 without an index, 1 broken" in said
    assert "1 of an index of another caption (12-2)" in said
    assert len(list((tmp_path / "gt").rglob("*.png"))) == 4
    matched = match_images(listed(), tmp_path / "gt")
    assert names(matched) == {0: ["11/0.png", "11/1.png"], 1: ["12/0.png"], 4: ["12-2/0.png"]}
    with pytest.warns(UserWarning, match="no image"):
        assert "4 training images of 7 rows, 4 there before" in unpack_parquet(both, tmp_path / "gt")


def test_nothing_is_unpacked_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="no parquet file was given: does the pattern of glob match any file"):
        unpack_parquet([], tmp_path / "gt")
    pd.DataFrame({"index": [1], "text": ["a"], "image": [b"x"]})[:0].to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="columns with images: "):
        unpack_parquet(tmp_path / "a.parquet", tmp_path / "gt")
    pd.DataFrame({"index": ["../x"], "text": ["a"], "image": [b"x"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1, has the index '\.\./x'"):
        unpack_parquet(str(tmp_path / "a.parquet"), tmp_path / "gt", image="image")
    assert not (tmp_path / "gt").exists()


# --- types --------------------------------------------------------------------------------------------------------


def published(n: int = 500, verbatim: int = 112, without: int = 13) -> pd.DataFrame:
    """Made-up captions in the published layout: types, statistics where a template has them, and indices."""
    rng = np.random.default_rng(0)
    nouns, extras = (
        ["Kettle", "Harbour", "Sock", "Map", "Robot", "Léon's Lamp"],
        ["", ', "new"', "; a print", " <b>x</b>"],
    )
    captions = [f"{nouns[i % 6]} No. {i}{extras[i % 4]}" for i in range(n)]
    kind = np.array(["VM"] * verbatim + ["TM"] * (n - verbatim))
    highest = np.where(kind == "VM", 0.75, 0.3) + rng.random(n) * 0.1
    highest[n - without :] = np.nan
    table = pd.DataFrame({"Caption": captions, "URL": [f"http://x/{i}.jpg" for i in range(n)], "type": kind})
    table = table.assign(mean_sscd=0.2, max_sscd=highest, Index=rng.permutation(3 * n)[:n] + 10**9)
    return table.iloc[rng.permutation(n)].reset_index(drop=True)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("form", ["as it is", "shuffled", "of Windows", "without indices", "in lower case"])
def test_five_hundred_captions_join_their_types(tmp_path, suffix, form):
    table = published()
    separator, end = {"csv": ",", "tsv": "\t"}.get(suffix, ","), "\r\n" if form == "of Windows" else "\n"
    encoding = "utf-8-sig" if form == "of Windows" else "utf-8"
    table.to_csv(tmp_path / "types.csv", sep=";", lineterminator=end, encoding=encoding)
    wen = table[["Caption", "Index", "URL"]].rename(columns=str.lower)
    wen = wen.sample(frac=1, random_state=1) if form == "shuffled" else wen
    wen = wen.drop(columns="index") if form == "without indices" else wen
    wen = wen.assign(caption=wen["caption"].str.lower()) if form == "in lower case" else wen
    if suffix == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in wen.to_dict("records")]
        text = end.join(lines) + end
    else:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=separator, lineterminator=end).writerows([wen.columns, *wen.itertuples(index=False)])
        text = text.getvalue()
    (tmp_path / f"list.{suffix}").write_bytes(text.encode(encoding))
    with warnings.catch_warnings(action="error"):
        plain = load_prompts(tmp_path / f"list.{suffix}").table
        typed = kinds.with_types(plain, kinds.read_types(tmp_path / "types.csv"))
    assert kinds.counted(typed) == "112 verbatim, 388 template"
    assert typed["prompt"].tolist() == wen["caption"].tolist()
    assert typed["max_sscd"].isna().sum() == 13
    by_caption = dict(zip(table["Caption"].str.lower(), table["max_sscd"].fillna(-1), strict=True))
    assert typed["max_sscd"].fillna(-1).tolist() == pytest.approx([by_caption[c.lower()] for c in typed["prompt"]])


def test_less_than_half_of_a_list_is_refused_with_the_numbers():
    types = listed(kind="template")
    most = listed(prompt=[*CAPTIONS[:3], "x", "y"], index=range(5))
    with pytest.warns(UserWarning, match="says nothing of 2 of 5 memorized captions"):
        assert kinds.with_types(most, types)["kind"].tolist() == ["template"] * 3 + ["memorized"] * 2
    few = listed(prompt=[*CAPTIONS[:2], "x", "y", "z"], index=range(5))
    with pytest.raises(
        ValueError, match=r"t\.csv holds 2 of the 5 memorized captions, and not 'x'; its 5 begin with 'Harb"
    ):
        kinds.with_types(few, types, "t.csv")


def test_captions_that_differ_by_case_alone_stay_two():
    there = ByCaption(["Tin robot", "TIN ROBOT", "Map", "Cafe\u0301"])
    assert there.find("Tin  robot") == [0]
    assert there.find("tin robot") == []
    assert there.find("MAP") == [2]
    assert there.find("MAP", ByCaption(["MAP", "map"])) == []
    assert there.find("caf\u00e9") == [3]
    types = listed(prompt=["Tin robot", "TIN ROBOT", "c", "d", "e"], kind=["verbatim", *["template"] * 4])
    lower = types.assign(prompt=types["prompt"].str.lower(), kind="memorized")
    assert kinds.with_types(lower, types)["kind"].tolist() == types["kind"].tolist()  # by their indices


def test_types_in_every_case_and_misspelt_ones(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("caption,type\na,Verbatim\nb,vm\nc,verbatm\nd, TM\ne,n\nf,\ng,ordinary\nh,TEMPLATE\n")
    with pytest.warns(UserWarning, match=r"unknown type, which is ignored .* in lines 4 \('verbatm'\), 8 \('ordinary"):
        table = read_prompts(path)
    assert dict(zip(table["prompt"], table["kind"], strict=True)) == {
        **dict.fromkeys("ab", "verbatim"),
        **dict.fromkeys("cfg", "memorized"),
        **dict.fromkeys("dh", "template"),
    }


def test_a_caption_is_memorized_or_it_is_not(tmp_path):
    for name, captions in {"m": "ab", "o": "bcd", "same": "ba", "h": "xy"}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(captions))
    files = {"memorized": tmp_path / "m.txt", "ordinary": tmp_path / "o.txt", "heldout": tmp_path / "h.txt"}
    with pytest.warns(UserWarning, match=r"1 captions are memorized in .*m\.txt and ordinary in .*o\.txt, such as 'b'"):
        load_prompts(files)
    with pytest.raises(ValueError, match=r"2 captions are memorized in .*m\.txt and heldout in .*same\.txt"):
        load_prompts(files | {"ordinary": tmp_path / "h.txt", "heldout": tmp_path / "same.txt"})
    with pytest.warns(UserWarning, match=r"2 captions are ordinary in .*h\.txt and heldout in .*h\.txt"):
        load_prompts(files | {"ordinary": tmp_path / "h.txt"})


# --- wordings -----------------------------------------------------------------------------------------------------


def test_lists_of_wordings_in_every_form(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"caption": "a", "rephrased": []}\n{"caption": "b", "rephrased": ["x", null, "y"]}\n{"caption": "c"}\n'
    )
    (tmp_path / "a.csv").write_text(
        'caption,rephrased,caption2\na,[],\nb,"[""x"", ""y""]",\nc,,\nd,"[\'p\', ""q\'s""]",r\ne,[Official] kettle,\n'
    )
    assert wordings.wordings_of(read_prompts(tmp_path / "a.jsonl")) == [[], ["x", "y"], []]
    expected = [[], ["x", "y"], [], ["p", "q's", "r"], ["[Official] kettle"]]
    assert wordings.wordings_of(read_prompts(tmp_path / "a.csv")) == expected


@pytest.mark.parametrize("cell", ["['x' 'y']", '["x", "y"', '["x", 3]'])
def test_lists_that_are_none_are_named(tmp_path, cell):
    path = tmp_path / "a.csv"
    pd.DataFrame({"caption": ["b", "a"], "rephrased": ["c", cell]}).to_csv(path)
    told = r"a\.csv, line 3: the other wordings of 'a' are no list of texts: .* a JSON list such as"
    with pytest.raises(ValueError, match=told):
        wordings.wordings_in(read_prompts(path), path)
    pd.DataFrame({"caption": ["b", "a"], "urls": ["http://1", cell]}).to_csv(path)
    with pytest.raises(ValueError, match=r"a\.csv, line 3: the addresses of 'a' are no list of texts"):
        wordings.wordings_in(read_prompts(path), path)
    pd.DataFrame({"caption": ["a", "b", "c"], "urls": ["http://1, http://2", "http://2", "http://3"]}).to_csv(path)
    assert wordings.wordings_in(read_prompts(path), path)["image"].tolist() == [0, 0, 1]
    pd.DataFrame({"caption": ["a"], "words": ["b"]}).to_csv(path)
    with pytest.raises(ValueError, match=r"a\.csv has no other wordings: a column 'rephrased'"):
        wordings.wordings_in(read_prompts(path), path)
