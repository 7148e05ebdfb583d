"""What published lists say besides captions: types, other wordings, folders of training images; all written anew."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import memsub
from conftest import SMALL
from memsub.__main__ import main
from memsub.io import downloads
from memsub.io.images import save_image
from memsub.measure.metrics import load_metrics
from memsub.measure.noise import noise_seeds
from memsub.prompts import load_prompts, read_prompts
from memsub_extra.archives import recovery, session
from memsub_extra.notebooks import batch, notebook04, notebook05, plots, report
from memsub_extra.notebooks import kinds as tables
from memsub_extra.notebooks.findings import checks, exactly
from memsub_extra.prompt_lists import kinds, wordings
from memsub_extra.prompt_lists.images import match_images, read_matched
from memsub_extra.prompt_lists.unpack import unpack_parquet
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group
from memsub_extra.unlearning.pairs import Pairs
from memsub_extra.unlearning.removals import REMOVALS
from servers import serving

ROOT = Path(__file__).parents[1]
CAPTIONS = ["Harbour at Dawn; a print", 'The "Loud" Kettle', "Wool sock, left", "Map of Nowhere", "Tin robot"]


def listed(**columns) -> pd.DataFrame:
    return pd.DataFrame({"prompt": CAPTIONS, "kind": "memorized", "index": [11, 12, 13, 14, 15]} | columns)


def of_types(**columns) -> pd.DataFrame:
    types = {
        "kind": ["verbatim", "template", "template", "verbatim", "template"],
        "max_sscd": [0.9, 0.2, 0.6, 0.8, None],
    }
    return listed(**types).assign(**columns)


# --- kinds --------------------------------------------------------------------------------------------------------


def test_types_join_by_index_and_caption_in_any_order(tmp_path):
    (tmp_path / "list.jsonl").write_text(
        "\n".join(json.dumps({"caption": c, "index": i, "url": "http://x"}) for i, c in enumerate(CAPTIONS, 11))
    )
    table = pd.DataFrame({"Caption": CAPTIONS, "type": ["VM", "TM", "TM", "VM", "TM"], "Index": range(11, 16)})
    table = table.assign(mean_sscd=0.3, max_sscd=[0.9, 0.2, 0.6, 0.8, None])[::-1]
    table.to_csv(tmp_path / "types.csv", sep=";")
    plain, types = load_prompts(tmp_path / "list.jsonl").table, kinds.read_types(tmp_path / "types.csv")
    typed = kinds.with_types(plain, types)
    assert typed["prompt"].tolist() == CAPTIONS
    assert kinds.counted(typed) == "2 verbatim, 3 template"
    assert typed["max_sscd"].fillna(-1).tolist() == [0.9, 0.2, 0.6, 0.8, -1]
    assert typed["url"].tolist() == ["http://x"] * 5
    ordinary = pd.DataFrame({"prompt": [CAPTIONS[0]], "kind": "ordinary"})
    both = kinds.with_types(pd.concat([plain, ordinary], ignore_index=True), types)
    assert both["kind"].tolist() == [*typed["kind"], "ordinary"]
    (tmp_path / "types.csv").write_text("caption;max_sscd\na;x\n")
    with pytest.raises(ValueError, match=r"types\.csv says no type of its captions"):
        kinds.read_types(tmp_path / "types.csv")
    (tmp_path / "types.csv").write_text("caption;type;max_sscd\na;VM;high\n")
    with pytest.raises(ValueError, match="'max_sscd' is expected to hold numbers"):
        kinds.read_types(tmp_path / "types.csv")


def test_a_caption_alone_joins_and_an_index_alone_does_not():
    without = kinds.with_types(listed().drop(columns="index"), of_types())
    assert without["kind"].tolist() == of_types()["kind"].tolist()
    # The same caption under another index is the same caption; the same index under another caption is not.
    moved = listed(index=[99, 12, 13, 14, 15], prompt=[*CAPTIONS[:4], "Iron robot"])
    with pytest.warns(UserWarning, match=r"nothing of 1 of 5 .*'Iron robot'.*index 15: 'Iron robot', and there 'Tin"):
        joined = kinds.with_types(moved, of_types())
    assert joined["kind"].tolist() == ["verbatim", "template", "template", "verbatim", "memorized"]


def test_two_captions_of_one_text_have_each_their_own_type_and_none_is_doubled():
    twice = listed(prompt=[*CAPTIONS[:4], CAPTIONS[0]])
    types = of_types(prompt=[*CAPTIONS[:4], CAPTIONS[0]])
    assert kinds.with_types(twice, types)["kind"].tolist() == types["kind"].tolist()
    with pytest.warns(UserWarning, match="nothing of 2 of 5"):  # by the text alone it is not known which
        alone = kinds.with_types(twice.drop(columns="index"), types)
    assert alone["kind"].tolist() == ["memorized", "template", "template", "verbatim", "memorized"]


@pytest.mark.parametrize(
    ("table", "types", "message"),
    [
        (listed(), of_types(prompt=list("abcde"), index=range(5)), "holds none of the 5 memorized captions"),
        (listed(kind="template"), of_types(), r"the prompt list calls 'Harbour .*' template, and the types verbatim"),
        (listed(), pd.concat([of_types(), of_types(kind="verbatim")], ignore_index=True), "has two types of 'The"),
    ],
)
def test_what_contradicts_itself_is_named(table, types, message):
    with pytest.raises(ValueError, match=message):
        kinds.with_types(table, types, "the types")


def test_a_table_by_kind_says_what_it_cannot_show():
    threshold, templates = kinds.notes(of_types(), "replication")
    assert "0.800 or more for every verbatim caption (n = 2) and 0.600 or less for every template (n = 2)" in threshold
    assert "SSCD of whole images cannot judge a template" in templates
    assert kinds.notes(of_types(), "exact") == [threshold]
    assert not kinds.notes(of_types(max_sscd=[0.5, 0.2, 0.6, 0.8, 0.1]), "exact")
    assert kinds.kinds_in(["template", "verbatim", "template"]) == ["verbatim", "template", "all"]
    assert kinds.kinds_in(["memorized"]) == []


# --- wordings -----------------------------------------------------------------------------------------------------


def test_other_wordings_of_every_layout(tmp_path):
    rows = [{"caption": "a", "rephrased": "x"}, {"caption": "b", "caption1": "y", "caption2": "z", "caption3": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"caption": "c", "rephrased": ["u", "c"]}])))
    (tmp_path / "a.csv").write_text('raw_prompt,rephrased_prompt\na,x\nb,"y\nz"\nc,u\n')
    (tmp_path / "a.json").write_text(json.dumps({"prompt": list("abc"), "paraphrases": ["x", ["y", "z"], "u"]}))
    pd.DataFrame({"text": list("abc"), "rephrased": [["x"], ["y", "z"], ["u"]]}).to_parquet(tmp_path / "a.parquet")
    for suffix in ("jsonl", "csv", "json", "parquet"):
        table = read_prompts(tmp_path / f"a.{suffix}")
        assert wordings.wordings_of(table) == [["x"], ["y", "z"], ["u"]], suffix
    assert wordings.wordings_of(listed()) == [[]] * 5
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": "a", "rephrased": ["x" * 9_000] * 2}))
    with pytest.raises(ValueError, match="line 1, has a rephrased of"):
        read_prompts(tmp_path / "a.jsonl")


def test_a_method_that_needs_another_wording_says_so_before_anything_runs(micro, monkeypatch, tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    pairs, ordinary = Pairs(["a", "b"], images, [["A"], []]), Pairs(["c", "d"], images)
    monkeypatch.setattr("memsub_extra.unlearning.fine_tuning.fingerprint", lambda pipe: pytest.fail("began"))
    monkeypatch.setattr("memsub_extra.unlearning.pruning.capture", lambda *a, **k: pytest.fail("began"))
    for name in ("adversarial distillation", "pruning, against other wording"):
        with pytest.raises(ValueError, match=r"1 of 2 captions have none, such as 'b'\. Add a column 'rephrased'"):
            REMOVALS[name].edit(micro, pairs, ordinary, folder=tmp_path)
    assert pairs.first(1).other_wording("this") == ["A"]
    assert pairs.only([1, 0]).wordings == [[], ["A"]]
    with pytest.raises(ValueError, match="2 captions with other wordings of 1"):
        Pairs(["a", "b"], images, [["A"]])


def test_prompts_that_share_an_address_are_of_one_image(tmp_path):
    """MemBench's layout."""
    (tmp_path / "m.csv").write_text(
        ",prompt,urls\n0,sock left wool,['http://a/1']\n1,wool sock,\"['http://a/1', 'http://b/2']\"\n"
        "2,left sock,['http://b/2']\n3,robot tin,['http://c']\n4,a robot,['http://c']\n5,lonely,\n"
    )
    table = wordings.wordings_in(read_prompts(tmp_path / "m.csv"))
    assert table["image"].tolist() == [0, 0, 0, 1, 1, 2]
    assert not table["is_caption"].any()
    (tmp_path / "m.csv").write_text("prompt,urls\na,[open('x')]\n")
    with pytest.raises(ValueError, match="addresses of 'a' are no list of texts"):
        wordings.wordings_in(read_prompts(tmp_path / "m.csv"))
    with pytest.raises(ValueError, match=r"no other wordings: a column 'rephrased' is expected.*holds prompt, kind"):
        wordings.wordings_in(listed())


def test_images_are_the_unit_of_rates_by_wording():
    table = wordings.wordings_in(listed(rephrased=["h1\nh2", "k1", "s1", None, "t1\nt2"]))
    assert table["prompt"].tolist()[:3] == [CAPTIONS[0], "h1", "h2"]
    assert CAPTIONS[3] not in set(table["prompt"])
    hits = {CAPTIONS[0]: [0, 0], "h1": [1, 0], "h2": [0, 0], CAPTIONS[1]: [0, 0], "k1": [0, 0], CAPTIONS[2]: [1, 1]}
    hits |= {"s1": [1, 1], CAPTIONS[4]: [np.nan] * 2, "t1": [np.nan] * 2, "t2": [np.nan] * 2}
    scored = pd.DataFrame([{"prompt": p, "replicated": hit} for p, both in hits.items() for hit in both])
    rows = wordings.by_wording({"after": scored}, table).set_index("wording")
    assert rows["images"].tolist() == [3, 3, 3]
    assert rows["wordings"].tolist() == [3, 4, 7]
    assert rows["rate"].tolist() == pytest.approx([1 / 3, (0.25 + 0 + 1) / 3, 2 / 3])
    assert (rows["low"] < rows["rate"]).all() and (rows["rate"] < rows["high"]).all()


# --- images -------------------------------------------------------------------------------------------------------


def put(path, seed: int, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    Image.fromarray(noise).resize(size).save(path)


def names(matched) -> dict[int, list[str]]:
    return {
        place: [file.relative_to(matched.folder).as_posix() for file in files] for place, files in matched.files.items()
    }


def test_folders_by_index_and_flat_ones(tmp_path):
    for seed, name in enumerate(["11/0.png", "11/1.jpg", "12.webp", "13.png", "other/14.png"]):
        put(tmp_path / name, seed)
    matched = match_images(listed(), tmp_path)
    assert names(matched) == {0: ["11/0.png", "11/1.jpg"], 1: ["12.webp"], 2: ["13.png"]}
    assert matched.notes == [
        f"{tmp_path}: 3 of 5 captions have images; of 5 image files 4 belong to a caption. Of no caption in the list: "
        f"other/14.png. {tmp_path / 'other'} holds '14.png': name that folder."
    ]
    (tmp_path / "other" / "14.png").unlink()
    assert not match_images(listed(), tmp_path).notes
    images = read_matched(matched, 8).images
    assert {place: stack.shape for place, stack in images.items()} == {
        0: (2, 8, 8, 3),
        1: (1, 8, 8, 3),
        2: (1, 8, 8, 3),
    }
    put(tmp_path / "5" / "0.png", 9)
    assert names(match_images(listed().drop(columns="index"), tmp_path)) == {4: ["5/0.png"]}
    assert match_images(listed(), tmp_path / "nowhere").files == {}


def test_a_table_of_files_matches_by_caption(tmp_path):
    for seed, name in enumerate(["a.png", "b.png", "12.png"]):
        put(tmp_path / name, seed)
    rows = [{"text": CAPTIONS[0], "file_name": "a.png"}, {"text": CAPTIONS[1], "file_name": "b.png"}]
    rows.append({"text": CAPTIONS[2], "file_name": "gone.png"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "scores.csv").write_text("model,rate\nx,1\n")
    matched = match_images(listed(), tmp_path)
    assert names(matched) == {0: ["a.png"], 1: ["b.png"]}
    assert re.search(r"scores\.csv is no list of captions", matched.notes[0])
    assert "1 captions have two images; by caption counts: b.png by caption, 12.png by index" in matched.notes[1]
    put(tmp_path / "12.png", 1)  # looks the same: no contradiction
    assert names(match_images(listed(), tmp_path)) == {0: ["a.png"], 1: ["b.png", "12.png"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"text": CAPTIONS[0], "file_name": "../a.png"}))
    with pytest.raises(ValueError, match="leads out of the folder"):
        match_images(listed(), tmp_path)


def test_indices_of_another_list_are_seen_by_the_packs_own(tmp_path):
    """As in Wen et al.'s pack: 12 is another caption's there, and the caption that is 12 here has 77."""
    pack = [{"caption": CAPTIONS[1], "index": 77}, {"caption": "Of another list", "index": 12}]
    pack += [{"caption": "One more", "index": 13}, {"caption": CAPTIONS[3], "index": 14}]
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "list.jsonl").write_text("\n".join(map(json.dumps, pack)))
    for seed, index in enumerate((77, 12, 13, 14)):
        put(tmp_path / "pack" / "gt_images" / str(index) / "0.png", seed)
    for folder, prefix in ((tmp_path / "pack", "gt_images/"), (tmp_path / "pack" / "gt_images", "")):
        matched = match_images(listed(), folder)
        assert names(matched) == {1: [f"{prefix}77/0.png"], 3: [f"{prefix}14/0.png"]}
        assert "the indices of 1 captions are those of others there" in matched.notes[0]
        assert "index 13 is 'One more' there, and 'Wool sock, left' in the list" in matched.notes[0]


def test_prompt_to_ref_numbers_the_rows_of_its_list(tmp_path):
    for seed, name in enumerate(["00000.jpg", "x.jpg"]):
        put(tmp_path / name, seed)
    table = tmp_path / "prompt_to_ref.csv"
    table.write_text("prompt_idx,ref_file\n0,00000.jpg\n1,MISSING\n4,x.jpg\n")
    assert names(match_images(listed(), tmp_path)) == {0: ["00000.jpg"], 4: ["x.jpg"]}
    few = listed(row=range(5)).iloc[[0, 4]].reset_index(drop=True)  # near-duplicates were left out
    assert names(match_images(few, tmp_path)) == {0: ["00000.jpg"], 1: ["x.jpg"]}
    with pytest.raises(ValueError, match=r"line 4, has the prompt_idx '4'; the list has the rows 0 to 1"):
        match_images(listed().iloc[:2], tmp_path)
    # The list that it was made for has another order.
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[::-1]) + "\n")
    assert names(match_images(listed(), tmp_path)) == {4: ["00000.jpg"], 0: ["x.jpg"]}
    table.write_text("number,file\n0,00000.jpg\n")
    with pytest.raises(ValueError, match="no columns prompt_idx and ref_file"):
        match_images(listed(), tmp_path)


def test_placeholders_are_told_and_left_out(tmp_path):
    put(tmp_path / "11" / "0.png", 1)
    put(tmp_path / "11" / "1.png", 2, size=(1, 1))
    Image.new("RGB", (30, 30), (128, 128, 128)).save(tmp_path / "11" / "2.png")
    for index in (12, 13, 14):  # what a host shows for whatever is gone
        put(tmp_path / str(index) / "0.png", 3)
    unavailable = Image.new("RGB", (60, 60), (230, 230, 230))
    unavailable.paste("black", (20, 28, 40, 31))  # a line of text
    (tmp_path / "15").mkdir()
    unavailable.save(tmp_path / "15" / "0.png")
    found = read_matched(match_images(listed(), tmp_path), 60)
    assert sorted(found.images) == [0, 4]
    assert len(found.images[0]) == 1
    assert "5 of 7 files are no training images" in found.notes[0]
    assert "1 x 1 pixels" in found.notes[0]
    assert "the same file under 3 captions" in found.notes[0]
    assert "almost of one colour, look at them: 15/0.png" in found.notes[1]
    (tmp_path / "14" / "0.png").unlink()
    found = read_matched(match_images(listed(), tmp_path), 60)
    assert sorted(found.images) == [0, 1, 2, 4]  # two captions may have one image
    assert "1 files are there under two captions: 12/0.png and 13/0.png" in found.notes[0]


def test_a_pack_that_is_a_table_is_unpacked(tmp_path):
    rows = []
    for seed, caption in enumerate(CAPTIONS[:3]):
        put(tmp_path / "x.png", seed)
        data = (tmp_path / "x.png").read_bytes() if seed else b"no image"
        rows.append({"index": 70 + seed, "raw_prompt": caption, "ground_truth": {"bytes": data, "path": "../x.png"}})
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    said = unpack_parquet([tmp_path / "a.parquet"], tmp_path / "gt")
    assert said.endswith("gt: 2 training images of 3 rows, 1 broken")
    assert names(match_images(listed(), tmp_path / "gt")) == {1: ["71/0.png"], 2: ["72/0.png"]}
    pd.DataFrame({"index": [1], "text": ["a"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        ValueError, match=r"b\.parquet has the columns index, text; expected .*'ground_truth' with images"
    ):
        unpack_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- a run against a server ---------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `site/`, and is where the published lists of SD1.4 lie."""

    def answer(request):
        file = tmp_path / "site" / request.path.lstrip("/")
        return (200, {}, file.read_bytes()) if file.is_file() else (404, {}, b"")

    (tmp_path / "site").mkdir()
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
    lists = {"memorized": "list.jsonl", "ordinary": "ordinary.txt", "heldout": "heldout.txt"}
    monkeypatch.setattr(recovery, "SOURCES", recovery.SOURCES[:1])  # not the web's archives
    monkeypatch.setattr(session, "PRIVATE", True)
    monkeypatch.setattr(session, "PAUSE", 0.0)
    with serving(answer) as http:
        listed = {kind: http.address + name for kind, name in lists.items()}
        monkeypatch.setitem(downloads.SOURCES, "sd14", listed)
        monkeypatch.setitem(kinds.TYPES, "sd14", http.address + "types.csv")
        yield http.address


@pytest.fixture
def published(server, tmp_path, prompts):
    """Twelve captions, four of them verbatim, in the layouts of the published files; two have no image."""
    site, captions = tmp_path / "site", prompts.memorized[:12]
    rows = [{"caption": c, "index": 100 + i, "url": f"{server}{i}.png"} for i, c in enumerate(captions)]
    (site / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    types = pd.DataFrame(
        {"Caption": captions, "type": "TM", "mean_sscd": 0.1, "max_sscd": 0.3, "Index": range(100, 112)}
    )
    types.loc[::3, ["type", "max_sscd"]] = ["VM", 0.9]
    types[::-1].to_csv(site / "types.csv", sep=";")
    (site / "ordinary.txt").write_text("\n".join(prompts.ordinary[:12]))
    (site / "heldout.txt").write_text("\n".join(prompts.of("heldout")[:8]))
    for i in range(10):
        save_image(np.random.default_rng(i).integers(0, 256, (70, 70, 3), np.uint8), site / f"{i}.png")


def test_a_run_reports_by_kind(published, micro, tmp_path, capsys):
    small = SMALL | {"model": "sd14", "folder": str(tmp_path / "run"), "metrics": {"more": []}}
    run = Run(Parameters.checked(small | {"evaluation": SMALL["evaluation"] | {"captions": 4}}))
    run.pipe, run.metrics = micro, load_metrics("tiny", "cpu")
    models = notebook04.pruned_models(run)
    assert "10 of 12 training images" in capsys.readouterr().out
    assert run.data.memorized.kinds == ["verbatim", "template", "template"] * 4
    split = run.data.split["report"]
    assert models["listed"][0] == len(split) == 4
    assert models["references"][0] == models["n"][0] == sum(i < 10 for i in split)
    table = run.by_kind["pruned models"]
    unedited = table[table["model"] == "unedited"].set_index("kind")
    assert list(unedited.index) == ["verbatim", "template", "all"]
    assert unedited["listed"].tolist() == [sum(i % 3 == 0 for i in split), sum(i % 3 > 0 for i in split), 4]
    assert unedited.loc["all", "n"] == unedited.loc[["verbatim", "template"], "n"].sum() == models["n"][0]
    assert unedited.loc["all", "copy_similarity"] == pytest.approx(models["copy_similarity"][0])
    assert set(table["model"]) == set(models["model"])
    before = len(table)
    notebook04.pruned_models(run)  # again: no row twice
    assert len(run.by_kind["pruned models"]) == before
    notebook05.detection(run)
    notebook05.extraction(run)  # templates of a published list have no groups
    assert {"model", "kind", "n", "references", "listed"} <= set(run.by_kind["detection"])
    assert run.by_kind["extraction"]["kind"].tolist() == ["verbatim", "template", "all"] * 2  # two models

    checks(run, "04_pruning", {"it ran": exactly(True)})
    page = report.by_kind([tmp_path / "run" / "findings" / "04_pruning.json"])
    assert "4 verbatim, 8 template captions" in page
    assert "Training images: 4 of 4 verbatim, 6 of 8 template, 10 of 12 all" in page
    assert "The type is itself an SSCD threshold" in page and "cannot judge a template" in page
    assert page.count("<h3>") == 3 and "replication_rate" in page
    assert report.by_kind([tmp_path / "nowhere.json"]) == ""
    sets = run.data.memorized.sets(2, 3, run.parameters.seed)
    assert [len(each) for each in (*sets["verbatim"], *sets["template"])] == [2] * 4
    assert not set.intersection(*map(set, sets["template"]))
    assert {run.data.memorized.kinds[place] for each in sets["verbatim"] for place in each} == {"verbatim"}
    checks(run, "02_memorized_neurons", {})
    checks(run, "03_subspace_overlap", {})
    density, shared = (
        run.by_kind[f"{title} of sets of one kind"] for title in ("memorized weights (%)", "overlap (IoU)")
    )
    assert density["kind"].tolist() == ["verbatim", "template"] and (density["sets"] == 2).all()
    assert (density["low"] < density["mean"]).all() and (density["mean"] < density["high"]).all()
    assert shared["kind"].tolist() == ["verbatim – verbatim", "template – template", "verbatim – template"]
    verbatim = [run.grid.masks(group, steps=2) for group in run.grid.groups_by_kind()[:2]]
    assert shared["mean"][0] == pytest.approx(memsub.pairwise_iou(verbatim).mean().item())
    for name in ("04_pruning", "05_attack_evaluation"):
        shown = by_kind_cell(name, run)
        assert len(shown) == len(run.by_kind) > 4
        assert "cannot judge a template" in capsys.readouterr().out
    of_models = next(frame for frame in shown if frame.columns.name == "pruned models")
    assert of_models["with a training image"].iloc[2] == f"{models['references'][0]} of 4"  # unedited, all kinds
    assert re.fullmatch(r"\d+ \(\d+ to \d+\)", of_models["replication (%)"].iloc[2])
    assert of_models.index[0] == ("unedited", "verbatim")
    rates = tables.with_references(run, pd.DataFrame({"rate": [0.1]}))
    assert rates["with a training image"].tolist() == [f"{sum(i < 10 for i in split)} of 4"]
    every = tables.with_references(run, pd.DataFrame({"rate": [0.1]}), range(12))
    assert every["with a training image"].tolist() == ["10 of 12"]
    assert "with a training image" in plots.trade_off(models, "copy_similarity", name="model").axes[0].get_xlabel()
    panels = plots.by_kind(table).axes
    assert [axis.get_title().split(" (")[0] for axis in panels] == ["verbatim", "template", "all"]
    assert len(panels[0].get_yticklabels()) == table["model"].nunique()


def by_kind_cell(name: str, run: Run) -> list[pd.DataFrame]:
    """What the cell by kind of a notebook shows of a run."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    (code,) = ["".join(cell["source"]) for cell in cells if cell["id"] == "by-kind-tables"]
    shown: list[pd.DataFrame] = []
    exec(code, {"run": run, "kinds": tables, "plots": plots, "display": shown.append})
    return shown


def test_a_run_of_a_world_shows_nothing_by_kind(run, capsys):
    """As the committed notebooks of the embedded model do, whose cells have no output."""
    notebook04.pruned_models(run)
    for name in ("04_pruning", "05_attack_evaluation"):
        assert by_kind_cell(name, run) == []
    assert capsys.readouterr().out == ""
    plain = pd.DataFrame({"rate": [0.1]})
    assert tables.with_references(run, plain) is plain


def test_one_s_own_types_and_lists_that_say_none(published, tmp_path):
    with warnings.catch_warnings(action="error"):
        plain = Run(Parameters.checked({"model": "sd14", "data": {"prompts": str(tmp_path / "site" / "list.jsonl")}}))
        assert set(plain.data.prompts.memorized_rows["kind"]) == {"memorized"}
        assert plain.data.memorized.sets(2, 3, 0) == {}
    with pytest.raises(ValueError, match="of this list there are 0 sets of template captions"):
        plain.data.located_on(Group.subset("template", 2, 0))
    with warnings.catch_warnings(action="error"):
        part = {"prompts": str(tmp_path / "site" / "list.jsonl"), "types": str(tmp_path / "site" / "types.csv")}
        run = Run(Parameters.checked(SMALL | {"model": "sd14", "data": part}))
    assert run.data.memorized.kinds.count("verbatim") == 4
    assert run.data.memorized.of_kind([0, 1, 2, 3], "verbatim") == [0, 3] != run.data.memorized.of_kind([0, 1], "all")


def test_a_table_of_types_that_is_not_there_ends_a_run_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prompt file at .*gone\.csv"):
        batch._check_files(Parameters.checked({"data": {"types": str(tmp_path / "gone.csv")}}))


# --- the command --------------------------------------------------------------------------------------------------


def test_evaluate_reports_by_kind_and_by_wording(micro, published, tmp_path, prompts, monkeypatch, capsys):
    captions = prompts.of("heldout")
    table = pd.DataFrame({"caption": captions[:3]})
    table.assign(type=["VM", "TM", "TM"]).to_csv(tmp_path / "t.csv", index=False)
    table["rephrased"] = [captions[3], f"{captions[4]}\n{captions[5]}", ""]
    table.to_csv(tmp_path / "p.csv", index=False)
    layer, linear = next(iter(memsub.as_denoiser(micro).layers().items()))
    edit = memsub.Edit(
        {layer: torch.arange(9)}, {layer: tuple(linear.weight.shape)}, {"model": memsub.fingerprint(micro)}
    )
    edit.save(tmp_path / "e.safetensors")
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: micro)
    monkeypatch.setattr("memsub.models.find_model", lambda name: memsub.models.ModelInfo(name, name, name, "published"))
    monkeypatch.setattr("memsub.measure.metrics.load_metrics", lambda *a, **k: load_metrics("tiny", "cpu"))
    monkeypatch.chdir(tmp_path)
    for i in (1, 2):  # what the model generates for a caption, and for the other wording of another
        shown = [captions[0] if i == 1 else captions[5]]
        sampled = memsub.generate(micro, shown, seeds=noise_seeds(shown, 0), steps=1, progress=False)[0]
        save_image(sampled, tmp_path / "images" / str(i) / "0.png")
    command = ["evaluate", "./m", "--edit", "e.safetensors", "--prompts", "p.csv", "--wordings", "p.csv"]
    command += ["--types", "t.csv", "--steps", "1", "--seeds", "1"]
    assert main(command) == 1
    assert "--wordings needs --images" in capsys.readouterr().err
    assert main([*command, "--images", "images"]) == 0
    shown = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "evaluation" / "summary.csv").set_index("measure")
    assert rows.loc["replicated images, verbatim", ["before", "captions"]].tolist() == [1, 1]
    assert rows.loc["replicated images, template", "captions"] == 1
    assert "SSCD of whole images cannot judge a template" in shown
    assert "5 of 5 wordings have a training image and are judged; an image is the unit" in shown
    by_wording = pd.read_csv(tmp_path / "evaluation" / "wordings.csv").set_index(["model", "wording"])
    assert by_wording.loc[("before", "other wordings"), ["images", "wordings"]].tolist() == [2, 3]
    assert by_wording.loc[("before", "any wording of the image"), "rate"] == 1
