"""The report: what its numbers are, and that nothing is hidden, is taken for markup or comes from elsewhere."""

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
import pytest
from bench_rows import EVIL, results_of, row

from warpwright.bench.report import png, png_hash, rows_hash, write_pngs, write_report
from warpwright.bench.report.axes import around_one, decades
from warpwright.bench.report.data import curves, gather, standing, verdict
from warpwright.bench.report.style import looks, number
from warpwright.bench.rows import Ceiling, Results, read_results, write_record
from warpwright.demo import write_report as write_demo


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


def test_pngs_show_every_case_and_number(results):
    data = gather([results])
    entries = [e for e in data.current if e.row.suite == "norm"]
    figure = png._speedups(data, "norm", "NVIDIA H200", entries)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        low, high = axes.get_xlim()
        drawn = [x for line in axes.lines for x in line.get_xdata()] + [note.xy[0] for note in axes.texts]
        assert len(drawn) > 100
        assert low < min(drawn)
        assert max(drawn) < high
    assert any("1 failed" in note.get_text() for axes in figure.axes for note in axes.texts)


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
def demo_page(tmp_path_factory) -> Path:
    return write_demo(bench_rows.demo_summary(), tmp_path_factory.mktemp("demo"))


def test_the_demo_shows_every_row_and_is_written_with_the_same_style(demo_page, results):
    text = demo_page.read_text()
    page = Page(re.sub("<table data-sortable>", '<table id="checked">', text))
    rows = [r for r in results.rows if r.suite == "activation"]
    assert page.column("ops", "provider") == [r.provider for r in rows]
    assert all(r.reason in text for r in rows if r.reason)
    assert text.count("data:image/svg+xml") == 1 + 3
    assert "<script>window.evil" not in text
    assert all(head.get("scope") == "col" for head in page.all("th"))


def test_runs_with_the_same_machine_and_versions_are_one_line_at_the_top(tmp_path):
    days = ("2026-03-01T10:00:00+00:00", "2026-03-02T10:00:00+00:00")
    runs = [results_of(row(case=day), time=day) for day in days]
    runs.append(results_of(dataclasses.replace(row(case="other"), device="cuda")))
    header = write_report(runs, tmp_path / "page.html").read_text().partition("<header>")[2].partition("</header>")[0]
    lines = re.findall(r'<p class="soft">(.*?)</p>', header)
    assert len(lines) == 2
    assert f"{days[0]} to {days[1]} (2 runs, 2 rows)" in lines[0]
    assert lines[1].startswith("NVIDIA H200")
