import pytest

from nanochat_core.data.docstrings import docstrings
from nanochat_core.data.prose import description_paragraphs, is_prose, paragraphs, strip_markup
from nanochat_core.data.questions import ask, first_sentence

PROSE = "This method returns the rows of the table in the order in which they were added."


def test_a_plain_sentence_is_prose() -> None:
    assert is_prose(PROSE)


@pytest.mark.parametrize(
    "text",
    [
        "It returns the rows.",
        PROSE[:-1],
        PROSE[0].lower() + PROSE[1:],
        PROSE.replace("rows", "r\u00f6ws"),
        PROSE.replace("rows", "{rows}"),
        PROSE.replace("the table", "the table at https://example.org"),
        "Rows columns tables values numbers strings bytes integers floats lists tuples mappings.",
        "Set a_b=c.d(e) and f_g=h.i(j) or use k_l in the m_n with a o_p and the q_r for s_t.",
        "Permission is hereby granted to use this under the terms of the licence of the project.",
        "Returns: the rows of the table in the order in which they were added to it by the user.",
        PROSE * 40,
    ],
)
def test_what_does_not_read_as_english_is_left_out(text: str) -> None:
    assert not is_prose(text)


def test_markup_is_stripped_and_its_words_stay() -> None:
    text = "Use :class:`~pkg.Thing` or :func:`do it <pkg.do>`, ``x`` and **bold** `a <b>`_\n[c](d)."
    assert strip_markup(text) == "Use Thing or do it, x and bold a c."


DOCSTRING = f"""{PROSE}

    {PROSE.replace("rows", "columns")}

Parameters
----------
x
    The thing that is used by this function to find the rows of the table that was given.

Notes
-----
{PROSE.replace("rows", "notes")}

Examples
--------
{PROSE.replace("rows", "examples")}

Args:
    x: The thing that is used by this function to find the rows of the table that was given.

- {PROSE}
"""


def test_sections_lists_and_indented_blocks_are_dropped() -> None:
    assert paragraphs(DOCSTRING) == [PROSE, PROSE.replace("rows", "notes")]


def test_the_first_item_stands_for_the_opening_paragraph_even_when_it_is_dropped() -> None:
    assert paragraphs(f"short\n\n{PROSE}") == ["", PROSE]


def test_code_fences_and_headings_of_a_readme_are_dropped() -> None:
    readme = f"# Title\n\n{PROSE}\n\n```python\nThis is\n\n{PROSE}\n```\n<b>x</b>\n"
    assert description_paragraphs(readme) == [PROSE]


SOURCE = b'''"""Module."""
class A:
    """Class."""
    if True:
        async def b(self):
            """Method."""
add_newdoc("x", "y", """Attached.""")
def c(): "single quotes count too"
'''


def test_docstrings_carry_qualified_names() -> None:
    found = [(item.name, item.is_class, item.text) for item in docstrings(SOURCE)]
    assert found == [
        ("", False, "Module."),
        ("A", True, "Class."),
        ("A.b", False, "Method."),
        ("c", False, "single quotes count too"),
        ("", False, "Attached."),
    ]


def test_a_file_that_is_not_python_has_no_docstrings() -> None:
    assert docstrings(b'"""x""" this is not ( python') == []


def test_questions_are_answered_by_the_first_sentence() -> None:
    text = "Return the rows, e.g. all of them (i.e. A). The second sentence is not part of it."
    assert first_sentence(text) == "Return the rows, e.g. all of them (i.e. A)."
    question = ask("pkg.Table.rows", is_class=False, text=text)
    assert question is not None
    assert "pkg.Table.rows" in question.question
    assert question.answer == first_sentence(text)


@pytest.mark.parametrize("name", ["pkg._private.rows", "pkg." + "x" * 70])
def test_private_and_endless_names_are_not_asked_about(name: str) -> None:
    assert ask(name, is_class=False, text=PROSE) is None
