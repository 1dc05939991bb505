"""The report in a browser: everything is drawn and works, fits a phone and paper, and text is shown, not run."""

from __future__ import annotations

import re
from pathlib import Path

import bench_rows
import browser
import pytest
from bench_rows import EVIL, results_of, row

from warpwright.bench.report import write_report
from warpwright.demo import write_report as write_demo


@pytest.fixture(scope="module")
def results():
    return bench_rows.results()


@pytest.fixture(scope="module")
def path(results, tmp_path_factory) -> Path:
    return write_report([results], tmp_path_factory.mktemp("report") / "page.html")


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory) -> Path:
    return write_demo(bench_rows.demo_summary(), tmp_path_factory.mktemp("demo"))


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
        assert EVIL in opened.page.locator("#speedups .chart").first.text_content()
        assert opened.complaints == []
        assert not [url for url in opened.requests if "evil.invalid" in url]
