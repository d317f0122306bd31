"use strict";
// Draws the charts of a report into the places that its page keeps for them.

const STYLES = [["var(--kept)", "line", null], ["var(--accent)", "dashes", "8 4"], ["var(--third)", "dots", "2 4"],
  ["var(--muted)", "line", null], ["var(--ink)", "dashes", "8 4"]];
const styleOf = (index) => STYLES[index % STYLES.length];
const points = (values) => values.flatMap((value, index) => (value === null ? [] : [{ at: index + 1, value }]));

/** The best reward of several runs in one chart. */
function progressOf(runs, place) {
  const longest = Math.max(...runs.map((run) => run.progress.best.length));
  const marks = runs.map((run, index) => Plot.line(points(run.progress.best), { x: "at", y: "value", curve: "step-after",
    stroke: styleOf(index)[0], strokeWidth: 2, strokeDasharray: styleOf(index)[2] }));
  chart(place, "Best reward so far, run by run", () => ({ height: 220, marginLeft: 56,
    x: { label: "evaluations", domain: [1, Math.max(2, longest)] }, y: { label: "best reward", grid: true, nice: true }, marks }), {
    legend: runs.map((run, index) => [run.name, styleOf(index)[0], styleOf(index)[1]]),
    table: () => ({ columns: ["evaluation", ...runs.map((run) => run.name)],
      rows: Array.from({ length: longest }, (_, i) => [i + 1, ...runs.map((run) => number(run.progress.best[i]))]) }),
  });
}

const DRAW = {
  architecture(place, run) {
    const skipped = run.units.filter((_, index) => run.mask[index]).map((unit) => unit.name);
    place.append(element("p", {}, `Skipped: ${skipped.join(", ") || "nothing"} (${skipped.length} of ${run.units.length}).`));
    place.append(architectureKey(run.units), architecture(run.units, run.mask));
  },
  progress(place, run) {
    const { rewards, best } = run.progress;
    chart(place, "Reward of every mask that was scored, and the best so far", () => ({
      height: 220, marginLeft: 56, x: { label: "evaluations", domain: [1, Math.max(2, rewards.length)] },
      y: { label: "reward", grid: true, nice: true },
      marks: [
        Plot.dot(points(rewards), { x: "at", y: "value", r: 2, fill: "var(--other)" }),
        Plot.line(points(best), { x: "at", y: "value", curve: "step-after", stroke: "var(--kept)", strokeWidth: 2 }),
      ],
    }), {
      of: run.name, legend: [["each mask", "var(--other)", "dot"], ["best so far", "var(--kept)", "line"]],
      table: () => ({ columns: ["evaluation", "reward", "best so far"],
        rows: rewards.map((reward, i) => [i + 1, number(reward), number(best[i])]) }),
    });
  },
  heat(place, run) {
    const { turns, values } = run.heat;
    const cells = turns.flatMap((turn, t) => run.units.map((unit, i) => ({ turn, unit: unit.name, p: values[t][i] })));
    const names = run.units.map((unit) => unit.name);
    const longest = Math.max(...names.map((name) => name.length));
    chart(place, "How likely each unit is to be skipped, turn by turn", () => ({
      height: 60 + 16 * names.length, marginLeft: 16 + 7 * longest, padding: 0,
      x: { label: "turn", ticks: thinned(turns, 6), type: "band" }, y: { label: null, domain: names },
      color: { type: "linear", scheme: "cividis", domain: [0, 1], legend: true, label: "skip probability", width: 200 },
      marks: [Plot.cell(cells, { x: "turn", y: "unit", fill: "p", inset: 0 })],
    }), { of: run.name, table: () => ({ columns: ["turn", ...names], rows: turns.map((turn, t) => [turn, ...values[t].map((p) => number(p, 3))]) }) });
  },
  cost(place, run) {
    const { about, ...drawn } = run.cost;
    chart(place, `Loss against MACs saved: ${about}`, () => ({
      height: 280, marginLeft: 56, x: savedAxis, y: lossAxis([...drawn.others, ...drawn.tried, ...(drawn.landed ? [drawn.landed] : [])]),
      marks: costMarks(drawn),
    }), {
      of: run.name, legend: [...(drawn.others.length ? [["masks of the table", "var(--other)", "dot"]] : []), ["scored by the search", "var(--kept)", "ring"],
        ["front", "var(--third)", "line"], ...(drawn.landed ? [["the search's answer", "var(--accent)", "star"]] : [])],
      table: () => ({ columns: ["MACs saved on the front", "loss, nats"],
        rows: [...drawn.front.map(([saved, loss]) => [percent(saved), number(loss)]),
          ...(drawn.landed ? [[`${percent(drawn.landed[0])} (the search's answer)`, number(drawn.landed[1])]] : [])] }),
    });
  },
  statistics(place, run) {
    const names = run.units.map((unit) => unit.name);
    const all = Object.entries(run.statistics).filter(([, values]) => new Set(values).size > 1);
    for (const [name, values] of all) {
      const rows = values.map((value, i) => ({ unit: names[i], value, skipped: run.mask[i] }));
      chart(place, name.replaceAll("_", " "), (width) => ({
        height: 90, marginLeft: 56, marginBottom: 4, x: { domain: names, label: null, axis: null },
        y: { label: null, grid: true, ticks: 3, tickFormat: ".3~r" }, marks: [
          Plot.barY(rows, { x: "unit", y: "value", fill: (row) => (row.skipped ? "none" : "var(--kept)"),
            stroke: (row) => (row.skipped ? "var(--accent)" : "none"), strokeWidth: 2, insetLeft: width / names.length > 12 ? 2 : 0.5 }),
          Plot.ruleY([0], { stroke: "var(--line)" }),
        ] }), { of: run.name });
    }
    place.append(element("p", { class: "key" }, "From left to right: the units in mask order. Outlined: skipped."));
    const details = element("details", {}, element("summary", {}, "Layer statistics as a table"));
    const region = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Layer statistics, ${run.name}` });
    region.append(tableOf(["unit", ...Object.keys(run.statistics)],
      names.map((name, i) => [name, ...Object.values(run.statistics).map((values) => number(values[i]))])));
    details.append(region);
    cutTables.observe(region);
    place.append(details);
  },
};

const searched = data.runs.filter((run) => run.progress);
for (const place of document.querySelectorAll("[data-chart]")) {
  const kind = place.dataset.chart;
  if (kind === "all-progress" && searched.length > 1) {
    progressOf(searched, place);
  } else if (place.dataset.run) {
    DRAW[kind](place, data.runs[place.dataset.run - 1]);
  }
}
