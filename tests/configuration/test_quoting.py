"""Words from files stay words, wherever they are written."""

import re

import pytest
from markdown import markdown as rendered

from vae_lightning.configuration.quoting import markdown, spreadsheet_cell

MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![](http://example.org/pixel.png)",
    "[click](javascript:alert(1))",
    "<http://example.org>",
    "[x]: http://example.org",
    "**loud** _soft_ `code`",
    "&lt;b&gt; &#x3C;b&#x3E;",
    "a\n\n# heading\n\n* item\n",
    "a\r---\rb",
    "\\*not\\* \\<b>",
]


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_text_is_shown_and_not_obeyed(text):
    page = rendered(f"Words: {markdown(text)}, and more")
    assert re.findall("<.*?>", page) == ["<p>", "</p>"]


def test_a_text_stays_in_its_cell_of_a_table():
    table = f"| name | value |\n|---|---|\n| {markdown('a | b' + chr(10) + '| c |')} | 1 |"
    page = rendered(table, extensions=["tables"])
    assert page.count("<tr>") == 2
    assert page.count("<td>") == 2
    assert "a | b\\n| c |" in page


@pytest.mark.parametrize("text", ["https://example.org", "www.example.org", "a@example.org", "$x$"])
def test_no_renderer_makes_a_link_or_a_formula_of_a_bare_text(text):
    assert markdown(text) != text
    assert text not in markdown(text)


@pytest.mark.parametrize("text", ["log-likelihood", "MNIST", "log p(x) = 1.5 - a + b"])
def test_plain_words_keep_their_look(text):
    assert rendered(f"Words: {markdown(text)}") == f"<p>Words: {text}</p>"


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1"],
)
def test_a_formula_becomes_a_text_for_a_spreadsheet(text):
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "-1.5", "+3e-4", "-inf", "a=b", "7.png", "'x", "nan"])
def test_numbers_and_words_stay_as_they_are_for_a_spreadsheet(text):
    assert spreadsheet_cell(text) == text
