"use strict";
(() => {
  const { plot, heat, html, NAMES } = Charts;
  const at = (id) => document.getElementById(id);
  const root = document.documentElement;
  let facts = JSON.parse(at("facts").textContent);
  let chosen = facts.chosen;
  const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: 4 }));
  const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  const percent = (share) => (100 * share).toFixed(1) + " %";
  const costs = { flops: "share of the multiply-adds kept", params: "share of the parameters kept" };

  // Choices for the axes: the objectives, then the costs that are not objectives.
  function axes() {
    const made = facts.objectives.map((o) => ({ name: o.name, label: costs[o.name] || o.name + (o.maximise ? " (more is better)" : " (less is better)"), cost: !o.maximise, of: (s) => s.values[o.name] }));
    for (const [name, label] of Object.entries(costs))
      if (!made.some((axis) => axis.name === name)) made.push({ name, label, cost: true, of: (s) => s[name] / facts.dense[name] });
    return made;
  }

  function colours() {
    const dark = root.dataset.theme === "dark";
    return {
      ink: "var(--ink)", blue: "var(--blue)", orange: dark ? "#f29b6b" : "#b84a14", violet: dark ? "#c8a5ff" : "#7a3fd0", green: dark ? "#6fd392" : "#1a7f43",
      share: dark ? ["#1b232d", "#2f64ad", "#b5d3ff"] : ["#f1f4f8", "#7fb0ec", "#0b3f8f"],
      both: dark ? ["#f29b6b", "#1b232d", "#8fbcff"] : ["#b34a16", "#f4f5f7", "#12519f"],
    };
  }

  const valuesOf = (s) => facts.objectives.map((o) => `${o.name} ${number(s.values[o.name])}`);
  function describe(s, i) {
    const parts = [["multiply-adds", "flops"], ["parameters", "params"]].filter(([, cost]) => facts.dense[cost]);
    return [`solution ${i}`, ...valuesOf(s), ...parts.map(([name, cost]) => `${percent(s[cost] / facts.dense[cost])} of the ${name}`)];
  }

  function drawFront() {
    const t = colours(), list = axes(), y = list[at("vertical").value] || list[0], x = list[at("horizontal").value] || list[1];
    const line = facts.objectives.length === 2 && x.name in costs;
    const points = (solutions, text) => solutions.map((s, i) => ({ x: x.of(s), y: y.of(s), text: text(s, i) })).filter((p) => Number.isFinite(p.x) && Number.isFinite(p.y)).sort((a, b) => a.x - b.x);
    const series = [];
    const singles = (solutions, colour, shapes) => [...new Set(solutions.map((s) => s.criterion))].forEach((criterion, k) => series.push({
      name: criterion, colour, shape: shapes[k % shapes.length],
      points: points(solutions.filter((s) => s.criterion === criterion), (s) => [`${criterion}, uniform widths`, ...valuesOf(s)]),
    }));
    singles(facts.singles, t.orange, NAMES);
    singles(facts.baselines, t.violet, ["wedge", "star"]);
    facts.beside.forEach((run, k) => series.push({
      name: run.name, colour: t.green, shape: ["square", "diamond", "triangle", "circle"][k % 4], line, dash: ["6 4", "2 3", "8 3 2 3", "12 4"][k % 4],
      points: points(run.solutions, (s) => [run.name, ...valuesOf(s)]),
    }));
    series.push({ name: "dense network", colour: t.ink, shape: "square", filled: true, points: points([facts.dense], () => ["dense network", ...valuesOf(facts.dense)]) });
    series.push({
      name: "the front", colour: t.blue, shape: "circle", filled: true, line,
      points: points(facts.solutions.map((s, i) => ({ ...s, i })), (s) => describe(s, s.i)),
    });
    series[series.length - 1].points.forEach((p) => { p.number = Number(p.text[0].split(" ")[1]); });
    plot(at("front"), { label: `Solutions of the front: ${y.label} by ${x.label}`, x, y, series, chosen, choose });
  }

  const row = (cells, tag) => html("tr", {}, ...cells.map((cell, i) => html(tag || (i ? "td" : "th"), {}, cell)));

  function show() {
    const s = facts.solutions[chosen];
    at("details").hidden = !s;
    if (!s) return;
    at("solution").value = String(chosen);
    const filters = [facts.layers.reduce((n, l) => n + l.size, 0), s.kept.reduce((n, k) => n + k, 0)];
    const lines = facts.objectives.filter((o) => !(o.name in costs)).map((o) => row([o.name, number(facts.dense.values[o.name]), number(s.values[o.name]), ""]));
    for (const [name, before, after] of [["multiply-adds", facts.dense.flops, s.flops], ["parameters", facts.dense.params, s.params], ["filters", ...filters]])
      if (before) lines.push(row([name, whole(before), whole(after), percent(after / before)]));
    at("costs").replaceChildren(html("thead", {}, row(["", "dense", `solution ${chosen}`, "kept"], "th")), ...lines);
    at("command").textContent = s.command;
    at("command").parentNode.hidden = Boolean(facts.status); // while the run goes on there is no front.json
    const flops = facts.layer_flops, name = (layer) => facts.layers[layer].name;
    const body = facts.layers.map((layer, l) => {
      const mix = Object.entries(s.blend[layer.name] || {}).filter((b) => b[1] >= 0.005).sort((a, b) => b[1] - a[1]);
      const bar = html("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = (100 * s.kept[l]) / layer.size + "%";
      const head = html("th", { scope: "row" }, name(l), html("span", { class: "blend" }, mix.map(([criterion, share]) => `${share.toFixed(2)} ${criterion}`).join(" + ")), bar);
      const cells = [`${s.kept[l]} of ${layer.size}`, percent(s.kept[l] / layer.size)];
      if (flops) cells.push(percent(flops.dense[l] / facts.dense.flops), percent(flops.solutions[chosen][l] / facts.dense.flops));
      return html("tr", {}, head, ...cells.map((cell) => html("td", { class: "number" }, cell)));
    });
    const head = ["layer", "filters kept", "share", ...(flops ? ["FLOPs dense", "FLOPs now"] : [])];
    at("widths").replaceChildren(html("thead", {}, row(head, "th")), html("tbody", {}, ...body));
  }

  function drawSolutions() {
    const names = facts.objectives.map((o) => o.name);
    const head = row(["solution", ...names, "multiply-adds", "parameters"], "th");
    const body = facts.solutions.map((s, i) => {
      const button = html("button", { type: "button", "aria-pressed": String(i === chosen) }, String(i));
      button.addEventListener("click", () => choose(i));
      return html("tr", i === chosen ? { class: "chosen" } : {}, html("th", { scope: "row" }, button), ...names.map((o) => html("td", {}, number(s.values[o]))), html("td", {}, whole(s.flops)), html("td", {}, whole(s.params)));
    });
    const dense = html("tr", {}, html("th", { scope: "row" }, "dense"), ...names.map((o) => html("td", {}, number(facts.dense.values[o]))), html("td", {}, whole(facts.dense.flops)), html("td", {}, whole(facts.dense.params)));
    at("solutions").replaceChildren(html("thead", {}, head), html("tbody", {}, ...body, dense));
  }

  function drawKept() {
    const layers = facts.layers.map((layer) => layer.name);
    const values = facts.layers.map((layer, l) => facts.solutions.map((s) => s.kept[l] / layer.size));
    at("kept-section").hidden = !layers.length || !facts.solutions.length;
    heat(at("kept"), {
      corner: "layer, % kept by solution", rows: layers, columns: facts.solutions.map((_, i) => String(i)), values, low: 0, high: 1, stops: colours().share,
      text: (value) => String(Math.round(100 * value)), title: (l, i) => `${layers[l]}: solution ${i} keeps ${facts.solutions[i].kept[l]} of ${facts.layers[l].size}`,
    });
  }

  function drawProgress() {
    const { name, points, guard, final } = facts.progress, t = colours();
    at("progress-section").hidden = points.length === 0;
    if (!points.length) return;
    const marks = (values, what) => values.map(([x, y]) => ({ x, y, text: [`${number(x)} individuals`, `${what} ${number(y)}`] }));
    const series = [{ name: "during the search", colour: t.blue, shape: "circle", filled: true, line: true, points: marks(points, name) }];
    if (guard.length) series.push({ name: "on held-out images", colour: t.violet, shape: "diamond", line: true, dash: "3 3", points: marks(guard, name) });
    if (final !== null) series.push({ name: "the front (front.json)", colour: t.ink, shape: "square", filled: true, points: marks([[points[points.length - 1][0], final]], name) });
    plot(at("progress"), { label: `${name} by individuals evaluated`, x: { label: "individuals evaluated", zero: true }, y: { label: name }, series, height: 300 });
  }

  function drawShares() {
    const { criteria, table } = facts.shares, layers = facts.layers.map((layer) => layer.name);
    at("shares-section").hidden = table.length === 0;
    heat(at("shares"), {
      corner: "layer, % of the blend", rows: layers, columns: criteria, values: table, low: 0, high: 1, stops: colours().share,
      text: (value) => String(Math.round(100 * value)), title: (l, c) => `${layers[l]}: ${percent(table[l][c])} of the blend is ${criteria[c]}`,
    });
  }

  function drawAgreement() {
    at("agreement-section").hidden = facts.agreement.length === 0;
    if (!facts.agreement.length) return;
    const { criteria, rho } = facts.agreement[at("layer").value];
    heat(at("agreement"), {
      corner: "rho", rows: criteria, columns: criteria, values: rho, low: -1, high: 1, stops: colours().both,
      text: (value) => value.toFixed(2).replace("0.", "."), title: (i, j) => `${criteria[i]}, ${criteria[j]}: ` + (rho[i][j] === null ? "no layer has both" : `rho ${rho[i][j].toFixed(2)}`),
    });
  }

  const drawAll = () => { drawFront(); drawSolutions(); drawKept(); drawProgress(); drawShares(); drawAgreement(); };
  function choose(index) {
    chosen = index;
    show();
    drawFront();
    drawSolutions();
  }

  function fill(id, names, value) {
    const before = at(id).value;
    at(id).replaceChildren(...names.map((name, i) => new Option(name, String(i))));
    at(id).value = before !== "" && Number(before) < names.length ? before : value;
  }

  // Everything that depends on the facts; a live page calls it again.
  function update() {
    if (!facts.solutions[chosen]) chosen = facts.chosen;
    const names = axes().map((axis) => axis.label);
    fill("vertical", names, "0");
    fill("horizontal", names, "1");
    fill("layer", facts.agreement.map((a) => a.layer), "0");
    fill("solution", facts.solutions.map((s, i) => `${i}: ` + valuesOf(s).join(", ")), String(chosen));
    at("tiles").replaceChildren(...Object.entries(facts.tiles).map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
    at("lead").textContent = facts.lead;
    at("status").textContent = facts.status;
    at("status").hidden = !facts.status;
    show();
    drawAll();
  }

  async function poll() {
    let seconds = 2;
    try {
      const answer = await fetch("facts", { cache: "no-store" });
      const text = await answer.text();
      if (answer.status === 503) {
        at("status").hidden = false;
        at("status").textContent = text;
      } else if (!answer.ok) throw new Error(String(answer.status));
      else if (text !== poll.last) { poll.last = text; facts = JSON.parse(text); update(); }
    } catch {
      at("status").textContent = "The program that serves this page has ended (deap-prune watch); the page shows its last state.";
      seconds = 10;
    }
    setTimeout(poll, 1000 * seconds);
  }

  root.dataset.theme = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  update();
  at("solution").addEventListener("change", (event) => choose(Number(event.target.value)));
  for (const id of ["vertical", "horizontal"]) at(id).addEventListener("change", drawFront);
  at("layer").addEventListener("change", drawAgreement);
  at("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; drawAll(); });
  let wide = window.innerWidth;
  window.addEventListener("resize", () => { if (wide !== window.innerWidth) { wide = window.innerWidth; drawFront(); drawProgress(); } });
  window.addEventListener("beforeprint", () => { root.dataset.theme = "light"; drawAll(); });
  at("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren(at("command"));
    try {
      await navigator.clipboard.writeText(at("command").textContent);
      at("copy").textContent = "Copied";
    } catch { at("copy").textContent = "Selected"; }
  });
  if (facts.live) poll();
})();
