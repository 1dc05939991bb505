"use strict";
// Draws the charts one after the other, so that the page answers meanwhile; colours of text come from the style sheet.

const figures = JSON.parse(document.getElementById("figures").textContent);
const table = document.getElementById("rows");
const tableRows = [...table.tBodies[0].rows]; // Sorting changes the table's order, not this one.
const places = Object.fromEntries([...table.tHead.rows[0].cells].map((head, i) => [head.dataset.key, i]));
const hiddenProviders = new Set();
const waiting = [...document.querySelectorAll(".chart")];

const AXIS = { automargin: true, zeroline: false, tickangle: 0, ticks: "", gridcolor: "#8884" };
const LAYOUT = {
  font: { family: "system-ui, sans-serif", size: 12 },
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  margin: { l: 50, r: 14, t: 14, b: 46 }, showlegend: false, hovermode: "closest", bargap: 0,
  // On a touch screen dragging scrolls the page.
  dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,
  hoverlabel: { align: "left" },
};

const escapeText = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** What is shown under the pointer: the point's line of the table, in words. */
function describe(number) {
  const cells = tableRows[number].cells;
  const get = key => escapeText(cells[places[key]].textContent);
  const lines = [`<b>${get("op")}</b> ${get("case")}, ${get("dtype")} ${get("direction")}`, get("provider")];
  if (get("p50")) lines.push(`${get("p50")} µs (95 %: ${get("interval")})`);
  if (get("ratio")) lines.push(`${get("ratio")} (95 %: ${get("ratios")})`);
  const reached = [get("tflops") && `${get("tflops")} TFLOP/s`, get("gbytes") && `${get("gbytes")} GB/s`,
    get("ceiling") && `${get("ceiling")} % of the ceiling`].filter(Boolean);
  if (reached.length) lines.push(reached.join(", "));
  const rest = [get("memory") && `peak ${get("memory")} MB`, get("error") && `error ${get("error")}`].filter(Boolean);
  if (rest.length) lines.push(rest.join(", "));
  if (get("note")) lines.push(get("note"));
  return lines.join("<br>");
}

/** Every other tick, 1 among them, where there is no room for all. */
function thin(axis, place) {
  if (place.clientWidth >= 480 || !(axis.tickvals?.length > 4)) return axis;
  const odd = Math.max(axis.tickvals.indexOf(1), 0) % 2;
  const keep = (_, i) => i % 2 === odd;
  return { ...axis, tickvals: axis.tickvals.filter(keep), ticktext: axis.ticktext.filter(keep) };
}

function draw(place) {
  const choice = document.querySelector(`select[data-chart="${place.id}"]`);
  const figure = figures[place.id][choice ? choice.selectedIndex : 0];
  const traces = figure.data.map(trace => {
    const visible = !hiddenProviders.has(trace.meta);
    if (!trace.customdata) return { ...trace, visible };
    return { ...trace, visible, hoverinfo: "text", hovertext: trace.customdata.map(describe) };
  });
  const layout = { ...LAYOUT, ...figure.layout, margin: { ...LAYOUT.margin, ...figure.layout.margin } };
  for (const key of ["xaxis", "yaxis", "yaxis2"]) if (layout[key]) layout[key] = { ...AXIS, ...layout[key] };
  if (figure.layout.shapes) layout.xaxis = thin(layout.xaxis, place);
  layout.annotations = (figure.layout.annotations ?? []).map(note => ({ ...note, visible: !hiddenProviders.has(note.name) }));
  return Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true });
}

/** How far a chart is from what is seen. */
function distance(place) {
  const { top, bottom } = place.getBoundingClientRect();
  return Math.max(top - innerHeight, -bottom, 0);
}

function drawNext() {
  if (!waiting.length) {
    document.documentElement.dataset.charts = "drawn";
    return;
  }
  const distances = waiting.map(distance);
  draw(waiting.splice(distances.indexOf(Math.min(...distances)), 1)[0]);
  setTimeout(drawNext);
}

function redraw() {
  const idle = !waiting.length;
  waiting.splice(0, waiting.length, ...document.querySelectorAll(".chart"));
  delete document.documentElement.dataset.charts;
  if (idle) setTimeout(drawNext);
}

function drawAll() {
  while (waiting.length) draw(waiting.shift());
}

/** Paper is as large as it is, however wide the window was; a chart a little too high for a sheet is pressed together. */
function fitToPaper() {
  drawAll();
  for (const place of document.querySelectorAll(".chart")) {
    const across = place.closest(".plots.two") ? 2 : place.closest(".plots") ? 3 : 1;
    const { height } = place.layout;
    Plotly.relayout(place, { width: 980 / across - 30, height: height > 600 && height < 1000 ? 600 : height });
    place.style.height = `${place.layout.height}px`;
  }
}

function fitToWindow() {
  for (const place of document.querySelectorAll(".chart")) {
    const { height } = figures[place.id][0].layout;
    place.style.height = `${height}px`;
    Plotly.relayout(place, { width: null, height, autosize: true });
  }
}

window.addEventListener("beforeprint", fitToPaper);
window.addEventListener("afterprint", fitToWindow);

for (const select of document.querySelectorAll("select[data-chart]")) {
  select.addEventListener("change", () => draw(document.getElementById(select.dataset.chart)));
}

for (const button of document.querySelectorAll("button[data-provider]")) {
  button.addEventListener("click", () => {
    const name = button.dataset.provider;
    const shown = hiddenProviders.has(name);
    if (shown) hiddenProviders.delete(name);
    else hiddenProviders.add(name);
    for (const same of document.querySelectorAll("button[data-provider]")) {
      if (same.dataset.provider === name) same.setAttribute("aria-pressed", String(shown));
    }
    redraw();
  });
}

for (const link of document.querySelectorAll("a[data-status], a[data-search]")) {
  link.addEventListener("click", () => {
    const form = document.querySelector("form[data-filters=rows]");
    form.reset();
    if (link.dataset.status) form.elements.status.value = link.dataset.status;
    if (link.dataset.search) form.elements.search.value = link.dataset.search;
    setTimeout(() => form.dispatchEvent(new Event("input")));
  });
}

drawNext();
