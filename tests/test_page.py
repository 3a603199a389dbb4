"""The page of `deftx serve` in a real browser: for mouse, keyboard and screen readers, wide and
narrow."""

import json

import browser
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from serve_stand_in import LABELS, NAMES, StandIn, serving

from deftx.serving import Access

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not browser.PROGRAM, reason="there is no Chromium"),
]
NONE = "(none: the task alone)"
SIZES = {"desktop": (1280, 800), "phone": (390, 800), "small phone": (320, 560)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser.browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def url():
    with serving(StandIn()) as port:
        yield f"http://127.0.0.1:{port}/"


def filled(page, text, language):
    page.wait("document.querySelectorAll('option').length > 1")
    page.run(f"document.querySelector('textarea').value = {json.dumps(text)}")
    page.run(f"document.querySelector('select').value = {json.dumps(language)}")
    page.run("document.querySelector('#ask button').click()")
    page.wait("document.querySelector('#result').children.length")
    page.wait("!document.querySelector('#ask button').disabled")
    return page.run("document.querySelector('#result').innerText").split("\n")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_texts_are_labelled_in_the_language_that_is_chosen(page, url, size, dark):
    page.console.clear()
    page.open(url, *size, dark=dark)
    lines = filled(page, "four\n\n  <b>é</b>  \n" + "x" * 60, "min")
    said = [line for line in lines if line]
    rows = [("four", 0.04), ("<b>é</b>", 0.08), ("x" * 60, 0.6)]
    assert said[0::5] == [text for text, _ in rows]
    for number, (_, bad) in enumerate(rows):
        shares = sorted(
            {"bad": bad, "good": NAMES.index("min") / 10}.items(), key=lambda row: -row[1]
        )
        assert said[5 * number + 1 : 5 * number + 5] == [
            w for label, p in shares for w in (label, f"{p:.1%}")
        ]
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), (
        "it must not scroll sideways"
    )
    assert page.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(23, 24, 28)" if dark else "rgb(251, 251, 249)"
    )
    assert page.picture().startswith(b"\x89PNG")
    assert page.console == []


def test_all_languages_can_be_chosen_and_none(page, url):
    page.open(url, *SIZES["desktop"])
    said = filled(page, "text", NONE)
    assert page.run("[...document.querySelectorAll('option')].map((o) => o.textContent)") == [
        NONE,
        *NAMES,
    ]
    assert f"{len(NAMES) / 10:.1%}" in said
    assert set(LABELS) <= set(said)


def test_pairs_of_texts_have_a_field_for_each(page, url):
    page.open(url, *SIZES["phone"])
    page.wait("document.querySelectorAll('option').length > 1")
    assert page.run("document.querySelector('#beside').checkVisibility()") is False
    switcher = StandIn()
    switcher.pairs = True
    with serving(switcher) as port:
        page.open(f"http://127.0.0.1:{port}/", *SIZES["phone"])
        page.wait("document.querySelector('#beside').checkVisibility()")
        assert filled(page, "one\ntwo", "min") == ["2 texts and 0 pairs: give one for each text"]
        page.run("document.querySelector('#second').value = 'a\\nb'")
        page.run("document.querySelector('#result').replaceChildren()")
        assert [line for line in filled(page, "one\ntwo", "min") if "/" in line] == [
            "one / a",
            "two / b",
        ]


# what stands beside the texts, what the task answers, the heading and the rows that are shown
KINDS = {
    "tagging": ("", (["X", "Y"],), "ba be", ["ba", "X", "be", "Y"]),
    "parsing": (
        "",
        ([(2, "nsubj"), (0, "root")],),
        "ba be",
        ["ba", "nsubj \u2190 be", "be", "root"],
    ),
    "question-answering": (
        "a <i>bo</i>",
        ("<i>bo</i>", 0.25),
        "ba be / a <i>bo</i>",
        ["<i>bo</i>", "25.0%"],
    ),
    "multiple-choice": (
        "one | the other",
        (1, 0.75),
        "ba be / one | the other",
        ["the other", "75.0%"],
    ),
    "regression": ("", (-1.5,), "ba be", ["-1.5"]),
    "generation": ("", ("bu\nby",), "ba be", ["bu by"]),
}


@pytest.mark.parametrize(
    ("kind", "beside", "answer", "heading", "rows"), [(kind, *row) for kind, row in KINDS.items()]
)
def test_every_kind_of_task_is_shown(page, kind, beside, answer, heading, rows):
    switcher = StandIn()
    switcher.kind, switcher.pairs = kind, kind == "question-answering"
    switcher.predict = lambda examples, languages: [answer] * len(examples)
    page.console.clear()
    with serving(switcher) as port:
        page.open(f"http://127.0.0.1:{port}/", *SIZES["phone"])
        page.wait("document.querySelectorAll('option').length > 1")
        assert page.run("document.querySelector('#beside').checkVisibility()") is bool(beside)
        page.run(f"document.querySelector('#second').value = {json.dumps(beside)}")
        said = [line for line in filled(page, "ba be", "min") if line]
    assert said == [heading, *rows]
    assert page.console == []


def test_what_is_wrong_is_said_on_the_page(page, url):
    page.open(url, *SIZES["phone"])
    assert filled(page, "break", "min") == ["the server failed (RuntimeError): its log says why"]
    page.run("document.querySelector('#result').replaceChildren()")
    assert filled(page, " \n ", "min") == ["Write a text first."]


def pressed(page, *keys):
    """Press keys, one after the other: names of keys, or text."""
    codes = {"Tab": (9, None), "Enter": (13, "\r")}
    for key in keys:
        if key not in codes:
            page.send("Input.insertText", text=key)
            continue
        number, text = codes[key]
        named = {"key": key, "code": key, "windowsVirtualKeyCode": number}
        page.send(
            "Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {})
        )
        page.send("Input.dispatchKeyEvent", type="keyUp", **named)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_server_with_a_token_asks_for_it_until_it_is_right(page, size, dark):
    page.console.clear()
    access = Access(token="secret")
    result = "document.querySelector('#result').innerText"
    with serving(StandIn(), access=access) as port:
        page.open(f"http://127.0.0.1:{port}/", *size, dark=dark)
        page.wait(f'{result} === "This server asks for its token."')
        shown = (
            "[...document.forms].filter((form) => form.checkVisibility()).map((form) => form.id)"
        )
        assert page.run(shown) == ["access"]
        # nothing but the keyboard: the field has the focus already
        for wrong in ("secrets", "пароль"):
            page.run("document.querySelector('#result').replaceChildren()")
            page.run("document.querySelector('#token').value = ''")
            pressed(page, wrong, "Enter")
            page.wait(f"{result} === 'The token is wrong.'")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        page.run("document.querySelector('#token').value = ''")
        pressed(page, " secret ", "Enter")
        page.wait("document.querySelectorAll('option').length > 1")
        page.wait("document.activeElement.id === 'text'")
        assert page.run(shown) == ["ask"]
        assert page.run("document.querySelector('#token').value") == "", (
            "it is not left in the page"
        )
        pressed(page, "four", "Tab", "Tab", "Enter")
        page.wait("document.querySelector('#result li')")
    # that a token is missing or wrong, the browser logs itself
    assert [line for line in page.console if "401" not in line] == []
    page.console.clear()


def test_a_text_can_be_asked_about_by_keyboard_alone(page, url):
    page.open(url, *SIZES["desktop"])
    page.wait("document.querySelectorAll('option').length > 1")
    pressed(page, "Tab", "four", "Tab", "Tab")
    ring = "getComputedStyle(document.activeElement).outlineWidth"
    assert (page.run("document.activeElement.tagName"), page.run(ring)) == ("BUTTON", "3px")
    pressed(page, "Enter")
    page.wait("document.querySelector('#result li')")
    assert page.run("document.querySelector('#result h2').textContent") == "four"


def test_everything_has_a_name_for_screen_readers_and_can_be_reached_by_keyboard(page, url):
    page.open(url, *SIZES["desktop"])
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    named = {
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in tree
        if not node["ignored"]
    }
    wanted = {
        ("textbox", "Texts, one a line"),
        ("combobox", "Language"),
        ("button", "Ask"),
        ("region", "Result"),
    }
    assert wanted <= named
    assert page.run("document.querySelector('#result').ariaLive") == "polite"
    reached = []
    for _ in range(4):
        pressed(page, "Tab")
        reached.append(page.run("document.activeElement.tagName"))
    assert reached == ["TEXTAREA", "SELECT", "BUTTON", "A"]
