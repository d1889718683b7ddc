"""Encodings: found where they are not UTF-8, counted, named by hand where that fails; mojibake repaired only where asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from labeler.cli import cli
from labeler.errors import BadInputError
from labeler.ingestion import IngestOptions, ingest
from labeler.records import Reject
from labeler.sources import Reading, read_source
from labeler.sources.text import SAMPLE_BYTES, EncodingError, decode_text, file_encoding, known_encoding

# what letters beyond ASCII tell apart, three lines each
LATIN = {
    "French": ("cp1252", ["Une fête très réussie", "Ça me rend triste où êtes-vous ?", "L’été dernier un élève déçu"]),
    "Portuguese": ("cp1252", ["Não acredito que emoção", "Amanhã é feriado em São Paulo", "Coração partido e lágrimas"]),
    "Swedish": ("cp1252", ["Jag är så glad över detta", "Hunden springer på ängen", "Kärlek och smärta går ihop"]),
    "Danish": ("cp1252", ["Jeg er så glad for at være her", "Børnene løber på stranden", "En rød kjole på gulvet"]),
    "German": ("cp1252", ["Schöne Grüße aus München", "„Das Mädchen läuft“ – über die Straße", "Früher war alles größer"]),
    "Spanish": ("cp1252", ["¿Dónde está el niño?", "¡Qué alegría más grande!", "El corazón del león 5 €"]),
    "Italian": ("cp1252", ["La città è bellissima", "Andrò al caffè più tardi", "Però non è giusto"]),
    "Icelandic": ("cp1252", ["Ég er mjög glaður í dag", "Það er kalt á Íslandi", "Þú ert bestur"]),
    "Polish": ("cp1250", ["Zażółć gęślą jaźń", "Dziękuję bardzo za życzenia", "Książka leży na stole"]),
    "Czech": ("cp1250", ["Příliš žluťoučký kůň úpěl", "Děkuji že jste přišli", "Malé dítě běží po louce"]),
    "Hungarian": ("cp1250", ["Köszönöm szépen a segítséget", "Őszi táj a hegyek között", "Szép gyűrű és hűvös szél"]),
    "Croatian": ("cp1250", ["Djevojčica trči po travi", "Hvala vam što ste došli", "Sretan rođendan i žuti cvijet"]),
    "Romanian": ("cp1250", ["Fetiţa aleargă în parc", "Îmi place această fotografie", "Mulţumesc pentru ajutor"]),
    "Turkish": ("cp1254", ["Çok güzel bir gün", "İstanbul'da yağmur yağıyor", "Küçük kız bahçede koşuyor"]),
    "Lithuanian": ("cp1257", ["Ačiū labai gražu", "Mergaitė bėga per pievą", "Šįvakar bus šalta"]),
    "Polish of Unix": ("iso8859_2", ["Zażółć gęślą jaźń", "Dziękuję bardzo śpij", "Książka leży na stole"]),
}  # fmt: skip
ENGLISH = ["It cost £66", "€80", "©", "© 2020 John", "Lego®", "Lego™", "It’s 5° outside", "5°C", "• first", "“Well”", "wait…",
           "don’t", "½ cup", "5 ± 2", "3×4", "a – b — c", "§ 5"]  # fmt: skip
OTHERS = {
    "cp1251": ["Привет как дела", "Сегодня хорошая погода", "Собака бежит по полю"],
    "koi8_r": ["Привет как дела", "Сегодня хорошая погода", "Собака бежит по полю"],
    "cp1253": ["Καλημέρα σε όλους", "Είμαι πολύ χαρούμενος", "Η θάλασσα είναι γαλάζια"],
    "cp932": ["今日はとても天気がいいです", "とても悲しい", "ソファーの上のアイス"],
    "cp949": ["오늘 날씨가 좋네요", "너무 슬퍼요", "강아지가 달린다"],
}
CHINESE = "今天天气真好，我们去公园玩吧"


def table(texts: list[str], encoding: str) -> bytes:
    rows = [f"{number},{text},{'joy' if number % 2 else 'anger'}" for number, text in enumerate(texts)]
    return "\r\n".join(["id,text,label", *rows, ""]).encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_table_is_read_in_its_own_encoding(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(table([f"{CHINESE}{number}" for number in range(6)], encoding))
    rows = list(read_source(path))
    assert [row.fields["text"] for row in rows] == [f"{CHINESE}{number}" for number in range(6)]
    guessed = encoding in ("gb18030", "utf-16")
    assert [bool(row.notes) for row in rows] == [guessed] * 6


@pytest.mark.parametrize("times", [1, 100], ids=["short", "long"])
@pytest.mark.parametrize("language", LATIN)
def test_pages_of_latin_letters_are_told_by_the_alphabets_of_languages(tmp_path, language, times):
    encoding, texts = LATIN[language]
    path = tmp_path / "a.csv"
    path.write_bytes(table(texts * times, encoding))
    assert [row.fields["text"] for row in read_source(path)] == texts * times
    assert file_encoding(path) == encoding


@pytest.mark.parametrize("encoding", OTHERS)
def test_other_scripts_are_not_taken_for_latin_letters(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(table(OTHERS[encoding], encoding))
    assert [row.fields["text"] for row in read_source(path)] == OTHERS[encoding]


@pytest.mark.parametrize("text", ENGLISH)
def test_signs_of_english_texts_tell_windows_page_from_those_in_which_they_are_letters(tmp_path, text):
    alone, path = tmp_path / "folder" / "alone.txt", tmp_path / "a.csv"
    alone.parent.mkdir()
    alone.write_bytes(text.encode("cp1252"))
    path.write_bytes(table([text, "plain words"], "cp1252"))
    assert [row.fields["text"] for row in read_source(alone.parent)] == [text]
    assert [row.fields["text"] for row in read_source(path)] == [text, "plain words"]


@pytest.mark.parametrize("text", ["Był stół", "miał", "żółw"])
def test_a_letter_that_another_page_has_as_a_sign_is_still_a_letter(text):
    assert decode_text(text.encode("cp1250")) == (text, "cp1250")


def test_several_languages_of_one_page_are_read_line_by_line(tmp_path):
    texts = [text for encoding, lines in LATIN.values() if encoding == "cp1252" for text in lines]
    assert decode_text("\n".join(texts).encode("cp1252")) == ("\n".join(texts), "cp1252")


def test_the_line_that_is_not_utf8_tells_the_encoding_however_late_it_comes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(table(["plain words"] * 60_000 + [CHINESE, "more"], "gb18030"))
    assert path.stat().st_size > SAMPLE_BYTES
    assert file_encoding(path) == "gb18030"
    assert [row.fields["text"] for row in read_source(path)][-2:] == [CHINESE, "more"]


@pytest.mark.parametrize("end", ["", "\n"], ids=repr)
def test_the_last_line_tells_the_encoding_without_a_line_break_too(tmp_path, end):
    path = tmp_path / "pairs.csv"
    path.write_bytes(f"text,label\na plain line,sad\nUne fête très réussie,joy{end}".encode("cp1252"))
    assert [row.fields["text"] for row in read_source(path)] == ["a plain line", "Une fête très réussie"]


def test_a_character_across_two_pieces_is_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (SAMPLE_BYTES - 1) + "é".encode())
    assert file_encoding(path) == "utf-8"
    path.write_bytes(b"x" * SAMPLE_BYTES + "é".encode()[:1])
    with pytest.raises(EncodingError, match="ends inside a character"):
        file_encoding(path)


def test_an_encoding_that_was_named_is_not_guessed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(table(["café crème", "déjà vu"], "cp1252"))
    rows = list(read_source(path, Reading(encoding="cp1252")))
    assert [(row.fields["text"], row.notes) for row in rows] == [("café crème", ()), ("déjà vu", ())]
    with pytest.raises(BadInputError, match=r"a\.csv: byte \d+ is not utf-8"):
        list(read_source(path, Reading(encoding="utf-8")))


def test_bytes_that_are_no_text_are_said_to_be_none(tmp_path):
    with pytest.raises(EncodingError, match="no other encoding fits; name it with --encoding"):
        decode_text(bytes(range(256)))
    with pytest.raises(EncodingError, match="byte 0 is not ascii"):
        decode_text("é".encode(), "ascii")
    assert decode_text("\ufeffa".encode()) == ("a", "utf-8")


def test_sidecars_are_read_each_in_its_own_encoding(tmp_path):
    for name, data in {"a": CHINESE.encode("gb18030"), "b": CHINESE.encode(), "c": bytes(range(256))}.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    items = list(read_source(tmp_path))
    assert [(item.fields["text"], item.notes) for item in items[:2]] == [
        (CHINESE, ("encoding gb18030",)),
        (CHINESE, ()),
    ]
    assert isinstance(items[2], Reject)
    assert (items[2].id, items[2].code) == ("c.txt", "text-unreadable")


@pytest.mark.parametrize("encoding", ["cp1251", "koi8_r", "cp932", "cp1250"])
def test_a_short_sidecar_is_read_in_the_encoding_of_its_folder(tmp_path, encoding):
    texts = OTHERS.get(encoding, LATIN["Polish"][1])
    short = {"cp1251": "Да", "koi8_r": "Да, нет", "cp932": "日本", "cp1250": "dziękuję"}[encoding]
    for number, text in enumerate([short, *texts]):
        place = tmp_path / "below" / f"{number}.txt" if number % 2 else tmp_path / f"{number}.txt"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(text.encode(encoding))
    (tmp_path / "plain.txt").write_text("déjà vu", encoding="utf-8")
    (tmp_path / "wide.txt").write_text("a wide text", encoding="utf-16")
    items = {row.fields["id"]: (row.fields["text"], row.notes) for row in read_source(tmp_path)}
    assert items["wide.txt"][0] == "a wide text"
    assert items["0.txt"] == (short, (f"encoding {encoding}",))
    assert items["plain.txt"] == ("déjà vu", ())
    alone, _ = decode_text(short.encode(encoding))
    assert alone != short, "by itself it looks like something else"


def test_fault_10_a_sidecar_that_leads_outside_or_never_ends_is_not_read(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (inside / "a.txt").symlink_to(tmp_path / "secret.txt")
    (inside / "b.txt").write_bytes(b"x" * (1 << 20) + b"y")
    (inside / "c.txt").write_bytes(b"x" * (1 << 20))
    items = list(read_source(inside))
    assert [(item.id, item.code) for item in items[:2]] == [("a.txt", "text-unreadable"), ("b.txt", "text-unreadable")]
    assert "outside" in items[0].message
    assert len(items[2].fields["text"]) == 1 << 20


def test_the_profile_counts_what_was_guessed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(table([f"{CHINESE}{number}" for number in range(12)], "gb18030"))
    profile = ingest([path], tmp_path / "out").profile
    assert (profile["encodings"], profile["fixed_texts"]) == ({"gb18030": 12}, 0)


def test_mojibake_is_repaired_only_where_asked(tmp_path):
    broken, odd = "schÃ¶n â€” dÃ©jÃ  vu", "ﬁne “quotes” &amp; Ｆｕｌｌ"
    path = tmp_path / "a.jsonl"
    texts = [broken, odd] + [f"plain {number}" for number in range(10)]
    path.write_text(
        "".join(json.dumps({"text": text, "label": "ab"[row % 2]}) + "\n" for row, text in enumerate(texts)),
        encoding="utf-8",
    )
    read = {}
    for fix in (False, True):
        result = ingest([path], tmp_path / str(fix), IngestOptions(fix_text=fix))
        lines = (tmp_path / str(fix) / "records.jsonl").read_text(encoding="utf-8").splitlines()
        read[fix] = [json.loads(line)["text"] for line in lines]
        assert result.profile["fixed_texts"] == int(fix)
    assert read[False][:2] == [broken, odd]
    assert read[True] == ["schön — déjà vu", *read[False][1:]]


def test_no_such_encoding_is_a_usage_error(tmp_path):
    path: Path = tmp_path / "a.csv"
    path.write_bytes(table(["a", "b"], "utf-8"))
    result = CliRunner().invoke(cli, ["ingest", str(path), "--out", str(tmp_path / "out"), "--encoding", "utf-99"])
    assert result.exit_code == 2
    assert "'utf-99' is no text encoding; try utf-8, gb18030" in result.output
    assert known_encoding("GB18030") == "gb18030"
    with pytest.raises(LookupError, match="rot13 is no text encoding"):
        known_encoding("rot13")
