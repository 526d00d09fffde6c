"""Reward functions of a text's shape: length, repetition, language."""

from typing import Any

import pytest

from funicular.rewards.language import language
from funicular.rewards.length import length, overlong
from funicular.rewards.repetition import degenerate, repetition

ENGLISH = "The answer is that the sum of the two numbers is even, so we can divide it by two."
GERMAN = "Die Antwort ist, dass die Summe der beiden Zahlen gerade ist, also kann man sie durch zwei teilen."
FRENCH = "La réponse est que la somme des deux nombres est paire, donc on peut la diviser par deux."
SPANISH = "La respuesta es que la suma de los dos números es par, entonces se puede dividir por dos."
ITALIAN = "La risposta è che la somma dei due numeri è pari, quindi si può dividere per due."
DUTCH = "Het antwoord is dat de som van de twee getallen even is, dus we kunnen het door twee delen."
RUSSIAN = "Ответ в том, что сумма этих чисел чётная, и её можно разделить на два."
UKRAINIAN = "Відповідь у тому, що сума цих чисел парна, і її можна поділити на два."
CHINESE = "答案是这两个数的和是偶数,所以可以被二整除。"
JAPANESE = "答えは、二つの数の和は偶数なので、二で割ることができます。"
KOREAN = "답은 두 수의 합이 짝수이므로 둘로 나눌 수 있다는 것입니다."
SAMPLES = {
    "en": ENGLISH, "de": GERMAN, "fr": FRENCH, "es": SPANISH, "it": ITALIAN, "nl": DUTCH, "ru": RUSSIAN,
    "uk": UKRAINIAN, "zh": CHINESE, "ja": JAPANESE, "ko": KOREAN,
}  # fmt: skip


def ids(*counts: int) -> list[list[int]]:
    return [[0] * count for count in counts]


def test_length_to_a_target_and_up_to_a_maximum() -> None:
    assert length(ids(0, 5, 10, 15, 30), target=10) == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert length(ids(0, 5, 10, 15, 30), max=10) == [1.0, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("options", [{}, {"target": 1, "max": 2}, {"target": 0}])
def test_length_needs_exactly_one_positive_option(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="length"):
        length(ids(1), **options)


def test_overlong_is_dapos_equation_13() -> None:
    counts = (0, 16384, 16385, 18432, 20479, 20480, 20481, 99999)
    expected = [0.0, 0.0, -1 / 4096, -0.5, -4095 / 4096, -1.0, -1.0, -1.0]
    assert overlong(ids(*counts), max=20480, cache=4096) == expected


@pytest.mark.parametrize(("most", "cache"), [(10, 0), (10, 11), (0, 0)])
def test_overlong_refuses_an_impossible_cache(most: int, cache: int) -> None:
    with pytest.raises(ValueError, match="0 < cache <= max"):
        overlong(ids(), max=most, cache=cache)


def test_repetition_is_the_share_of_n_grams_seen_before() -> None:
    texts = ["a b c d e", "a b a b a b", "A b a B", "a b", ""]
    assert repetition(texts, ids(0, 0, 0, 0, 0), ngram=2) == [
        0.0,
        pytest.approx(-3 / 5),
        pytest.approx(-1 / 3),
        0.0,
        0.0,
    ]
    assert repetition(["x " * 1000], ids(0), max_penalty=-0.5) == [pytest.approx(-0.5, abs=0.001)]


def test_repetition_counts_tokens_where_there_are_no_spaces() -> None:
    assert repetition(["是的是的是的"], [[1, 2, 1, 2, 1, 2]], ngram=2, unit="tokens") == [pytest.approx(-0.6)]


@pytest.mark.parametrize("options", [{"ngram": 0}, {"max_penalty": 1.0}, {"max_penalty": float("nan")}, {"unit": "x"}])
def test_repetition_refuses_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        repetition([], [], **options)


@pytest.mark.parametrize(
    "loop",
    [
        "I am stuck. " * 20,
        "I am stuck. " * 20 + "I am st",
        "I am stuck. " * 20 + "\n\n  ",
        "0" * 200,
        "ab" * 60,
        "A longer sentence that goes on and on, until it starts again. " * 4,
        "字" * 100,
        "x" * 100_000,
    ],
)
def test_a_loop_at_the_end_is_degenerate(loop: str) -> None:
    assert degenerate([loop, f"First some sensible words.\n{loop}"]) == [1.0, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A normal answer. It ends.",
        "ha" * 20,
        "I am stuck. " * 20 + "But then I found the answer: 5.",
        "A longer sentence that goes on and on, until it starts again. " * 3,
        "".join(f"Step {n}: go on. " for n in range(100)),
        "A word, then " + " " * 200,
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    ],
)
def test_other_texts_are_not(text: str) -> None:
    assert degenerate([text]) == [0.0]


def test_degenerate_can_be_made_stricter() -> None:
    assert degenerate(["ha" * 20], min_length=10) == [1.0]
    assert degenerate(["A longer sentence that goes on and on, until it starts again. " * 3], repeats=3) == [1.0]
    for options in ({"repeats": 1}, {"min_length": 0}):
        with pytest.raises(ValueError, match="degenerate"):
            degenerate([], **options)


@pytest.mark.parametrize("code", SAMPLES)
def test_each_language_is_told_from_all_others(code: str) -> None:
    own, *others = language([SAMPLES[code], *(text for other, text in SAMPLES.items() if other != code)], language=code)
    assert own == 1.0
    assert max(value for value in others if value is not None) < 0.6


def test_a_mixed_text_gets_its_share() -> None:
    [value] = language([f"{ENGLISH} {GERMAN}"], language="en")
    assert value is not None
    assert 0.4 < value < 0.5
    [value] = language([f"{ENGLISH} {CHINESE}"], language="en")
    assert value is not None
    assert 0.7 < value < 0.8


def test_formulas_code_links_and_tags_are_not_read() -> None:
    formulas = "$x+y$ \\(ab\\) \\[ f(x) \\] \\boxed{2} $$a = b$$"
    code = "`print` https://example.org/abc\n```\nfor x in y\n```"
    assert language([f"<think>{CHINESE}</think> {formulas} {code}"], language="zh") == [1.0]


def test_names_and_fragments_are_judged_by_their_script() -> None:
    assert language(["Eureka!"], language="en") == [1.0]
    assert language(["Eureka!"], language="ru") == [0.0]


def test_a_text_without_letters_is_in_no_language() -> None:
    assert language(["", "42", "```\nall code\n```"], language="en") == [0.0, 0.0, 0.0]


def test_an_unknown_language_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="expected one of ar, bg, de"):
        language([], language="english")
