"""The report of a run: what is in it, what is left out where a run has less, and how it looks in a
browser."""

import importlib.util
import io
import json
import re
import shutil
from html import escape
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from PIL import Image
from scipy import stats
from synthetic_run import LAYERS, VARIANTS, make_run

from deftx.cli import main
from deftx.core.vector import overlap
from deftx.errors import DeftxError
from deftx.experiments.report import page
from deftx.experiments.report.comparisons import AVERAGE, Comparison, compare, score_run
from deftx.experiments.report.statistics import Difference
from deftx.experiments.report.style import GREY, colour_cells, new_figure, variant_styles
from deftx.experiments.report.tables import (
    BETTER,
    NOTHING,
    SURELY_BETTER,
    language_comparisons,
    probability,
    score_table,
)
from deftx.experiments.report.vectors import (
    LANGUAGE,
    layer_and_kind,
    spectra,
    vector_statistics,
)
from deftx.experiments.run_folder import read_run
from deftx.storage.vector_files import load

pytestmark = pytest.mark.once


BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
SECTIONS = ["scores", "comparison", "overlap", "ranks", "places", "training", "trimmed", "settings"]


def typed(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 3 variants, 3 seeds and 3 languages, with all that a run can hold, and its report in
    RUN/report."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", ngrams=True)
    assert typed("report", folder) == 0
    return folder


@pytest.fixture(scope="module")
def html(run) -> str:
    return (run / "report" / page.PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(run) -> str:
    return (run / "report" / page.TEXT).read_text(encoding="utf-8")


@pytest.fixture
def plain(tmp_path) -> Path:
    """A run without vectors: quickly reported on."""
    return make_run(tmp_path / "run", languages=("ace", "min"), examples=60, vectors=False)


def sections_of(html: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)"', html)


# The page


def test_a_whole_run_has_every_section_and_names_every_variant(html, text):
    assert sections_of(html) == [*SECTIONS, "repeat"]
    for name in [*VARIANTS, "character n-grams", "ace", "min", "ban", "ind"]:
        assert name in html
        assert name in text
    for word in [
        "518 of 11,000",
        "published: LT-SFT",
        "deftx run nusax-nano.yaml",
        "2.13.0",
        "NusaX sentiment",
    ]:
        assert word in html
        assert word in text


def test_a_page_needs_nothing_from_elsewhere(html):
    assert "<script" not in html
    assert "@import" not in html
    assert set(re.findall(r'<link[^>]*href="([^"]*)"', html)) == {"data:,"}
    loaded = re.findall(r'(?:\bsrc|xlink:href|[^k]href)="([^"]*)"|url\(([^)]*)\)', html)
    assert [
        place for pair in loaded for place in pair if place and not place.startswith(("#", "data:"))
    ] == []


def test_ids_are_unique_and_what_is_pointed_at_is_there(html):
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 50
    assert {*re.findall(r'href="#([^"]+)"', html), *re.findall(r"url\(#([^)]+)\)", html)} <= set(
        ids
    )


def test_every_figure_is_there_three_times_and_says_what_it_shows(run, html, text):
    names = re.findall(r"\(figures/([\w-]+)\.png\)", text)
    assert len(names) == len(set(names)) == html.count("<figure>") == 9
    for name in names:
        assert (run / "report" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run / "report" / "figures" / f"{name}.svg").read_text().startswith("<svg")
    described = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert len(described) == 9
    assert all(len(words) > 20 for words in described)


def test_no_place_on_the_makers_disk_is_told(html, text):
    assert "somebody" not in html + text
    assert "nano-xlmr" in html


def test_the_markdown_tables_have_as_many_cells_in_every_row(text):
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_names_cannot_become_markup(tmp_path):
    strange = {'<b>$x_1$ & "|': {}, "_hidden": {}, "LT-SFT": {}, "表": {}}
    folder = make_run(
        tmp_path / "run", strange, (0, 1), ("ace", "m<i>n"), examples=30, vectors=False, paper=None
    )
    assert typed("report", folder) == 0
    found = (folder / "report" / page.PAGE).read_text(encoding="utf-8")
    assert "<b>" not in found
    assert "<i>" not in found
    for name in strange:
        assert escape(name, quote=False) in found.replace("&#34;", '"')


def test_the_same_run_gives_the_same_page(plain, tmp_path):
    for out in ("one", "two"):
        assert typed("report", plain, "--out", tmp_path / out) == 0
    one, two = (
        sorted(p for p in (tmp_path / out).rglob("*") if p.is_file()) for out in ("one", "two")
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


# The table


def test_cells_are_mean_and_deviation_over_the_seeds_with_the_average_taken_within_a_seed(plain):
    read = read_run(plain)
    table = score_table(read, None, [])
    assert list(table.columns) == ["", "ace", "min", AVERAGE, "ind"]
    scores = read.scores("LT-SFT")
    cells = {line.name: line.cells for line in table.lines}["LT-SFT"]
    for column, cell in zip(table.columns[1:], cells, strict=True):
        values = [
            100 * (mean((s["ace"], s["min"])) if column == AVERAGE else s[column])
            for s in scores.values()
        ]
        assert cell.text == f"{mean(values):.1f} ± {stdev(values):.1f}"


def test_the_best_of_a_column_is_bold_and_what_beats_the_baseline_is_marked(tmp_path):
    skill = {"no language vector": 0.5, "LT-SFT": 0.65, "DeFT-X 90%": 0.66, "DeFT-X 64": 0.85}
    variants = {**VARIANTS, "DeFT-X 64": {}}
    run = read_run(make_run(tmp_path / "run", variants, skill=skill, examples=400, vectors=False))
    scores = score_run(run)
    compared = [compare(run, scores, name, "LT-SFT") for name in variants if name != "LT-SFT"]
    lines = {
        line.name: line.cells
        for line in score_table(run, "LT-SFT", compared).lines
        if not line.aside
    }
    assert all(cell.best for cell in lines["DeFT-X 64"])
    assert {cell.mark for cell in lines["DeFT-X 64"]} == {SURELY_BETTER}
    assert {cell.mark for cell in lines["DeFT-X 90%"]} <= {"", BETTER, SURELY_BETTER}
    assert not any(
        cell.best or cell.mark for name in ("no language vector", "LT-SFT") for cell in lines[name]
    )
    assert {cell.mark for cells in score_table(run, None, []).lines for cell in cells.cells} == {""}


@pytest.mark.parametrize(("low", "mark"), [(-0.01, BETTER), (0.01, SURELY_BETTER)])
def test_a_mark_is_hollow_where_chance_may_explain_it(tmp_path, low, mark):
    skill = {"LT-SFT": 0.5, "DeFT-X 90%": 0.8}
    run = read_run(make_run(tmp_path / "run", skill=skill, examples=50, vectors=False))
    error = (0.02 - low) / stats.t.ppf(0.975, 100)
    gap = Difference(0.02, error, 100.0, 3)
    found = Comparison("DeFT-X 90%", "LT-SFT", (0, 1, 2), dict.fromkeys(run.languages, gap), gap)
    cells = {line.name: line.cells for line in score_table(run, "LT-SFT", [found]).lines}[
        "DeFT-X 90%"
    ]
    assert {cell.mark for cell in cells} == {mark}


def test_the_papers_rows_stand_apart_with_its_average_only_where_it_has_all_languages(plain):
    lines = [line for line in score_table(read_run(plain), None, []).lines if line.aside]
    assert [line.name for line in lines] == ["published: LT-SFT", "published: DeFT-X"]
    assert [cell.text for cell in lines[0].cells] == ["71.5", "80.2", "75.9", NOTHING]
    assert not any(cell.best or cell.mark for line in lines for cell in line.cells)


def test_of_several_published_tables_each_has_its_rows_and_is_named(tmp_path):
    """Of one that gives averages alone the average is shown as it stands; where there are languages
    it is theirs."""
    url = "https://example.org/paper"
    tables = [
        {
            "table": "Table 2, base A",
            "url": url,
            "rows": {"LT-SFT": {"ace": 70.0, "min": 80.0, "average": 99.0}},
        },
        {"table": "Table 4, base A", "url": "", "rows": {"LT-SFT": {"average": 80.2}}},
    ]
    folder = make_run(
        tmp_path / "run", VARIANTS, (0,), ("ace", "min"), examples=30, vectors=False, paper=tables
    )
    read = read_run(folder)
    cells = [
        [cell.text for cell in line.cells][:3]
        for line in score_table(read, None, []).lines
        if line.aside
    ]
    assert cells == [["70.0", "80.0", "75.0"], [NOTHING, NOTHING, "80.2"]]
    assert typed("report", folder) == 0
    shown = (folder / "report" / page.PAGE).read_text(encoding="utf-8")
    assert (
        "numbers: Table 2, base A (https://example.org/paper); Table 4, base A. Their base" in shown
    )


def test_a_mark_of_one_seed_is_hollow_and_nothing_is_bold(tmp_path):
    skill = {"LT-SFT": 0.3, "DeFT-X 90%": 0.9}
    run = read_run(make_run(tmp_path / "run", seeds=(0,), skill=skill, vectors=False))
    found = compare(run, score_run(run), "DeFT-X 90%", "LT-SFT")
    assert found.average.low > 0
    cells = [cell for line in score_table(run, "LT-SFT", [found]).lines for cell in line.cells]
    assert {cell.mark for cell in cells} == {"", BETTER}
    assert not any(cell.best for cell in cells)
    assert not any(
        cell.best for line in language_comparisons(run, [found]).lines for cell in line.cells
    )


def test_p_is_never_said_to_be_nothing():
    assert [probability(p) for p in (0.0001, 0.0123, 0.25, 1.0)] == [
        "< 0.001",
        "0.012",
        "0.25",
        "1.00",
    ]


# What vectors show


def test_overlaps_places_and_ranks_are_those_of_the_vectors(run):
    read = read_run(run)
    statistics = vector_statistics(read)
    vectors = {
        seed: {
            s.name: load(read.store / s.id / "vector")
            for s in read.vectors("LT-SFT")
            if s.seed == seed
        }
        for seed in (0, 1, 2)
    }
    assert statistics.overlap_with_task["LT-SFT", "ace"] == [
        overlap(of["ace"], of["task"]) for of in vectors.values()
    ]
    assert ("no language vector", "ace") not in statistics.overlap_with_task
    assert statistics.overlap_of_languages["LT-SFT"]["min", "ace"] == overlap(
        vectors[0]["min"], vectors[0]["ace"]
    )
    query = "encoder.layer.2.attention.self.query.weight"
    held = [v.tensors[query] for of in vectors.values() for name, v in of.items() if name != "task"]
    share = sum(len(e.indices) for e in held) / sum(e.numel for e in held)
    assert statistics.density["LT-SFT", LANGUAGE][2, "query"] == pytest.approx(share)
    of_deftx = load(read.store / read.vectors("DeFT-X 90%")[0].id / "vector").provenance.ranks
    assert set(statistics.ranks["DeFT-X 90%", LANGUAGE][2, "query"]) == {of_deftx[query]}
    assert not any(variant == "LT-SFT" for variant, _ in statistics.ranks)


def test_curves_are_read_from_both_phases_of_every_seed(run):
    curves = vector_statistics(read_run(run)).curves
    assert set(curves) == {
        (name, phase) for name in ("ace", "min", "ban", "ind", "task") for phase in (1, 2)
    }
    (first, *rest) = curves["task", 2]["LT-SFT"]
    assert (len(rest), first.metric) == (2, "macro_f1")
    assert [step for step, _ in first.held_out] == [20, 40, 60, 80, 100]
    assert len(first.training) == 10


def test_spectra_are_singular_values_of_a_kept_difference_of_one_target_and_the_task(run):
    read = read_run(run)
    found = spectra(read)
    assert list(found) == ["ace", "task"]
    step = next(
        step
        for step in read.steps
        if step.kind == "delta" and step.name == "ace" and read.delta(step)
    )
    matrix = read.delta(step)["encoder.layer.1.output.dense.weight"]
    torch.testing.assert_close(
        found["ace"][1, "feed-forward out"], torch.linalg.svdvals(matrix.double())
    )
    assert {layer for layer, _ in found["task"]} == set(range(LAYERS))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layer.3.attention.self.query.weight", (3, "query")),
        ("encoder.layer.11.output.dense.weight", (11, "feed-forward out")),
        ("encoder.layer.11.attention.output.dense.weight", (11, "attention out")),
        ("encoder.layer.0.output.dense.bias", (0, "biases")),
        ("transformer.layer.1.ffn.lin1.weight", (1, "feed-forward in")),
        ("layers.5.attn.Wqkv.weight", (5, "query, key, value")),
        ("layers.5.mlp.gate_proj.weight", (5, "mlp.gate proj")),
        ("embeddings.word_embeddings.weight", (None, "word embeddings")),
    ],
)
def test_a_parameter_is_placed_by_its_layer_and_kind(name, place):
    assert layer_and_kind(name) == place


def test_variants_are_told_apart_and_the_baseline_is_grey():
    names = [f"variant {number}" for number in range(20)]
    found = variant_styles(names, "variant 3")
    assert len(set(found.values())) == 20
    assert found["variant 3"].colour == GREY
    assert sum(one.colour == GREY for one in found.values()) == 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (4, 1), (3, 5)])
def test_a_heat_map_shows_every_cell_whatever_their_number(rows, columns):
    values = [[0.1 * (1 + row + column) for column in range(columns)] for row in range(rows)]
    figure = new_figure(4, 4)
    axes = figure.subplots()
    image = colour_cells(axes, values, 1.0)
    figure.draw_without_rendering()
    corners = image.get_coordinates()
    assert corners.shape == (rows + 1, columns + 1, 2)
    for row in range(rows):
        for column in range(columns):
            low, high = corners[row, column], corners[row + 1, column + 1]
            assert ((low + high) / 2).tolist() == pytest.approx([column, row])
            assert (high - low).tolist() == pytest.approx([1, 1])
    assert axes.get_xlim() == (-0.5, columns - 0.5)
    assert axes.get_ylim() == (rows - 0.5, -0.5)


def test_a_table_that_is_wider_than_the_page_has_a_shadow_at_its_edge(html):
    """Two layers: a shadow that stays at the edge, and above it paper that scrolls with the
    table."""
    box = re.search(r"\n\.box \{(.*?)\n\}", html, re.DOTALL)[1]
    background = box.split("background:")[1]
    covers, shadow = background.split(",\n")
    assert "var(--paper)" in covers
    assert covers.strip().endswith("local")
    assert "var(--shade)" in shadow
    assert shadow.strip().endswith("scroll;")
    assert html.count("--shade: ") == 2  # light and dark


# Runs that have less


@pytest.mark.parametrize(
    ("language_seeds", "note"),
    [
        ([0, 1, 2], None),
        ([0, 1], "3 seeds share 2 vectors of each language"),
        ([0], "All seeds share one vector of each language"),
    ],
)
def test_seeds_that_share_language_vectors_are_pointed_out(run, language_seeds, note):
    # Beside the run, where its store is in reach
    folder = run.with_name(f"run-with-{len(language_seeds)}-language-seeds")
    shutil.copytree(run, folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "language_seeds": language_seeds}))
    assert typed("report", folder) == 0
    text = (folder / "report" / page.TEXT).read_text(encoding="utf-8")
    words = " ".join(text.split())
    if note is None:
        assert " seeds share " not in words
    else:
        assert note in words


def test_a_run_of_one_seed_shows_no_spread_and_says_so(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0,), languages=("ace",), examples=60, vectors=False)
    (folder / "trimmed.json").unlink()
    assert typed("report", folder) == 0
    found = (folder / "report" / page.TEXT).read_text(encoding="utf-8")
    table = found[: found.index("## What is better")]
    assert not re.search(r"\d ± \d", table)
    assert "There is one seed" in table
    assert "One seed: interval over examples only" in found
    assert "one seed: interval over texts only" in found
    assert "**" not in found
    html = (folder / "report" / page.PAGE).read_text(encoding="utf-8")
    assert sections_of(html) == ["scores", "comparison", "settings", "repeat"]


def test_a_run_under_way_is_reported_as_far_as_it_is(tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0, 1), languages=("ace",), examples=60)
    read = read_run(folder)
    for step in (step for step in read.steps if step.seed == 1 and step.kind != "score"):
        shutil.rmtree(read.store / step.id)
    rows = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text(
        "".join(rows[:-1])
    )  # the source language of the last variant
    assert typed("report", folder) == 0
    found = (folder / "report" / page.TEXT).read_text(encoding="utf-8")
    assert (
        f"This run is not finished: {len(read_run(folder).finished)} of its {len(read.steps)} steps"
        in found
    )


def test_a_run_of_vectors_alone_is_reported_without_scores(tmp_path):
    folder = make_run(
        tmp_path / "run", {"LT-SFT": {}}, (0,), ("ace",), examples=20, deltas=False, test={}
    )
    (folder / "results.jsonl").unlink()
    assert typed("report", folder) == 0
    html = (folder / "report" / page.PAGE).read_text(encoding="utf-8")
    assert sections_of(html) == ["overlap", "places", "training", "trimmed", "settings", "repeat"]


def test_scores_whose_predictions_are_gone_are_shown_and_not_compared(plain):
    shutil.rmtree(plain.parent / "store")
    assert typed("report", plain) == 0
    html = (plain / "report" / page.PAGE).read_text(encoding="utf-8")
    assert sections_of(html) == ["scores", "trimmed", "settings", "repeat"]


# What is refused, in one line


def complaint(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert typed("report", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert complaint(capsys, tmp_path).endswith(
        "is not the folder of a run: it has no recipe.json; give the folder of `deftx run`"
    )
    assert "is not the folder of a run" in complaint(capsys, tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_nothing_yet_is_refused(plain, capsys):
    for name in ("results.jsonl", "steps.json"):
        (plain / name).unlink()
    assert "has no score and no vector yet" in complaint(capsys, plain)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("recipe.json", "{", "recipe.json is damaged"),
        ("recipe.json", "[]", "recipe.json is damaged"),
        ("recipe.json", '{"name": 3}', "recipe.json is damaged: name"),
        ("results.jsonl", '{"variant": "LT-SFT"}\n', "results.jsonl, line 1 is damaged: seed"),
        ("results.jsonl", "\n\nnothing\n", "results.jsonl, line 3 is damaged"),
        ("results.jsonl", "\xff", "results.jsonl is damaged"),
        (
            "steps.json",
            '{"store": ".", "steps": [{"id": "../../x", "kind": "vector"}]}',
            "steps.json is damaged: steps.0.id",
        ),
        ("trimmed.json", "[]", "trimmed.json is damaged"),
    ],
)
def test_a_damaged_file_is_named(plain, capsys, name, content, words):
    (plain / name).write_bytes(content.encode("latin-1"))
    assert words in complaint(capsys, plain)
    assert not (plain / "report").exists()


def test_damaged_predictions_are_named(plain, capsys):
    path = read_run(plain).store / read_run(plain).rows[0].step / "predictions.json"
    for change in [
        {"true": [0]},
        {"labels": ["one"]},
        {"true": [], "predicted": []},
        {"predicted": [-1]},
        {"sentence_lengths": [1]},
        {"sentence_lengths": [-1, 61]},
    ]:
        old = path.read_text()
        path.write_text(json.dumps({**json.loads(old), **change}))
        assert f"{path.name} is damaged" in complaint(capsys, plain)
        path.write_text(old)


def test_a_baseline_that_is_not_there_is_refused_with_those_that_are(plain, capsys):
    line = complaint(capsys, plain, "--baseline", "LT-SFTs")
    assert "unknown variant 'LT-SFTs' (did you mean 'LT-SFT'?)" in line


def test_another_baseline_can_be_chosen(plain):
    assert typed("report", plain, "--baseline", "no language vector") == 0
    found = (plain / "report" / page.TEXT).read_text(encoding="utf-8")
    assert "LT-SFT against no language vector" in found


def test_what_is_no_report_is_not_replaced_and_a_report_is(plain, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert complaint(capsys, plain, "--out", mine).endswith(
        "exists and is not a report: choose another folder"
    )
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    report = tmp_path / "report"
    report.mkdir()
    (report / page.PAGE).write_text("old")
    assert typed("report", plain, "--out", report) == 0
    assert (report / page.PAGE).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_missing_library_is_named_with_what_to_install(plain, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "jinja2" else there(name))
    with pytest.raises(DeftxError, match=r"a report needs jinja2: pip install 'deftx\[report\]'"):
        page.write_report(plain)


# In a browser


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is installed already; none is fetched."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_in_a_browser_at_desktop_and_phone_width(run, browser, width, scheme):
    page_ = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page_.on("console", lambda message: said.append(message.text))
    page_.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page_.on("request", lambda request: asked.append(request.url))
    page_.goto((run / "report" / page.PAGE).as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_.url]
    assert page_.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    drawn = page_.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(drawn) == 9
    assert min(drawn) > 60
    shown = page_.evaluate(
        "[...document.querySelectorAll('table')].filter(t => t.offsetHeight > 40).length"
    )
    assert shown >= 5
    right_edges = page_.evaluate(
        "[...document.querySelectorAll('.box')].map(b => b.getBoundingClientRect().right)"
    )
    assert max(right_edges) <= width
    ink = page_.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    paper = page_.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert abs(bright[0] - bright[1]) > 400  # the figures' text is light on dark, or dark on light
    page_.close()


def strip_at_right(page_, width: int) -> set[tuple[int, ...]]:
    """The colours of the table of scores at its right edge, above the text of its heading."""
    box = page_.locator("#scores .box").first.bounding_box()
    edge = {
        "x": box["x"] + box["width"] - width,
        "y": box["y"] + page_.evaluate("scrollY"),
        "width": width,
        "height": 12,
    }
    shot = page_.screenshot(clip=edge, full_page=True)
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    return set(picture.get_flattened_data())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_has_a_shadow_where_there_is_more_of_it_and_none_elsewhere(run, browser, scheme):
    page_ = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page_.goto((run / "report" / page.PAGE).as_uri())
    paper = page_.evaluate("getComputedStyle(document.body).backgroundColor")
    nothing = {tuple(map(int, re.findall(r"\d+", paper)))}
    shadow = strip_at_right(page_, 4)
    assert min(abs(sum(colour) - sum(*nothing)) for colour in shadow) > 60
    # to its end by keyboard, since not everybody has a mouse
    box = page_.locator("#scores .box").first
    box.focus()
    page_.keyboard.press("End")
    for _ in range(40):
        page_.keyboard.press("ArrowRight")
    page_.wait_for_function(
        "box => box.scrollLeft + box.clientWidth >= box.scrollWidth - 1", arg=box.element_handle()
    )
    page_.evaluate("document.activeElement.blur()")
    assert strip_at_right(page_, 4) == nothing
    page_.set_viewport_size({"width": 1280, "height": 900})
    assert strip_at_right(page_, 40) == nothing
    # at this width all tables of such a run are seen whole
    wide = (
        "[...document.querySelectorAll('.box')].filter(b => b.scrollWidth > b.clientWidth).length"
    )
    assert page_.evaluate(wide) == 0
    page_.close()


def test_a_report_is_read_by_keyboard_alone(run, browser):
    page_ = browser.new_page(viewport={"width": 390, "height": 900})
    page_.goto((run / "report" / page.PAGE).as_uri())
    reached = []
    for _ in range(100):
        page_.keyboard.press("Tab")
        reached.append(
            page_.evaluate("document.activeElement.ariaLabel ?? document.activeElement.innerText")
        )
        ring = page_.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if page_.evaluate("document.activeElement === document.body"):
            break
        assert ring != "none", reached[-1]
    titles = page_.locator("nav a").all_inner_texts()
    assert reached[: len(titles)] == titles
    scrolled = page_.locator(".box:visible").evaluate_all("boxes => boxes.map(b => b.ariaLabel)")
    folded = page_.locator("summary").all_inner_texts()
    assert len(scrolled) > 10
    assert {*scrolled, *folded} <= set(reached)
    page_.locator("summary").first.focus()
    page_.keyboard.press("Enter")
    assert page_.locator("details").first.get_attribute("open") is not None
    page_.close()


def test_no_path_of_the_disk_is_in_a_report(tmp_path):
    own = {"language": {"training": {"logs": "/home/anna/logs"}}}
    folder = make_run(
        tmp_path / "run", {"LT-SFT": own}, (0,), ("ace",), vectors=False, base="/home/anna/xlmr"
    )
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe |= {
        "test": {"ace": "recipes/../../anna/ace.tsv"},
        "languages": {"ace": ["../anna/ace.txt"]},
        "train": "anna/x",
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert typed("report", folder) == 0
    told = (folder / "report" / "report.md").read_text()
    assert "anna" not in told.replace(str(folder), "")
    assert "ace.tsv" in told


def test_the_layers_of_encoder_and_decoder_are_other_places():
    assert layer_and_kind("encoder.layers.0.fc1.weight") == (0, "fc1")
    assert layer_and_kind("decoder.layers.0.fc1.weight") == (0, "decoder: fc1")
    assert layer_and_kind("layers.0.fc1.weight") == (0, "fc1")


def test_seeds_are_those_of_the_recipes_variants_and_sources_alone_are_whole(tmp_path):
    run = read_run(
        make_run(tmp_path / "run", seeds=(1, 2), languages=(), vectors=False, ngrams=True)
    )
    assert run.seeds == [1, 2]
    assert not [line.name for line in score_table(run, None, []).lines if "seeds)" in line.name]
