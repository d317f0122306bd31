"use strict";
// A table at hand: which mask is shown, within which budget, and what that comes to.

const $ = (id) => document.getElementById(id);

/** Little-endian float32 in base64. */
function floats(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

const { units, macs, most } = data;
const scores = Object.fromEntries(Object.entries(data.splits).map(([split, { loss, metric }]) =>
  [split, { loss: floats(loss), metric: floats(metric) }]));
const rows = scores.reward.loss.length;
const groups = data.groups.map(({ name, examples, metric }) =>
  ({ name, examples, metric: { reward: floats(metric.reward), test: floats(metric.test) } }));
/** The numbers of the skipped units of every row; where no keys are given, row r skips unit i if bit i of r is set. */
const skipped = data.keys === null
  ? Array.from({ length: rows }, (_, row) => units.flatMap((_, i) => (Math.floor(row / 2 ** i) % 2 ? [i] : [])))
  : data.keys.split(";").map((key) => (key === "" ? [] : key.split(",").map(Number)));
const rowOf = new Map(skipped.map((indices, row) => [indices.join(), row]));
const saved = skipped.map((indices) =>
  (macs.full - macs.unskipped + indices.reduce((sum, i) => sum + macs.savings[i], 0)) / macs.full);

const state = { mask: units.map(() => 0), split: "reward", k: null, least: 0 };

const within = (row) => (state.k === null || skipped[row].length === state.k) && (state.least === 0 || saved[row] >= state.least - 1e-9);
const told = (row) => skipped[row].map((i) => units[i].name).join(", ") || "nothing";

/** The rows that keep the budget, and the best of them: of equal losses, the one that saves the most. */
function competing() {
  const { loss } = scores[state.split];
  const kept = [];
  let best = -1;
  for (let row = 0; row < rows; row++) {
    if (!within(row)) continue;
    kept.push(row);
    if (best < 0 || loss[row] < loss[best] || (loss[row] === loss[best] && saved[row] > saved[best])) best = row;
  }
  return { kept, best };
}

/** Rows that no other beats in loss without saving less, from the fewest MACs saved on. */
function front() {
  const { loss } = scores[state.split];
  const order = Array.from({ length: rows }, (_, row) => row).filter((row) => Number.isFinite(loss[row]));
  order.sort((a, b) => saved[b] - saved[a] || loss[a] - loss[b]);
  const found = [];
  for (const row of order) if (!found.length || loss[row] < loss[found[found.length - 1]]) found.push(row);
  return found.reverse();
}

const drawn = architecture(units, (index) => {
  state.mask[index] = state.mask[index] ? 0 : 1;
  show();
});
$("units").append(architectureKey(units), drawn.list);

let budget = competing();
let frontRows = front();
let redraw = () => {};

/** Some rows for the chart, the same every time. */
const some = Array.from({ length: Math.min(rows, 1500) }, (_, i) => Math.floor((i * rows) / Math.min(rows, 1500)));
const point = (row) => [saved[row], scores[state.split].loss[row]];
const drawable = (row) => Number.isFinite(scores[state.split].loss[row]);

function currentRow() {
  return rowOf.get(state.mask.flatMap((bit, i) => (bit ? [i] : [])).join());
}

function showBudget() {
  budget = competing();
  const { kept, best } = budget;
  $("k").disabled = state.k === null;
  $("k-told").textContent = state.k === null ? "any number" : `${state.k} of ${units.length}`;
  $("least-told").textContent = state.least === 0 ? "any share" : percent(state.least);
  $("best").disabled = best < 0;
  $("within").textContent = best < 0 ? "No mask of the table keeps this budget." :
    `${kept.length.toLocaleString("en")} ${kept.length === 1 ? "mask keeps" : "masks keep"} it. The best skips ${told(best)}: loss ${number(scores[state.split].loss[best])}, ` +
    `${percent(scores[state.split].metric[best])} ${data.metric}, ${percent(saved[best])} of the MACs saved.`;
}

function show() {
  const row = currentRow();
  const { loss, metric } = scores[state.split];
  const count = state.mask.reduce((sum, bit) => sum + bit, 0);
  drawn.show(state.mask);
  $("count").textContent = `${count} of ${units.length}`;
  let rank = "not in the table";
  if (row !== undefined) {
    rank = within(row) && Number.isFinite(loss[row])
      ? `${(1 + budget.kept.filter((other) => loss[other] < loss[row]).length).toLocaleString("en")} of ${budget.kept.length.toLocaleString("en")}`
      : "off the budget";
  }
  const known = row !== undefined;
  $("loss").textContent = !known ? "-" : Number.isFinite(loss[row]) ? number(loss[row]) : "not finite";
  $("metric").textContent = known ? percent(metric[row]) : "-";
  $("saved").textContent = known ? percent(saved[row]) : "-";
  $("rank").textContent = rank;
  showGroups(row);
  say(known ? `Skipped: ${told(row)}. Loss ${$("loss").textContent}, ${$("metric").textContent} ${data.metric}, ` +
    `${$("saved").textContent} of the MACs saved, ${/\d/.test(rank) ? "rank " : ""}${rank}.` : `${count} units are skipped: this table knows masks of up to ${most}.`);
  redraw();
}

/** Groups of examples, those that lose most under a row first. */
function showGroups(row) {
  if (!groups.length) return;
  const told = groups.map(({ name, examples, metric }) => {
    const [full, now] = [metric[state.split][0], row === undefined ? NaN : metric[state.split][row]];
    return { change: now - full, cells: [name, examples[state.split].toLocaleString("en"), percent(full),
      row === undefined ? "-" : percent(now), row === undefined ? "-" : signed(100 * (now - full))] };
  });
  told.sort((a, b) => a.change - b.change || 0);
  $("groups").replaceChildren(...told.map(({ cells: [name, ...numbers] }) =>
    element("tr", {}, element("th", { scope: "row", class: "text" }, name), ...numbers.map((text) => element("td", {}, text)))));
}

const signed = (points) => `${points > 0 ? "+" : ""}${points.toFixed(1)}`;

let saying = null;
/** Show the text at once, and tell it to those who listen once things are still. */
function say(text) {
  $("status").textContent = text;
  clearTimeout(saying);
  saying = setTimeout(() => ($("said").textContent = text), 150);
}

function choose(indices) {
  state.mask = units.map((_, i) => (indices.includes(i) ? 1 : 0));
  show();
}

function showFront() {
  frontRows = front();
  $("front").max = frontRows.length - 1;
  $("front").value = Math.min($("front").value, frontRows.length - 1);
  tellFront();
}

function tellFront() {
  const row = frontRows[$("front").value];
  $("front-told").textContent = `${percent(saved[row])} saved, loss ${number(scores[state.split].loss[row])}`;
}

$("k").max = most;
$("k").value = Math.min(4, most);
$("least").max = Math.floor(200 * Math.max(...saved)) / 2;
$("exactly").addEventListener("change", () => {
  state.k = $("exactly").checked ? Number($("k").value) : null;
  showBudget();
  show();
});
$("k").addEventListener("input", () => {
  state.k = Number($("k").value);
  showBudget();
  show();
});
$("least").addEventListener("input", () => {
  state.least = Number($("least").value) / 100;
  showBudget();
  show();
});
$("front").addEventListener("input", () => {
  tellFront();
  choose(skipped[frontRows[$("front").value]]);
});
$("nothing").addEventListener("click", () => choose([]));
$("best").addEventListener("click", () => choose(skipped[budget.best]));
for (const radio of document.querySelectorAll("[name=split]")) {
  radio.addEventListener("change", () => {
    state.split = document.querySelector("[name=split]:checked").value;
    showBudget();
    showFront();
    show();
  });
}

redraw = chart($("chart"), "Loss against MACs saved", () => {
  const row = currentRow();
  const shown = some.filter(drawable);
  return {
    height: 320, marginLeft: 56, x: savedAxis,
    y: lossAxis(shown.map(point)),
    marks: costMarks({
      others: shown.filter((each) => !within(each)).map(point), tried: shown.filter(within).map(point),
      front: frontRows.map(point).reverse(), landed: row !== undefined && drawable(row) ? point(row) : null,
    }),
  };
}, {
  legend: [["off the budget", "var(--other)", "dot"], ["within the budget", "var(--kept)", "ring"], ["front", "var(--third)", "line"],
    ["the mask above", "var(--accent)", "star"]],
  table: () => ({ columns: ["MACs saved on the front", "loss, nats", data.metric, "skipped"],
    rows: frontRows.map((row) => [percent(saved[row]), number(scores[state.split].loss[row]), percent(scores[state.split].metric[row]), told(row)]) }),
});
showBudget();
showFront();
show();
