"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const at = (id) => document.getElementById(id);
  const root = document.documentElement;
  const layers = facts.layers.map((layer) => layer.name);
  const number = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: 4 }));
  const percent = (value) => (100 * value).toFixed(1) + " %";
  const narrow = () => window.innerWidth <= 900;
  let chosen = facts.chosen;

  // Choices for the axes: the objectives, then the costs that are not objectives.
  const axes = facts.objectives.map((o) => ({ name: o.name, label: o.name + (o.maximise ? " (more is better)" : ""), cost: !o.maximise, of: (s) => s.values[o.name] }));
  const costs = { flops: "share of the multiply-adds kept", params: "share of the parameters kept" };
  for (const [name, label] of Object.entries(costs)) {
    const objective = axes.find((axis) => axis.name === name);
    if (objective) objective.label = label;
    else axes.push({ name, label, cost: true, of: (s) => s[name] / facts.dense[name] });
  }

  function theme() {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue("--" + name).trim();
    const dark = root.dataset.theme === "dark";
    return {
      ink: colour("ink"), soft: colour("soft"), line: colour("line"), page: colour("page"), blue: colour("blue"),
      orange: dark ? "#f29b6b" : "#c2541c", violet: dark ? "#c8a5ff" : "#7a3fd0", green: dark ? "#6fd392" : "#1a7f43",
      share: dark ? [[0, "#1b232d"], [0.5, "#2f64ad"], [1, "#b5d3ff"]] : [[0, "#f1f4f8"], [0.5, "#7fb0ec"], [1, "#0b3f8f"]],
      both: dark ? [[0, "#f29b6b"], [0.5, "#1b232d"], [1, "#8fbcff"]] : [[0, "#b34a16"], [0.5, "#f4f5f7"], [1, "#12519f"]],
    };
  }

  function draw(id, data, layout) {
    const t = theme();
    const axis = { gridcolor: t.line, zerolinecolor: t.line, linecolor: t.line, automargin: true, fixedrange: narrow() };
    const whole = {
      paper_bgcolor: t.page, plot_bgcolor: t.page, font: { color: t.ink, size: 12, family: "inherit" },
      margin: { l: 8, r: 12, t: 12, b: 8 }, hoverlabel: { bgcolor: t.page, bordercolor: t.soft, font: { color: t.ink } },
      dragmode: narrow() ? false : "zoom", ...layout,
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
    const options = {
      responsive: true, displaylogo: false, displayModeBar: narrow() ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { format: "svg", filename: id },
    };
    return Plotly.react(at(id), data, whole, options);
  }

  const short = (name) => (name.length > 22 ? name.slice(0, 10) + "…" + name.slice(-11) : name);
  // Costs over a decade or more use a logarithmic axis, as in plot.py.
  function stretch(axis, solutions) {
    const values = solutions.map(axis.of).filter(Number.isFinite), least = Math.min(...values), most = Math.max(...values);
    if (!(axis.cost && least > 0 && 10 * least <= most)) return {};
    const powers = [];
    for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power++) powers.push(power);
    const tickvals = powers.flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`)));
    return { type: "log", tickmode: "array", tickvals, ticktext: tickvals.map(String) };
  }

  const ticks = (names) => ({ tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names.map(short), tickfont: { size: 11 }, showgrid: false, zeroline: false });

  function heat(id, z, rows, hover, scale, bounds, xaxis) {
    const bar = { thickness: 10, outlinewidth: 0, tickfont: { size: 11 }, len: 1, y: 0.5 };
    const data = [{ type: "heatmap", z, text: hover, hoverinfo: "text", colorscale: scale, zmin: bounds[0], zmax: bounds[1], xgap: 1, ygap: 1, colorbar: bar }];
    const height = Math.max(200, 90 + 18 * rows.length);
    if (!at(id).classList.contains("tall")) at(id).style.height = height + "px";
    return draw(id, data, { xaxis, yaxis: { ...ticks(rows), autorange: "reversed" } });
  }

  function describe(s, i) {
    const values = facts.objectives.map((o) => `${o.name} ${number(s.values[o.name])}`).join("<br>");
    const costs = `<b>solution ${i}</b><br>${values}<br>${percent(s.flops / facts.dense.flops)} of the multiply-adds<br>` +
      `${percent(s.params / facts.dense.params)} of the parameters`;
    if (narrow()) return costs; // a longer label would cover the chart
    const most = layers.map((name, l) => [s.kept[l] / facts.layers[l].size, `${short(name)} ${s.kept[l]} of ${facts.layers[l].size}`]);
    const shown = most.slice().sort((a, b) => a[0] - b[0]).slice(0, 6).map((m) => m[1]).join("<br>");
    return `${costs}<br><br>most pruned:<br>${shown}`;
  }

  function drawFront() {
    const t = theme();
    const [y, x] = [axes[at("vertical").value], axes[at("horizontal").value]];
    const points = facts.solutions.map((s, i) => [x.of(s), y.of(s), i]).sort((a, b) => a[0] - b[0]);
    const line = facts.objectives.length === 2 && x.name in costs;
    const data = [];
    const symbols = ["x-thin", "cross-thin", "triangle-up-open", "square-open", "diamond-open", "circle-open", "star-open", "hexagon-open", "pentagon-open", "hourglass-open"];
    const values = (s) => facts.objectives.map((o) => `${o.name} ${number(s.values[o.name])}`).join("<br>");
    const crosses = (singles, colour, shapes, what) => [...new Set(singles.map((s) => s.criterion))].forEach((criterion, k) => {
      const mine = singles.filter((s) => s.criterion === criterion);
      data.push({
        type: "scatter", mode: "markers", name: criterion, x: mine.map(x.of), y: mine.map(y.of), hoverinfo: "text",
        text: mine.map((s) => `<b>${criterion}</b>, ${what}<br>${values(s)}`),
        marker: { symbol: shapes[k % shapes.length], size: 8, color: colour, line: { width: 1.5, color: colour } },
      });
    });
    crosses(facts.singles, t.orange, symbols, "alone, uniform widths");
    crosses(facts.baselines, t.violet, ["y-down-open", "asterisk-open"], "uniform widths");
    facts.beside.forEach((run, k) => {
      const mine = run.solutions.slice().sort((a, b) => x.of(a) - x.of(b));
      data.push({
        type: "scatter", mode: line ? "lines+markers" : "markers", name: run.name, x: mine.map(x.of), y: mine.map(y.of), hoverinfo: "text",
        text: mine.map((s) => `<b>${run.name}</b><br>${values(s)}`), line: { color: t.green, width: 1.5, dash: ["dash", "dot", "dashdot", "longdash"][k % 4] },
        marker: { symbol: ["circle-open", "square-open", "diamond-open", "triangle-up-open"][k % 4], size: 7, color: t.green },
      });
    });
    if ([x, y].every((axis) => Number.isFinite(axis.of(facts.dense)))) {
      data.push({
        type: "scatter", mode: "markers", name: "dense network", x: [x.of(facts.dense)], y: [y.of(facts.dense)],
        marker: { symbol: "square", size: 10, color: t.ink }, hovertemplate: "<b>dense network</b><br>%{y:.4f}<extra></extra>",
      });
    }
    data.push({
      type: "scatter", mode: line ? "lines+markers" : "markers", name: "blends (front)", cliponaxis: false,
      x: points.map((p) => p[0]), y: points.map((p) => p[1]), customdata: points.map((p) => p[2]),
      text: points.map((p) => describe(facts.solutions[p[2]], p[2])), hoverinfo: "text", line: { color: t.blue, width: 1.5 },
      marker: { size: points.map((p) => (p[2] === chosen ? 15 : 9)), color: t.blue, line: { color: points.map((p) => (p[2] === chosen ? t.ink : t.page)), width: points.map((p) => (p[2] === chosen ? 2.5 : 1)) } },
    });
    return draw("front", data, {
      hovermode: "closest", legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 11 }, traceorder: "reversed" },
      margin: { l: 8, r: 12, t: 12, b: narrow() ? 150 : 90 },
      xaxis: { title: { text: x.label, standoff: 14 }, ...stretch(x, [...facts.solutions, facts.dense]) },
      yaxis: { title: { text: y.label, standoff: 14 } },
    });
  }

  const row = (cells, tag) => {
    const line = document.createElement("tr");
    cells.forEach((cell, i) => {
      const made = document.createElement(tag || (i ? "td" : "th"));
      if (cell instanceof Node) made.append(cell);
      else made.textContent = cell;
      line.append(made);
    });
    return line;
  };

  function show(index) {
    chosen = index;
    const s = facts.solutions[index];
    if (!s) return;
    at("solution").value = String(index);
    const head = document.createElement("thead");
    head.append(row(["", "dense", "pruned", "kept"], "th"));
    const filters = [facts.layers.reduce((n, l) => n + l.size, 0), s.kept.reduce((n, k) => n + k, 0)];
    const lines = facts.objectives.filter((o) => !(o.name in costs)).map((o) => row([o.name, number(facts.dense.values[o.name]), number(s.values[o.name]), ""]));
    for (const [name, before, after] of [["multiply-adds", facts.dense.flops, s.flops], ["parameters", facts.dense.params, s.params], ["filters", ...filters]])
      lines.push(row([name, before.toLocaleString("en"), after.toLocaleString("en"), percent(after / before)]));
    at("costs").replaceChildren(head, ...lines);
    at("command").textContent = s.command;
    const widths = document.createElement("thead");
    widths.append(row(["layer", "dense", "kept"], "th"));
    at("widths").replaceChildren(widths, ...layers.map((name, l) => {
      const label = document.createElement("span");
      label.textContent = name;
      const blend = Object.entries(s.blend[name] || {}).filter((b) => b[1] >= 0.005).sort((a, b) => b[1] - a[1]);
      const line = row([label, String(facts.layers[l].size), String(s.kept[l])]);
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = percent(s.kept[l] / facts.layers[l].size).replace(" ", "");
      const mix = document.createElement("span");
      mix.className = "blend";
      mix.textContent = blend.map(([name, share]) => `${share.toFixed(2)} ${name}`).join(" + ");
      label.parentNode.append(mix, bar);
      line.querySelectorAll("td").forEach((cell) => cell.classList.add("number"));
      return line;
    }));
  }

  function drawKept() {
    const z = layers.map((_, l) => facts.solutions.map((s) => s.kept[l] / facts.layers[l].size));
    const hover = layers.map((name, l) => facts.solutions.map((s, i) => `${name}<br>solution ${i} keeps ${s.kept[l]} of ${facts.layers[l].size}`));
    return heat("kept", z, layers, hover, theme().share, [0, 1], { title: { text: "solution, cheapest first", standoff: 14 }, tick0: 0, dtick: Math.ceil(z[0].length / 15), showgrid: false, zeroline: false });
  }

  function drawProgress() {
    const { name, points, guard } = facts.progress;
    at("progress-section").hidden = points.length === 0;
    if (!points.length) return null;
    at("progress").style.height = "320px";
    const t = theme();
    const path = (label, values, colour, dash) => ({
      type: "scatter", mode: "lines+markers", name: label, x: values.map((p) => p[0]), y: values.map((p) => p[1]),
      line: { color: colour, width: 1.5, dash }, hovertemplate: `%{x} evaluations<br>${label} %{y:.4f}<extra></extra>`,
    });
    const data = [path(name, points, t.blue, "solid")];
    if (guard.length) data.push(path(`${name} on held-out images`, guard, t.violet, "dot"));
    return draw("progress", data, { legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 }, xaxis: { title: { text: "evaluations", standoff: 14 }, rangemode: "tozero" }, yaxis: { title: { text: name, standoff: 14 } } });
  }

  function drawShares() {
    const { criteria, table } = facts.shares;
    at("shares").parentNode.hidden = table.length === 0;
    if (!table.length) return null;
    const hover = layers.map((layer, l) => criteria.map((c, k) => `${layer}<br>${c}: ${percent(table[l][k])} of the blend`));
    return heat("shares", table, layers, hover, theme().share, [0, 1], { ...ticks(criteria), tickangle: -45 });
  }

  function drawAgreement() {
    at("agreement").parentNode.hidden = facts.agreement.length === 0;
    if (!facts.agreement.length) return null;
    const { criteria, rho } = facts.agreement[at("layer").value];
    const hover = criteria.map((a, i) => criteria.map((b, j) => `${a}, ${b}<br>` + (rho[i][j] === null ? "no layer has both" : `rho ${rho[i][j].toFixed(2)}`)));
    return heat("agreement", rho, criteria, hover, theme().both, [-1, 1], { ...ticks(criteria), tickangle: -45 });
  }

  const drawAll = () => { drawFront(); drawKept(); drawProgress(); drawShares(); drawAgreement(); };
  const fill = (id, names) => at(id).replaceChildren(...names.map((name, i) => new Option(name, String(i))));

  root.dataset.theme = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  fill("vertical", axes.map((a) => a.label));
  fill("horizontal", axes.map((a) => a.label));
  at("horizontal").value = "1";
  fill("layer", facts.agreement.map((a) => a.layer));
  fill("solution", facts.solutions.map((s, i) => `${i}: ` + facts.objectives.map((o) => `${o.name} ${number(s.values[o.name])}`).join(", ")));
  if (chosen !== null) show(chosen);
  drawAll();
  const choose = (index) => { show(index); drawFront(); };
  at("front").on("plotly_click", (event) => {
    const point = event.points.find((p) => p.customdata !== undefined);
    if (point) choose(point.customdata);
  });
  at("solution").addEventListener("change", (event) => choose(Number(event.target.value)));
  for (const id of ["vertical", "horizontal"]) at(id).addEventListener("change", drawFront);
  at("layer").addEventListener("change", drawAgreement);
  at("theme").addEventListener("click", () => { root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"; drawAll(); });
  let wide = narrow();
  window.addEventListener("resize", () => { if (wide !== narrow()) { wide = narrow(); drawAll(); } });
  at("copy").addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents(at("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try {
      await navigator.clipboard.writeText(at("command").textContent);
      at("copy").textContent = "Copied";
    } catch { at("copy").textContent = "Selected"; }
  });
})();
