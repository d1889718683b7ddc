"""Alphabets: which of the single-byte pages of Latin letters the bytes of a text were written in.

What finds encodings by statistics tells these pages apart badly: French in cp1252 is Central European letters too when it is
read as cp1250, only letters that no language uses together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WESTERN = {
    "French": "àâæçéèêëîïôœùûüÿ",
    "German": "äöüßé",
    "Spanish": "áéíñóúü¿¡ºª",
    "Portuguese": "àáâãçéêíóôõúüºª",
    "Italian": "àéèìíîòóùúºª",
    "Dutch": "áäéèëêíïóöúü",
    "Swedish, Finnish": "äåöéà",
    "Danish, Norwegian": "æåøéèêóòôü",
    "Icelandic": "áæéðíóöþúý",
    "Catalan": "àçéèíïòóúü·",
    "Estonian": "äõöüšž",
}
CENTRAL = {
    "Polish": "ąćęłńóśźż",
    "Czech": "áčďéěíňóřšťúůýž",
    "Slovak": "áäčďéíĺľňóôŕšťúýž",
    "Hungarian": "áéíóöőúüű",
    "Croatian, Slovene": "čćđšž",
    "Romanian": "ăâîşţ",
}
TURKISH = {"Turkish": "çğıİöşüâîû"}
BALTIC = {"Lithuanian": "ąčęėįšųūž", "Latvian": "āčēģīķļņšūž"}
# of equal ones the first: the page of most languages, and Windows' before others, which have no curly quotes
PAGES = {"cp1252": WESTERN, "cp1250": CENTRAL, "cp1254": TURKISH, "cp1257": BALTIC, "iso8859_2": CENTRAL}
SUBSETS = {"latin_1": "cp1252", "iso8859_9": "cp1254"}  # all that they have beside control characters
VISIBLE = "‘’‚‛“”„‹›«–—…•€©®™°§×"
SIGNS = VISIBLE + "»\u00a0\u00ad"  # of any language
# signs in one page, letters in another (`³` is the `ł` at the end of a Polish word): covered only where no letter touches them
AMBIGUOUS = "£¥¢¼½¾±¹²³"
# signs where signs stand; what follows is below @, where second bytes of two-byte characters begin
STANDING = re.compile(
    f"(?:[{VISIBLE}]|(?<![^\\W\\d_])[{AMBIGUOUS}»])(?=[\\x00-\\x3f]|$)|(?<=[A-Za-z])’(?=[A-Za-z])|(?<=[0-9])°(?=[CF]\\b)"
)
WORD = re.compile(r"(?:[^\W\d_]|[^\x00-\x7f])+")
MOST = 0.8  # of the letters: then it is one of PAGES, whatever else was guessed
LINES = 2000


def latin_page(data: bytes, guess: str) -> str:
    """Return the page of PAGES whose languages cover most letters of `data`; `guess` where that is none and they cover too few.

    Each line is taken for the language that covers it best; where pages are equal by lines, the one language counts that
    covers most of all lines together.
    """
    guess = SUBSETS.get(guess, guess)
    found = {}
    for page, languages in PAGES.items():
        try:
            found[page] = coverage(data.decode(page).splitlines()[:LINES], languages.values())
        except UnicodeDecodeError:
            continue
    best = max(found, key=lambda page: found[page], default=guess)
    return best if guess in found or (found and found[best][0] >= MOST) else guess


def coverage(lines: Iterable[str], languages: Iterable[str]) -> tuple[float, float]:
    """Return which share of the letters beyond ASCII the languages' alphabets cover: each line's best, and the best of all."""
    alphabets = [frozenset(letters + letters.upper() + SIGNS + AMBIGUOUS) for letters in languages]
    total, by_line, together = 0, 0, [0] * len(alphabets)
    for line in lines:
        number, usual = foreign_letters(line)
        total += number
        counts = [sum(letter in alphabet for letter in usual) for alphabet in alphabets]
        by_line += max(counts)
        together = [sum(pair) for pair in zip(together, counts, strict=True)]
    return by_line / max(total, 1), max(together) / max(total, 1)


def foreign_letters(line: str) -> tuple[int, list[str]]:
    """Return how many characters beyond ASCII a line has, and those that stand as letters of Latin words or as signs do.

    Such a word has letters of ASCII too or is one letter, and no capital follows a small letter in it: bytes of other
    scripts, read as Latin letters, make words that do not look so. SIGNS that do not stand as signs do are not counted:
    they say nothing.
    """
    usual = STANDING.findall(line)
    number = len(usual)
    for run in WORD.findall(STANDING.sub(" ", line)):
        word = run.strip(SIGNS)
        places = [place for place, sign in enumerate(word) if not sign.isascii() and sign not in SIGNS]
        number += len(places)
        if len(word) == 1 or any(sign.isascii() for sign in word):
            letters = [at for at in places if word[at] not in AMBIGUOUS]
            usual += [word[at] for at in letters if not (word[at].isupper() and word[at - 1 : at].islower())]
    return number, usual
