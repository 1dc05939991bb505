"""The report: what its numbers are, that nothing is hidden or runs, and, in a browser, that it works and is drawn."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import bench_rows
import browser
import pytest

from warpwright.bench.report import png_hash, rows_hash, write_pngs, write_report
from warpwright.bench.report.axes import around_one, decades
from warpwright.bench.report.data import curves, gather, standing, verdict
from warpwright.bench.report.style import looks, number
from warpwright.bench.rows import Ceiling, Results, Row, read_results, write_record

EVIL = '</script><script>window.evil = 1</script><img src="http://evil.invalid/x" onerror="window.evil = 2">'


def row(case="a", provider="mine", **fields) -> Row:
    values = {"p50": 1e-3, "ratio": 1.0, "parameters": {"rows": 1}} | fields
    return Row(values.pop("suite", "s"), values.pop("op", "op"), case, "float32", "forward", provider, "cpu", **values)


def results_of(*rows: Row, **environment) -> Results:
    found = Results()
    found.add(bench_rows.environment() | environment)
    for one in rows:
        found.add(one)
    return found


class Page(HTMLParser):
    """The elements of a page, in order, and the text of each table row's cells."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self._table = dict(attributes)["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
            self._cell = False
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("tr", "td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.tables[self._table][-1][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    def column(self, table: str, title: str) -> list[str]:
        head, *body = self.tables[table]
        return [line[head.index(title)] for line in body]


def figures(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def results() -> Results:
    return bench_rows.results()


@pytest.fixture(scope="module")
def path(results, tmp_path_factory) -> Path:
    """The page of `results`, where swiglu's kernels have changed since."""
    folder = tmp_path_factory.mktemp("report")
    return write_report(
        [results], folder / "new" / "page.html", now_sources=lambda r: "b" * 64 if r.op == "swiglu" else r.sources
    )


@pytest.fixture(scope="module")
def text(path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


# ---- numbers ----


def test_standing_is_the_geometric_mean_with_verdicts_by_the_interval():
    rows = [
        row("a", ratio=2.0, ratio_low=1.9, ratio_high=2.1),
        row("b", ratio=0.5, ratio_low=0.4, ratio_high=0.6),
        row("c", ratio=8.0, ratio_low=0.9, ratio_high=9.0),
        row("d", status="wrong", p50=None, ratio=None),
    ]
    found = standing(gather([results_of(*rows)]).current, "mine")
    assert found.mean == pytest.approx(2.0)
    assert (found.faster, found.alike, found.slower) == (1, 1, 1)
    assert found.counts == {"timed": 3, "wrong": 1}
    assert [verdict(r) for r in rows] == ["faster", "slower", "alike", ""]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (None, ""), (12345.6, "12,350"), (1.0, "1.000"), (0.012346, "0.01235"), (1e-12, "1e-12"),
     (math.inf, "inf"), (999_999.0, "1,000,000")],
)  # fmt: skip
def test_numbers_are_rounded_without_exponents(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize("span", [(0.95, 1.05), (0.9, 1.3), (0.5, 2), (1 / 64, 64), (0.97, 300)])
def test_axes_of_ratios_have_four_to_nine_ticks_with_1_among_them(span):
    ticks = around_one(*span)
    assert 4 <= len(ticks) <= 9
    assert 1 in ticks
    assert span[0] <= min(ticks) <= max(ticks) <= span[1]


@pytest.mark.parametrize(("span", "ticks"), [((1, 1e3), [1, 10, 100, 1000]), ((3e-6, 3e-5), [5e-6, 1e-5, 2e-5])])
def test_logarithmic_axes(span, ticks):
    assert decades(*span) == pytest.approx(ticks)


def test_the_later_of_two_measurements_counts_and_both_are_shown(tmp_path):
    old, new = row(ratio=3.0), row(ratio=5.0)
    later = results_of(new, time="2026-03-02T00:00:00")
    earlier = results_of(old, time="2026-03-01T00:00:00")
    for order in ([later, earlier], [earlier, later]):
        data = gather(order)
        assert [e.row.ratio for e in data.current] == [5.0]
        text = write_report(order, tmp_path / "page.html").read_text()
        assert len(Page(text).column("rows", "note")) == 2
        assert "older: measured again later" in text


def test_machines_are_kept_apart(tmp_path):
    gpu = bench_rows.results(dtypes=("bfloat16",))
    other = Results()
    other.add(bench_rows.environment(name="NVIDIA B200"))
    other.add(Ceiling("copy", "", 7e12, "", "cuda"))
    for one in gpu.rows:
        other.add(one)
    data = gather([gpu, other])
    assert data.machines == ["NVIDIA H200", "NVIDIA B200"]
    assert data.ceilings["NVIDIA B200", "copy", ""] == 7e12
    assert data.ceilings["NVIDIA H200", "copy", ""] == bench_rows.BYTES_PER_SECOND
    assert len(data.current) == 2 * len(gpu.rows)
    page = Page(write_report([gpu, other], tmp_path / "page.html").read_text())
    assert set(page.column("standings", "machine")) == set(data.machines)
    assert len(set(write_pngs([gpu, other], tmp_path))) == 2 * 5


def test_curves_take_one_parameter_with_the_others_equal(results):
    found = {(c.op, c.dtype, c.direction, c.varying, c.fixed): c for c in curves(gather([results]).current)}
    of_linear = {key[3:] for key in found if key[:3] == ("linear", "bfloat16", "forward")}
    assert of_linear == {("M", "N = 4096, K = 4096"), ("M", "N = 28672, K = 4096"), ("M = N = K", "")}
    square = found["linear", "bfloat16", "forward", "M = N = K", ""].points["torch"]
    assert [value for value, _ in square] == [512, 1024, 2048, 4096, 8192]
    line = found["rms_norm", "float32", "both", "rows", "width = 4096"].points["warpwright"]
    assert [value for value, _ in line] == [512, 2048, 8192, 32768]
    assert all(entry.row.parameters["rows"] == value for value, entry in line)
    assert not [key for key in found if key[0] == "adamw_"]


def test_providers_look_the_same_on_every_page():
    first, second = looks(["torch", "warpwright", "mine"]), looks(["warpwright", "compile", "torch", "zeta"])
    assert first["torch"].colour == second["torch"].colour
    assert first["warpwright"].colour == second["warpwright"].colour
    many = looks(f"p{i}" for i in range(30))
    assert len({(look.colour, look.symbol) for look in many.values()}) == 30


# ---- the page's text ----


def test_nothing_is_hidden(page, text, results):
    assert page.column("rows", "status") == [r.status for r in results.rows]
    for status in ("wrong", "failed", "missing"):
        count = sum(r.status == status for r in results.rows)
        assert count
        assert f">{count} {status}</a>" in text
    reasons = {r.reason for r in results.rows if r.reason}
    assert all(any(reason in note for note in page.column("rows", "note")) for reason in reasons)
    stale = [r for r in results.rows if r.op == "swiglu" and r.sources]
    assert f">{len(stale)} stale</a>" in text
    assert sum("stale:" in note for note in page.column("rows", "note")) == len(stale)
    assert "apex (apex is not installed)" in text


def test_the_summary_says_the_geometric_means(page, results):
    shown = dict(
        zip(
            zip(page.column("standings", "suite"), page.column("standings", "provider"), strict=True),
            page.column("standings", "ratio"),
            strict=True,
        )
    )
    ratios = [r.ratio for r in results.rows if (r.suite, r.provider) == ("matmul", "warpwright") and r.ratio]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    assert shown["matmul", "warpwright"] == f"{mean:.2f}×"
    assert shown["matmul", "quack"] == ""
    assert shown["norm", "torch (baseline)"] == ""


def test_the_table_shows_times_intervals_and_units(page, results):
    first = results.rows[1]
    values = {title: page.column("rows", title)[1] for title in page.tables["rows"][0]}
    assert values["p50, µs"] == f"{first.p50 * 1e6:.2f}"
    assert values["95 %, µs"] == f"{first.low * 1e6:.2f} – {first.high * 1e6:.2f}"
    assert values["ratio"] == f"▲ {first.ratio:.2f}×"
    assert values["peak, MB"] == number(first.peak_memory / 1e6)


def test_the_page_needs_nothing_else(page, text):
    for tag, attributes in page.elements:
        assert not set(attributes) & {"src", "srcset", "action", "data-src"}, tag
        assert attributes.get("href", "#").startswith(("#", "data:")), attributes
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    assert "url(" not in styles
    assert "@import" not in styles
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")


def test_structure_for_readers_that_do_not_see(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(head.get("scope") == "col" for head in page.all("th"))
    drawn = [a for a in page.all("div") if a.get("class") == "chart"]
    assert len(drawn) > 20
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in drawn)
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))


def test_figures_are_what_plotly_takes(text):
    """Plotly's own classes refuse names and values that its script would quietly leave out."""
    from plotly.graph_objects import Figure

    every = [figure for choices in figures(text).values() for figure in choices]
    sample = every[:: max(1, len(every) // 12)]
    for figure in sample:
        Figure(figure)


@pytest.mark.parametrize("place", ["suite", "op", "case", "provider", "reason", "checked", "parameters", "environment"])
def test_text_of_results_is_never_taken_for_html(tmp_path, place):
    fields = {"parameters": {EVIL: EVIL, "rows": 1}} if place == "parameters" else {place: EVIL}
    rows = [row(f"c{i}", "torch", parameters={"rows": i}) for i in (1, 2, 3)]
    if place == "environment":
        found = results_of(*rows, missing={EVIL: EVIL}, gpu={"name": EVIL}, time=EVIL)
    else:
        found = results_of(*rows, row(**fields), row("d", status="failed", p50=None, ratio=None, reason=EVIL))
    text = write_report([found], tmp_path / "page.html", title=EVIL).read_text()
    assert "<script>window.evil" not in text
    assert "<img" not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not [a for _, a in Page(text).elements if "onerror" in a]


@pytest.mark.parametrize("environment", [{"info": None}, {"info": [], "threads": 3, "gpu": "x", "missing": ["a"]}, {}])
def test_any_environment_will_do(tmp_path, environment):
    found = Results(environments=[dict(environment)])
    found.add(row(flops=10, bytes=10, error=math.inf, peak_memory=0))
    found.add(row("b", "torch", status="missing", p50=None, ratio=None))
    assert "cpu" in gather([found]).machines[0]
    assert Page(write_report([found], tmp_path / "page.html").read_text()).column("rows", "case") == ["a", "b"]


def test_no_rows_is_an_error(tmp_path):
    for function in (write_report, write_pngs):
        with pytest.raises(
            RuntimeError, match="warpwright: bench: report: results must hold at least one row, got none"
        ):
            function([Results(environments=[{}])], tmp_path / "x")


def test_large_results_stay_small_and_quick(tmp_path):
    found = bench_rows.results(repeat=3)
    assert len(found.rows) > 2900
    assert write_report([found], tmp_path / "page.html").stat().st_size < 6_500_000


# ---- PNGs ----


def test_pngs_are_the_same_bytes_and_carry_the_hash_of_their_rows(results, tmp_path):
    few = results_of(*[r for r in results.rows if r.suite == "activation"])
    few.ceilings += results.ceilings
    paths = write_pngs([few], tmp_path / "one")
    again = write_pngs([few], tmp_path / "two")
    assert [p.name for p in paths] == ["speedup-activation-nvidia-h200.png", "roofline-nvidia-h200.png"]
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    assert {png_hash(p) for p in paths} == {rows_hash([few])}
    few.rows[0] = dataclasses.replace(few.rows[0], p50=1.0)
    assert png_hash(paths[0]) != rows_hash([few])


def test_the_hash_outlives_writing_and_reading(results, tmp_path):
    file = io.StringIO()
    for record in (*results.environments, *results.ceilings, *results.rows):
        write_record(file, record)
    (tmp_path / "rows.jsonl").write_text(file.getvalue())
    assert rows_hash([read_results(tmp_path / "rows.jsonl")]) == rows_hash([results])


def test_a_png_of_someone_else_has_no_hash(tmp_path):
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    assert png_hash(tmp_path / "x.png") is None


# ---- the demo's page, which has the same styles and scripts ----


@pytest.fixture(scope="module")
def demo_page(results, tmp_path_factory) -> Path:
    from warpwright.demo import write_report as write_demo

    info = bench_rows.environment()["info"]
    rows = [r.as_dict() for r in results.rows if r.suite == "activation"]
    training = {
        "task": "gpt", "title": EVIL, "steps": 2, "accuracy": {"torch": 0.5, "warpwright": 0.5}, "agree": True,
        "seconds": {"torch": 1.0, "warpwright": 1.0}, "losses": {"torch": [2.0, 1.0], "warpwright": [2.0, 1.0]},
        "largest_gap": 0.0, "replaced": {}, "skipped": {}, "fallbacks": {},
    }  # fmt: skip
    check = {"op": "gelu", "backend": "cpu", "dtype": "float32", "samples": 1, "bad_inputs": 1, "worst_ratio": 0.1}
    summary = {
        "info": info | {"cpu_isa": "avx2"}, "info_text": EVIL, "device": "cuda", "ok": True, "seconds": 1.0,
        "training": [training], "bench": rows, "host": rows[:4],
        "check": {"samples": 1, "failures": 0, "results": [check | {"failures": []}]},
    }  # fmt: skip
    return write_demo(summary, tmp_path_factory.mktemp("demo"))


def test_the_demo_shows_every_row_and_is_written_with_the_same_style(demo_page, results):
    text = demo_page.read_text()
    page = Page(re.sub("<table data-sortable>", '<table id="checked">', text))
    rows = [r for r in results.rows if r.suite == "activation"]
    assert page.column("ops", "provider") == [r.provider for r in rows]
    assert all(r.reason in text for r in rows if r.reason)
    assert text.count("data:image/svg+xml") == 1 + 3
    assert "<script>window.evil" not in text
    assert all(head.get("scope") == "col" for head in page.all("th"))


# ---- in a browser ----


@pytest.fixture(scope="module")
def chromium():
    if reason := browser.missing():
        pytest.skip(reason)
    with browser.launch() as found:
        yield found


@pytest.fixture(scope="module")
def few(results, tmp_path_factory) -> Path:
    """A page with every kind of chart and fewer of each."""
    kinds = {("rms_norm", "bfloat16"), ("linear", "bfloat16"), ("swiglu", "bfloat16"), ("swiglu", "float32")}
    rows = [r for r in results.rows if r.direction == "forward" and (r.op, r.dtype) in kinds]
    found = results_of(*rows)
    found.ceilings += results.ceilings
    return write_report([found], tmp_path_factory.mktemp("few") / "page.html")


def drawn(opened) -> None:
    opened.page.wait_for_selector("html[data-charts=drawn]", state="attached")


def cells(opened, key: str) -> list[str]:
    """The shown cells of a column of the large table."""
    script = """key => { const table = document.getElementById("rows");
      const place = [...table.tHead.rows[0].cells].findIndex(head => head.dataset.key === key);
      return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[place].textContent); }"""
    return opened.page.evaluate(script, key)


def sideways(opened) -> int:
    return opened.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(1, 2, 3)" by WCAG 2."""
    parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


CHARTS = """() => [...document.querySelectorAll(".chart")].map(place => {
  const box = place.getBoundingClientRect();
  const marks = [...place.querySelectorAll(".points path, .trace.bars path, .js-line")];
  const inside = marks.filter(mark => { const b = mark.getBoundingClientRect(); return b.width + b.height > 0; });
  return { id: place.id, width: box.width, height: box.height, marks: inside.length,
    text: place.querySelectorAll(".xtick, .ytick").length, fits: box.right <= innerWidth };
})"""


def test_everything_is_drawn_and_nothing_is_asked_of_a_network(chromium, path):
    with chromium.open(path) as opened:
        drawn(opened)
        found = opened.page.evaluate(CHARTS)
        assert len(found) > 20
        for chart in found:
            assert chart["width"] > 200, chart
            assert chart["height"] > 100, chart
            assert chart["marks"] > 2, chart
            assert chart["text"] > 2, chart
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []


def test_tables_sort_by_click_and_by_key(chromium, few):
    with chromium.open(few) as opened:
        times = [float(v.replace(",", "")) if v else None for v in cells(opened, "p50")]
        known = sorted(v for v in times if v is not None)
        head = opened.page.locator("#rows th[data-key=p50]")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        shown = cells(opened, "p50")
        assert [float(v.replace(",", "")) for v in shown if v] == known
        assert shown[-1] == ""
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        shown = cells(opened, "p50")
        assert [float(v.replace(",", "")) for v in shown if v] == known[::-1]
        assert shown[-1] == ""
        ratio = opened.page.locator("#rows th[data-key=ratio]")
        ratio.get_by_role("button").press(" ")
        assert head.get_attribute("aria-sort") == "none"
        ratios = [float(v.strip("▲▼≈× ")) for v in cells(opened, "ratio") if v]
        assert ratios == sorted(ratios)
        opened.page.locator("#rows th[data-key=case]").get_by_role("button").click()
        sizes = [int(v.split(" x ")[0]) for v in cells(opened, "case")]
        assert sizes == sorted(sizes)
        assert opened.complaints == []


def test_the_demo_sorts_and_finds_too(chromium, demo_page):
    with chromium.open(demo_page, width=390) as opened:
        column = "() => [...document.querySelectorAll('#ops tbody tr:not([hidden]) td:nth-child(6)')]"
        column += ".map(cell => cell.innerText)"
        opened.page.locator("#ops").get_by_role("button", name="median, us").click()
        shown = [float(v) for v in opened.page.evaluate(column) if re.fullmatch(r"[\d.]+", v)]
        assert len(shown) > 50
        assert shown == sorted(shown)
        opened.page.get_by_label("search").first.fill("compile bfloat16")
        assert len(opened.page.evaluate(column)) == 9
        assert sideways(opened) <= 0
        assert opened.complaints == []


def test_rows_are_found_by_words_and_by_choices(chromium, few):
    with chromium.open(few) as opened:
        everything = len(cells(opened, "op"))
        opened.page.get_by_label("search").fill("8192 triton")
        assert set(cells(opened, "provider")) == {"warpwright-triton"}
        assert all("8192" in case for case in cells(opened, "case"))
        opened.page.select_option("select[name=dtype]", "float32")
        assert set(cells(opened, "dtype")) == {"float32"}
        left = len(cells(opened, "op"))
        assert 0 < left < everything
        assert opened.page.locator("form output").inner_text() == f"{left} of {everything} rows"
        opened.page.get_by_role("button", name="Show all").click()
        opened.page.wait_for_selector(f"output:has-text('{everything} of {everything} rows')")
        opened.page.get_by_role("link", name=re.compile("wrong")).click()
        opened.page.wait_for_selector("tr.wrong >> visible=true")
        assert set(cells(opened, "status")) == {"wrong"}


def test_the_pointer_is_told_what_a_mark_is_and_providers_can_be_hidden(chromium, few):
    with chromium.open(few) as opened:
        drawn(opened)
        place = opened.page.locator("#roofline .chart").first
        place.scroll_into_view_if_needed()
        opened.page.locator("#rows th[data-key=p50]").get_by_role(
            "button"
        ).click()  # Sorting must not mix up the lines.
        place.scroll_into_view_if_needed()
        place.locator(".points path").first.hover(force=True)
        told = place.locator(".hovertext").first.text_content()
        assert re.search(r"(rms_norm|swiglu|linear) \d+ x \d+.*(bfloat16|float32) forward", told)
        assert "µs (95 %:" in told
        before = place.locator(".points path").count()
        button = opened.page.locator("#roofline button[data-provider=warpwright]")
        button.click()
        opened.page.wait_for_selector("html:not([data-charts])", state="attached")
        drawn(opened)
        assert button.get_attribute("aria-pressed") == "false"
        assert 0 < place.locator(".points path").count() < before
        assert opened.complaints == []


def test_other_settings_of_a_curve_can_be_chosen(chromium, few):
    with chromium.open(few) as opened:
        drawn(opened)
        select = opened.page.locator("#scaling select").first
        place = opened.page.locator(f"#{select.get_attribute('data-chart')}")
        before = place.inner_html()
        select.select_option(index=1)
        assert place.inner_html() != before


def test_a_phone_scrolls_down_only(chromium, few):
    with chromium.open(few, width=390, has_touch=True, is_mobile=True) as opened:
        drawn(opened)
        assert opened.page.evaluate("() => innerWidth") == 390
        assert sideways(opened) <= 0
        assert all(chart["fits"] and chart["marks"] for chart in opened.page.evaluate(CHARTS))


def colours(opened) -> tuple[str, list[tuple[str, str]]]:
    """The page's background, and (text, background behind it) of what is read."""
    script = """() => { const style = (s, p) => getComputedStyle(document.querySelector(s))[p];
      const paper = style("body", "backgroundColor"), card = style("thead th", "backgroundColor");
      return [paper, [[style("body", "color"), paper], [style(".soft", "color"), paper], [style("a", "color"), paper],
        [style("td.faster", "color"), paper], [style("tr.wrong td:nth-child(7)", "color"), paper],
        [style("thead th", "color"), card], [style(".chart .xtick text", "fill"), paper]]]; }"""
    paper, pairs = opened.page.evaluate(script)
    return paper, pairs


def test_light_and_dark_by_preference_and_by_button(chromium, few):
    papers = {}
    with chromium.open(few) as opened:
        drawn(opened)
        for scheme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=scheme)
            papers[scheme], pairs = colours(opened)
            assert all(contrast(*pair) >= 4.5 for pair in pairs), (scheme, pairs)
        opened.page.get_by_role("button", name="Light colours").click()
        assert colours(opened)[0] == papers["light"]
        opened.page.get_by_role("button", name="Dark colours").click()
        opened.page.emulate_media(color_scheme="light")
        assert colours(opened)[0] == papers["dark"]
    assert luminance(papers["light"]) > 0.9
    assert luminance(papers["dark"]) < 0.05


def test_paper_gets_everything_that_is_on_the_page(chromium, few):
    with chromium.open(few, scheme="dark") as opened:
        opened.page.emulate_media(media="print", color_scheme="dark")
        opened.page.evaluate("() => { dispatchEvent(new Event('beforeprint')); }")
        found = opened.page.evaluate(CHARTS)
        assert all(chart["marks"] and chart["height"] > 100 for chart in found)
        assert not opened.page.locator("button.theme").is_visible()
        assert not opened.page.locator("form.filters").is_visible()
        widths = "() => [...document.querySelectorAll('.main-svg')].map(svg => svg.getBoundingClientRect().width)"
        assert max(opened.page.evaluate(widths)) < 980  # What a sheet of A4 or Letter has room for, on its side.
        boxes = "() => [...document.querySelectorAll('.scroll')].every(b => b.scrollHeight <= b.clientHeight + 1)"
        assert opened.page.evaluate(boxes)
        assert luminance(colours(opened)[0]) > 0.9
        assert opened.page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_text_of_results_does_not_run(chromium, tmp_path):
    rows = [row(f"c{i}", p, parameters={EVIL: i}, flops=9, bytes=i, op=EVIL, suite=EVIL, error=0.1, peak_memory=5)
            for i in (1, 2, 3) for p in ("torch", EVIL)]  # fmt: skip
    found = results_of(*rows, row("d", status="failed", p50=None, ratio=None, reason=EVIL), missing={EVIL: EVIL})
    with chromium.open(write_report([found], tmp_path / "page.html", title=EVIL)) as opened:
        drawn(opened)
        assert opened.page.evaluate("() => window.evil") is None
        assert opened.page.locator("h1").inner_text() == EVIL
        assert "</script><script>window.evil" in opened.page.locator("#speedups .chart").first.text_content()
        assert opened.complaints == []
        assert not [url for url in opened.requests if "evil.invalid" in url]
