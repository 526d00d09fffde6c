"""Reward function language: how much of a text is in the language that was asked for, without a model.

Scripts tell most languages apart; languages of one script are told apart, sentence by sentence, by their commonest
words. Formulas, code, links and tags are not read.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from funicular.rewards.messages import texts_of
from funicular.rewards.nearest import known_names

_SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl"), frozenset({"LATIN", "FULLWIDTH"})),
    **dict.fromkeys(("ru", "uk", "bg"), frozenset({"CYRILLIC"})),
    "el": frozenset({"GREEK"}),
    "ar": frozenset({"ARABIC"}),
    "he": frozenset({"HEBREW"}),
    "hi": frozenset({"DEVANAGARI"}),
    "th": frozenset({"THAI"}),
    "zh": frozenset({"CJK", "IDEOGRAPHIC"}),
    "ja": frozenset({"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH"}),
    "ko": frozenset({"HANGUL"}),
}
"""First words of the Unicode names of each language's letters."""

_COMMON: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is that it for was on are as with be at this have from or by not we so which you then",
        "de": "der die das und ist nicht ein eine den dem des mit auf für von zu im wir sich auch als es wird sind",
        "fr": "le la les des est et un une du que qui dans pour pas sur avec au ce nous il elle sont donc plus par",
        "es": "el la los las de que y en un una es por con para no se del al lo como más su son está entonces",
        "it": "il lo la gli di che e un una è per con non si del della nel sono come più anche questo quindi dei ha",
        "pt": "o a os as de que e em um uma é para com não se do da no na dos por mais como são então isso",
        "nl": "de het een en van is dat in op te zijn met voor niet aan er om ook als bij wordt dus deze naar we",
        "sv": "och att det som en ett är på för av med den till inte om har vi de så från kan men detta blir",
        "pl": "i w nie na się z do to że jest jak o po co ale czy dla od są przez więc który tak ten przy",
        "ru": "и в не на что я с он как это по но из у за то все так же от бы для вы мы был если есть их",
        "uk": "і в не на що я з він як це по але із у за то всі так же від би для ви ми був якщо є та їх",
        "bg": "и в не на че аз с той как това по но от за то се да ще са е към при след или беше ако има ги",
    }.items()
}

_LANGUAGES_OF: dict[str, list[str]] = {}
for _code, _words in _COMMON.items():
    for _one in _words:
        _LANGUAGES_OF.setdefault(_one, []).append(_code)
_WORD = re.compile(r"[^\W\d_]+")
_NOT_PROSE = re.compile(r"`[^`\n]*`|\$\$[^$]*\$\$|\$[^$\n]*\$|\\[A-Za-z]+|https?://\S+|</?[A-Za-z][^<>\n]{0,80}>")
_SENTENCE = re.compile(r"(?<=[.!?:;])\s+|\n+|(?<=[。！？；])")
_KANA_SHARE = 0.1
"""Of the letters of a Japanese text, at least; Chinese has none."""


def language(completions: list[Any], *, language: str, **_: Any) -> list[float | None]:
    """Share of the text's letters that are in the language: 1.0 for all of them; 0.0 for a text without letters.

    A letter of another script never counts. A sentence whose common words are mostly another language's does not
    count either; one without any common word is judged by its script.

    Args:
        language: ISO 639-1 code: en, de, fr, es, it, pt, nl, sv, pl, ru, uk, bg, el, ar, he, hi, th, zh, ja, ko.
    """
    if language not in _SCRIPTS:
        raise ValueError(f"language: language={language!r} is not known here; {known_names(str(language), _SCRIPTS)}")
    return [_share(text, language) for text in texts_of(completions)]


def _share(text: str, language: str) -> float:
    prose = _NOT_PROSE.sub(" ", _without_blocks(text))
    letters = counted = kana = 0
    for sentence in _SENTENCE.split(prose):
        scripts = [_script(character) for character in sentence if character.isalpha()]
        letters += len(scripts)
        kana += sum(script in ("HIRAGANA", "KATAKANA") for script in scripts)
        if _may_be(sentence, language):
            counted += sum(script in _SCRIPTS[language] for script in scripts)
    if not letters:
        return 0.0
    share = counted / letters
    return share * min(1.0, kana / letters / _KANA_SHARE) if language == "ja" else share


def _without_blocks(text: str) -> str:
    """The text without fenced code and formulas in brackets. No regular expression: those take quadratic time."""
    text = " ".join(text.split("```")[::2])
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        before, *rest = text.split(opening)
        text = " ".join([before, *(part.partition(closing)[2] if closing in part else part for part in rest)])
    return text


def _may_be(sentence: str, language: str) -> bool:
    """Whether no other language of the same script has more common words in the sentence."""
    hits = Counter(
        other
        for word in _WORD.findall(sentence.lower())
        for other in _LANGUAGES_OF.get(word, ())
        if _SCRIPTS[other] == _SCRIPTS[language]
    )
    return not hits or hits[language] == max(hits.values())


@lru_cache(maxsize=65536)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
