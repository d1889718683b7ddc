"""Search: the nearest by a plain loop; words and pictures, to pictures and to texts; what cannot be searched is said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.search import main as benchmark
from labeler import searching
from labeler.batches import StorePairs
from labeler.cli import cli
from labeler.embedding import embed_pairs, load_towers_run
from labeler.errors import BadInputError, UsageError
from labeler.pretraining import pretrain, pretrain_options
from labeler.report.found import render_found
from labeler.searching import Found, Hit, Index, embed_query, index, make_fast, search, table_of
from labeler.store import Store


@pytest.fixture(scope="module")
def indexed(store, pretrained, tmp_path_factory):
    return index(store, pretrained, tmp_path_factory.mktemp("index") / "shapes", device="cpu").out


@pytest.fixture
def embedded(store, pretrained):
    """Return the ids of all rows, and the embeddings of their texts and pictures."""
    run, opened = load_towers_run(pretrained), Store(store)
    pairs = StorePairs(opened, np.arange(38), run.tokenizer, run.preprocessor["max_text_tokens"])
    return opened.rows["id"], *embed_pairs(run.model, pairs, run.tokenizer.pad_token_id)


def test_the_nearest_by_a_loop(indexed, embedded):
    ids, text, image = embedded
    opened = Index(indexed)
    assert opened.counts == {"pictures": 36, "texts": 36}
    for find, vectors in (("pictures", image), ("texts", text)):
        for row in (0, 7, 31):
            there = [number for number in range(38) if vectors[number].any()]
            scores = {ids[number]: float(vectors[number] @ text[row]) for number in there}
            hits = opened.nearest(text[row], find, 5)
            assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True)[:5], abs=1e-5)
            assert all(scores[hit.id] == pytest.approx(hit.score, abs=1e-5) for hit in hits)
    assert len(opened.nearest(text[0], "texts", 100)) == 36


def test_a_picture_and_words_find_themselves(store, indexed, tmp_path):
    source = store.parent / "source" / "pictures"
    hits = search(str(source / "square-green-one.png"), indexed, top=3, device="cpu").hits
    assert hits[0].id == "square-green-one"
    assert hits[0].score == pytest.approx(1, abs=1e-2)  # tokens are stored in half precision
    named = shutil.copy(source / "square-green-one.png", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    assert search(named, indexed, top=1, device="cpu").hits == hits[:1]
    hits = search("one red square", indexed, find="texts", top=1, device="cpu").hits
    assert hits[0].text == "one red square"


def test_the_command_and_its_page(store, indexed, tmp_path, capsys):
    words = ["search", "a red <b> square", "--index", str(indexed), "--top", "3", "--json"]
    cli.main([*words, "--html", str(tmp_path / "found.html")], standalone_mode=False)
    hits = json.loads(capsys.readouterr().out)
    assert [set(hit) for hit in hits] == [{"id", "text", "score", "image"}] * 3
    assert [hit["image"] for hit in hits] == [f"pictures/{hit['id']}.png" for hit in hits]
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "a red &lt;b&gt; square" in page
    assert page.count('src="data:image/jpeg') == 3
    cli.main([*words, "--html", str(tmp_path / "found.html")], standalone_mode=False)
    capsys.readouterr()
    cli.main(["index", str(store), "--model", str(Index(indexed).manifest["inputs"][1]["path"]), "--out", str(indexed)],
             standalone_mode=False)  # fmt: skip
    assert "already made" in capsys.readouterr().err


def test_a_hit_is_one_line_whatever_its_text(indexed, capsys, monkeypatch):
    hits = [Hit("a", "one\ntwo\r\nthree\u2028four", 0.5), Hit("b\nc", None, 0.25)]
    monkeypatch.setattr(searching, "search", lambda *_, **__: Found(hits, indexed, ""))
    cli.main(["search", "words", "--index", str(indexed)], standalone_mode=False)
    assert capsys.readouterr().out == "+0.500  a  one two three four\n+0.250  b c  \n"


def test_an_index_that_cannot_be_written_is_refused_before_the_store_is_read(store, pretrained, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr("labeler.store.Store", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(BadInputError, match=r"out: exists and was not made by labeler, so it is left alone"):
        index(store, pretrained, tmp_path / "out")


def test_a_graph_finds_nearly_all_of_the_nearest(tmp_path, monkeypatch):
    import lance

    random = np.random.default_rng(0)
    vectors = random.normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [str(number) for number in range(3000)]
    monkeypatch.setattr(searching, "EXACT_UP_TO", 1000)
    for part in (slice(2000), slice(2000, 3000)):
        columns = {"id": names[part], "text": names[part], "image": names[part], "vector": vectors[part]}
        mode = "append" if part.start else "create"
        lance.write_dataset(table_of(columns, 16), str(tmp_path / "pictures.lance"), mode=mode)
    make_fast(tmp_path / "pictures.lance", 3000)
    assert len(list((tmp_path / "pictures.lance" / "data").iterdir())) == 1, "nothing is kept that nobody reads"
    opened = Index.__new__(Index)
    opened.counts, opened.datasets = {"pictures": 3000}, {"pictures": lance.dataset(str(tmp_path / "pictures.lance"))}
    assert opened.datasets["pictures"].describe_indices()[0].index_type == "IVF_HNSW_SQ"
    found = 0
    for query in vectors[:50] + random.normal(size=(50, 16)).astype(np.float32) / 10:
        true = set(np.argsort(-vectors @ query)[:10].astype(str))
        found += len(true & {hit.id for hit in opened.nearest(query, "pictures", 10)})
    assert found / 500 >= 0.95


def test_the_benchmark_draws_vectors_around_those_of_an_index(indexed, monkeypatch):
    monkeypatch.setattr(searching, "EXACT_UP_TO", 100)
    done = CliRunner().invoke(benchmark, [str(indexed), "--count", "600", "--queries", "20"], catch_exceptions=False)
    assert done.output.startswith("600 vectors of ")
    assert float(done.output.split()[-1]) >= 0.95


def test_what_cannot_be_searched_is_said(store, indexed, pretrained, tmp_path):
    with pytest.raises(UsageError, match="an empty query"):
        search("  ", indexed)
    with pytest.raises(UsageError, match=r"query holds a NUL or half a surrogate pair.*; give words in UTF-8"):
        search("caf\udce9", indexed)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for name in ("broken.jpg", "missing.png"):
        with pytest.raises(BadInputError, match=name):
            search(str(tmp_path / name), indexed, device="cpu")
    with pytest.raises(BadInputError, match="no such artifact folder"):
        search("words", tmp_path / "nothing")
    with pytest.raises(BadInputError, match="made by `labeler pretrain`, expected the output of `labeler index`"):
        search("words", pretrained)
    broken = shutil.copytree(indexed, tmp_path / "broken")
    file = next((broken / "texts.lance" / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BadInputError, match="damaged"):
        search("words", broken)


@pytest.mark.parametrize(
    ("page", "error", "message"),
    [
        ("./photo.jpg", UsageError, "the picture itself, which the page would replace; choose another --html"),
        (".", BadInputError, r"\.: cannot be written; --html takes a file in a folder that is there"),
        ("none/page.html", BadInputError, "none/page.html: cannot be written"),
        (
            "other.jpg",
            BadInputError,
            r"other\.jpg: was not written by `labeler search --html`.*--force .*another --html",
        ),
    ],
)
def test_a_page_that_cannot_be_written_is_said_before_the_search(indexed, tmp_path, monkeypatch, page, error, message):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(b"of the user")
    with pytest.raises(error, match=message):
        cli.main(["search", "photo.jpg", "--index", str(indexed), "--html", page], standalone_mode=False)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"of the user"}


def test_a_frame_of_a_video_is_a_picture(store, indexed, pretrained, tmp_path):
    import cv2

    source = store.parent / "source" / "pictures"
    shapes = [
        cv2.resize(cv2.imread(str(source / f"{name}.png")), (96, 96)) for name in ("square-green-one", "circle-red-one")
    ]
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 96))
    for shape in shapes:
        for _ in range(8):
            writer.write(shape)
    writer.release()
    run = load_towers_run(pretrained)
    for number, name in enumerate(("square-green-one", "circle-red-one"), 1):
        frame = embed_query(run, str(tmp_path / f"clip.mp4#frame={number}of2"))
        assert frame @ embed_query(run, str(source / f"{name}.png")) > 0.9
    for name in ("clip.mov", "clp.mp4#frame=2of4", "missing.png#frame=1of2"):
        with pytest.raises(BadInputError, match=f"{name}: no such file"):
            search(str(tmp_path / name), indexed, device="cpu")


def test_an_index_finds_its_run_and_its_store_wherever_they_are(store, pretrained, tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "data").mkdir(parents=True)
    shutil.copytree(store, old / "data" / "store")
    shutil.copytree(pretrained, old / "runs" / "clip")
    monkeypatch.chdir(old)
    index(Path("data/store"), Path("runs/clip"), Path("data/idx"), device="cpu")
    monkeypatch.chdir(tmp_path)
    assert search("one red square", old / "data" / "idx", device="cpu").store == old / "data" / "store"
    old.rename(new)  # all of it
    assert search("one red square", Path("new/data/idx"), device="cpu").store == new / "data" / "store"
    (new / "runs" / "clip").rename(tmp_path / "elsewhere")
    (new / "data" / "store").rename(tmp_path / "store")
    with pytest.raises(
        BadInputError, match=r"the run that made the index is not at .*runs/clip; name it with --model RUN"
    ):
        search("one red square", new / "data" / "idx", device="cpu")
    assert index(tmp_path / "store", Path("elsewhere"), new / "data" / "idx", device="cpu").already
    assert search("one red square", new / "data" / "idx", device="cpu").store == tmp_path / "store"


def test_an_index_that_names_its_run_from_where_the_command_was_called(indexed, pretrained, tmp_path):
    # as they were written before paths were made absolute
    moved = shutil.copytree(indexed, tmp_path / "data" / "idx")
    shutil.copytree(pretrained, tmp_path / "runs" / "clip")
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["inputs"][1]["path"] = "runs/clip"
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert Index(moved).model == tmp_path / "runs" / "clip"


def test_a_store_and_an_index_without_the_pictures_paths_are_searched_all_the_same(
    store, indexed, pretrained, tmp_path
):
    import lance

    old = shutil.copytree(store, tmp_path / "store")
    lance.dataset(str(old / "pairs.lance")).drop_columns(["image_path"])
    assert Store(old, check=False).image_paths == [None] * 38
    opened = Index(indexed)
    vector = embed_query(load_towers_run(pretrained), "one red square")
    hits = opened.nearest(vector, "pictures", 3)
    shutil.copytree(indexed / "pictures.lance", tmp_path / "pictures.lance")
    opened.datasets["pictures"] = lance.dataset(str(tmp_path / "pictures.lance"))
    opened.datasets["pictures"].drop_columns(["image"])
    assert opened.nearest(vector, "pictures", 3) == [hit._replace(image=None) for hit in hits]


def test_a_page_shows_no_pictures_of_another_store(indexed):
    found = search("one red square", indexed, top=2, device="cpu")
    assert render_found("red", found).count('src="data:image/jpeg') == 2
    page = render_found("red", found._replace(sha256="0" * 64))
    assert f"Pictures are left out: {found.store} is not the store any more that was indexed." in page
    assert "data:image/jpeg" not in page
    assert found.hits[0].text in page
    gone = render_found("red", found._replace(store=found.store / "gone"))
    assert "Pictures and texts are left out" in gone
    assert "data:image/jpeg" not in gone


def test_an_index_made_by_another_model_is_refused(store, indexed, tmp_path):
    other = pretrain(
        "clip", store, tmp_path / "other", pretrain_options("clip", {"epochs": 1}), seed=1, device="cpu"
    ).out
    with pytest.raises(BadInputError, match="made by another model"):
        search("words", indexed, model=other, device="cpu")
