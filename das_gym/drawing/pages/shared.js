"use strict";
// The architecture, and charts that redraw at their width with a table beside them.

const data = JSON.parse(document.getElementById("data").textContent);

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const number = (value, digits = 4) => (value === null || value === undefined ? "-" : value.toFixed(digits));

/** An element with attributes and children; texts are text, never HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Indices of the units of each stage. */
function stagesOf(units) {
  const places = [...new Set(units.map((unit) => unit.stage))].sort((a, b) => a - b);
  return places.map((place) => units.flatMap((unit, index) => (unit.stage === place ? [index] : [])));
}

/** A unit's name with places where a line may break. */
function breakable(name) {
  return name.split(".").flatMap((part, index) => (index ? [".", element("wbr"), part] : [part]));
}

/** The units, a stage a column, each as skipped or kept. */
function architecture(units, mask) {
  const largest = Math.max(...units.map((unit) => unit.share ?? 0)) || 1;
  const boxes = units.map((unit, index) => {
    const box = element("span", { class: mask[index] ? "unit skipped" : "unit", title: mask[index] ? "skipped" : "kept" });
    box.append(element("span", { class: "name" }, ...breakable(unit.name)));
    if (unit.share !== null) {
      box.append(" ", element("span", { class: "share" }, percent(unit.share)));
      box.append(element("span", { class: "bar", "aria-hidden": "true", style: `width:${(100 * unit.share) / largest}%` }));
    }
    return box;
  });
  const list = element("ol", { class: "stages" });
  for (const stage of stagesOf(units)) list.append(element("li", {}, ...stage.map((index) => boxes[index])));
  return list;
}

/** What the boxes mean. */
function architectureKey(units) {
  const shares = units.some((unit) => unit.share !== null) ? " Numbers and bars: the share of the model's MACs that skipping saves." : "";
  return element("p", { class: "key" }, element("span", { class: "unit" }, "kept"), " ",
    element("span", { class: "unit skipped" }, element("span", { class: "name" }, "skipped")), shares);
}

/** A table of rows, its first column the row's heading. */
function tableOf(columns, rows) {
  const head = element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, String(first)), ...rest.map((cell) => element("td", {}, String(cell)))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

/** Tables that are wider than their place say so: most browsers of phones show no scroll bar. */
const cutTables = new ResizeObserver((entries) => {
  for (const { target } of entries) target.toggleAttribute("data-cut", target.scrollWidth > target.clientWidth + 1);
});
for (const region of document.querySelectorAll(".scroll")) cutTables.observe(region);

/** Rows that are at most `most`, at even distances, the last among them. */
function thinned(rows, most = 60) {
  if (rows.length <= most) return rows;
  return Array.from({ length: most }, (_, i) => rows[Math.round((i * (rows.length - 1)) / (most - 1))]);
}

/**
 * A chart with its caption, and the same as a table. `options(width)` are Plot's; the return value redraws.
 * `legend` is a list of [word, colour, shape], `table` gives {columns, rows} when it is opened, `of` says whose it is.
 */
function chart(place, label, options, { legend = [], table = null, of = "" } = {}) {
  const drawing = element("div");
  const name = of ? `${label}, ${of}` : label; // no two of a page are called the same
  const keys = element("ul", { class: "legend" });
  for (const [word, colour, shape] of legend) {
    const key = element("li");
    key.innerHTML = `<svg width="18" height="12" aria-hidden="true">${SHAPES[shape](colour)}</svg> `;
    key.append(word);
    keys.append(key);
  }
  const figure = element("figure", {}, element("figcaption", {}, label), ...(legend.length ? [keys] : []), drawing);
  if (table) {
    const details = element("details", {}, element("summary", {}, "The same as a table"));
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      const { columns, rows } = table();
      const region = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${name}` });
      region.append(tableOf(columns, thinned(rows)));
      details.replaceChildren(details.firstChild, region);
      cutTables.observe(region);
    });
    figure.append(details);
  }
  place.append(figure);
  let last = 0;
  const draw = () => {
    const width = Math.floor(drawing.clientWidth);
    if (!width) return;
    last = width;
    const plot = Plot.plot({ width, style: { fontSize: "12px", overflow: "visible" }, ...options(width) });
    for (const svg of plot.tagName === "svg" ? [plot] : plot.querySelectorAll("svg")) {
      const colours = svg.querySelector("linearGradient, image") !== null && svg !== plot && !svg.querySelector("[aria-label=cell]");
      svg.querySelectorAll("[aria-label]").forEach((part) => part.removeAttribute("aria-label")); // one picture, one name
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", colours ? `Colours: ${name}` : name);
    }
    drawing.replaceChildren(plot);
  };
  new ResizeObserver(() => Math.floor(drawing.clientWidth) !== last && draw()).observe(drawing);
  draw();
  return draw;
}

const SHAPES = {
  line: (colour) => `<line x1="0" x2="18" y1="6" y2="6" stroke="${colour}" stroke-width="3"/>`,
  dashes: (colour) => `<line x1="0" x2="18" y1="6" y2="6" stroke="${colour}" stroke-width="3" stroke-dasharray="5 3"/>`,
  dots: (colour) => `<line x1="0" x2="18" y1="6" y2="6" stroke="${colour}" stroke-width="3" stroke-dasharray="2 3"/>`,
  dot: (colour) => `<circle cx="9" cy="6" r="3" fill="${colour}"/>`,
  ring: (colour) => `<circle cx="9" cy="6" r="4" fill="none" stroke="${colour}" stroke-width="2"/>`,
  star: (colour) => `<path d="M9 0l1.8 4.2 4.2.3-3.2 2.9 1 4.3L9 9.4l-3.8 2.3 1-4.3L3 4.5l4.2-.3z" fill="${colour}"/>`,
};

/** An axis of shares in per cent. */
const savedAxis = { label: "MACs saved, %", grid: true, nice: true, percent: true, tickFormat: ".3~r" };

/** An axis of losses: logarithmic only where they differ by more than a factor of 5, since a shorter one has too few marks. */
function lossAxis(points) {
  const losses = points.map(([, loss]) => loss);
  const low = Math.min(...losses);
  const high = Math.max(...losses);
  const scale = low > 0 && high / low > 5 ? { type: "log", domain: [low, high] } : { nice: true };
  return { label: "loss, nats", grid: true, ticks: 5, tickFormat: ".4~r", ...scale };
}

/** Loss against cost: other masks, the front, what was tried, where a run landed. */
function costMarks({ others, front, tried, landed }) {
  return [
    Plot.dot(others, { x: "0", y: "1", r: 1.5, fill: "var(--other)", fillOpacity: 0.5 }),
    Plot.dot(tried, { x: "0", y: "1", r: 3, stroke: "var(--kept)" }),
    Plot.line(front, { x: "0", y: "1", curve: "step-before", stroke: "var(--third)", strokeWidth: 2 }),
    ...(landed ? [Plot.dot([landed], { x: "0", y: "1", r: 7, symbol: "star", fill: "var(--accent)", stroke: "var(--paper)" })] : []),
  ];
}
