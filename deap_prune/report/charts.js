"use strict";
// Charts as SVG, heat maps as tables: they need no library, print, and can be read by keyboard and screen reader.
const Charts = (() => {
  const SHAPES = {
    circle: "M5 0A5 5 0 1 0 -5 0A5 5 0 1 0 5 0Z", square: "M-4-4H4V4H-4Z", diamond: "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
    triangle: "M0-5L5 4H-5Z", wedge: "M0 5L5-4H-5Z", cross: "M-4-4L4 4M4-4L-4 4", plus: "M-5 0H5M0-5V5",
    star: "M-5 0H5M0-5V5M-3.5-3.5L3.5 3.5M3.5-3.5L-3.5 3.5", bar: "M0-5V5", dash: "M-5 0H5",
  };
  const NAMES = ["cross", "plus", "triangle", "square", "diamond", "wedge", "star", "bar", "dash", "circle"];

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function html(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // Round numbers between two limits; powers of ten and their doubles and fives on a logarithmic axis.
  function ticksOf(low, high, log) {
    const ticks = [];
    if (log) {
      for (let power = Math.floor(low); power <= Math.ceil(high); power++)
        for (const digit of [1, 2, 5]) ticks.push(Math.log10(Number(`${digit}e${power}`)));
    } else {
      const rough = (high - low) / 7, power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 5, 10].find((s) => s * power >= rough);
      for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9); k++) ticks.push(k * step);
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  }

  // A scale from values to pixels. Costs over a decade or more are logarithmic, as in plot.py.
  function scale(values, axis, from, to) {
    const least = Math.min(...values), most = Math.max(...values);
    const log = Boolean(axis.cost) && least > 0 && 10 * least <= most;
    const mapped = log ? [Math.log10(least), Math.log10(most)] : [axis.zero ? Math.min(0, least) : least, most];
    const pad = 0.06 * (mapped[1] - mapped[0]) || 0.05 * Math.abs(mapped[1]) || 0.5;
    const [low, high] = [axis.zero && !log ? mapped[0] : mapped[0] - pad, mapped[1] + pad];
    const place = (number) => from + ((number - low) / (high - low)) * (to - from);
    const text = (tick) => Number((log ? 10 ** tick : tick).toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 });
    return { at: (value) => place(log ? Math.log10(value) : value), ticks: ticksOf(low, high, log).map((tick) => [place(tick), text(tick)]) };
  }

  const symbol = (shape, colour, size, filled, ring) => svg("path", {
    d: SHAPES[shape], transform: `scale(${size})`, fill: filled ? colour : "none", stroke: ring || colour,
    "stroke-width": (filled ? 1 : 1.7) / size, "stroke-linecap": "round",
  });

  function legend(series) {
    const items = series.map((s) => html("li", {}, svg("svg", { width: 30, height: 14, viewBox: "-15 -7 30 14", "aria-hidden": "true" },
      ...(s.line ? [svg("path", { d: "M-14 0H14", stroke: s.colour, "stroke-width": 1.5, "stroke-dasharray": s.dash })] : []),
      symbol(s.shape, s.colour, 1, s.filled)), s.name));
    return html("ul", { class: "legend" }, ...items);
  }

  // x, y: {label, cost, zero}; series: {name, colour, shape, filled, line, dash, points: [{x, y, text, number}]}.
  // Points with a number can be chosen: by a click near them, and by the arrow keys.
  function plot(host, { label, x, y, series, chosen, choose, height }) {
    const focused = host.contains(document.activeElement) && document.activeElement.dataset.number !== undefined;
    const width = Math.max(260, host.clientWidth), tall = height || (width < 600 ? 320 : 430), edge = { l: 58, r: 16, t: 30, b: 48 };
    const all = series.flatMap((s) => s.points);
    if (!all.length) return host.replaceChildren(html("p", { class: "hint" }, "Nothing to draw yet."));
    const across = scale(all.map((p) => p.x), x, edge.l, width - edge.r), up = scale(all.map((p) => p.y), y, tall - edge.b, edge.t);
    const picture = svg("svg", { width, height: tall, viewBox: `0 0 ${width} ${tall}`, role: choose ? "radiogroup" : "img", "aria-label": label });
    let last = -Infinity;
    for (const [place, text] of across.ticks) {
      picture.append(svg("path", { d: `M${place} ${edge.t}V${tall - edge.b}`, class: "grid" }));
      if (place - last < 7 * text.length + 8) continue; // a label that would touch the one before it
      last = place;
      picture.append(svg("text", { x: place, y: tall - edge.b + 18, "text-anchor": "middle" }, text));
    }
    for (const [place, text] of up.ticks)
      picture.append(svg("path", { d: `M${edge.l} ${place}H${width - edge.r}`, class: "grid" }), svg("text", { x: edge.l - 8, y: place + 4, "text-anchor": "end" }, text));
    picture.append(svg("text", { x: (edge.l + width - edge.r) / 2, y: tall - 8, "text-anchor": "middle", class: "axis" }, x.label));
    picture.append(svg("text", { x: 4, y: 16, class: "axis" }, y.label));
    const shown = [];
    for (const s of series) {
      const places = s.points.map((p) => ({ ...p, left: across.at(p.x), top: up.at(p.y) }));
      if (s.line) picture.append(svg("path", { d: "M" + places.map((p) => `${p.left} ${p.top}`).join("L"), fill: "none", stroke: s.colour, "stroke-width": 1.6, "stroke-dasharray": s.dash }));
      for (const p of places) {
        const mark = svg("g", { transform: `translate(${p.left} ${p.top})` }, symbol(s.shape, s.colour, p.number !== undefined && p.number === chosen ? 1.5 : 1, s.filled, s.filled ? "var(--page)" : undefined));
        if (p.number !== undefined && choose) {
          const checked = p.number === chosen;
          for (const [name, value] of Object.entries({ role: "radio", "aria-checked": checked, "aria-label": p.text.join(", "), tabindex: checked ? 0 : -1, "data-number": p.number, class: "choice" })) mark.setAttribute(name, value);
          if (checked) mark.append(svg("circle", { r: 11, class: "ring" }));
        }
        picture.append(mark);
        shown.push({ ...p, mark });
      }
    }
    const note = html("div", { class: "note-box", hidden: "" });
    const nearest = (event, points, most) => {
      const box = picture.getBoundingClientRect(), far = (p) => Math.hypot(p.left - (event.clientX - box.left), p.top - (event.clientY - box.top));
      const near = points.filter((p) => far(p) <= most).sort((a, b) => far(a) - far(b));
      const equal = near.filter((p) => far(p) - far(near[0]) < 0.5); // points at one place are chosen in turn
      return equal.find((p) => p.number === undefined || p.number > chosen) || near[0];
    };
    picture.addEventListener("pointermove", (event) => {
      const p = nearest(event, shown, 16);
      note.hidden = !p;
      if (!p) return;
      note.replaceChildren(...p.text.map((line) => html("div", {}, line)));
      note.style.left = Math.max(0, Math.min(p.left + 12, width - note.offsetWidth - 4)) + "px";
      note.style.top = (p.top > tall / 2 ? p.top - note.offsetHeight - 12 : p.top + 12) + "px";
    });
    picture.addEventListener("pointerleave", () => { note.hidden = true; });
    if (choose) {
      const choices = shown.filter((p) => p.number !== undefined);
      picture.addEventListener("click", (event) => { const p = nearest(event, choices, 28); if (p) choose(p.number); });
      picture.addEventListener("keydown", (event) => {
        const place = choices.findIndex((p) => p.number === chosen);
        const next = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: choices.length - 1 }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        choose(choices[(next + choices.length) % choices.length].number);
      });
    }
    host.replaceChildren(html("div", { class: "picture" }, picture, note), legend(series.filter((s) => s.points.length)));
    if (focused) host.querySelector('[aria-checked="true"]')?.focus();
    return host;
  }

  function mix(stops, share) {
    const place = Math.max(0, Math.min(1, share)) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(place));
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const rgb = [0, 1, 2].map((i) => Math.round(part(stops[k], i) + (place - k) * (part(stops[k + 1], i) - part(stops[k], i))));
    return { background: `rgb(${rgb})`, ink: 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 140 ? "#14181d" : "#ffffff" };
  }

  // values[row][column], or null for an empty cell; text(value) is shown; title(row, column) explains a cell.
  function heat(host, { corner, rows, columns, values, low, high, stops, text, title }) {
    const head = html("tr", {}, html("th", { scope: "col" }, corner), ...columns.map((name) => html("th", { scope: "col" }, html("span", {}, name))));
    const body = rows.map((name, r) => html("tr", {}, html("th", { scope: "row", title: name }, name), ...columns.map((_, c) => {
      const value = values[r][c], cell = html("td", { title: title(r, c) });
      if (value === null || value === undefined) return cell;
      const colour = mix(stops, (value - low) / (high - low));
      cell.style.background = colour.background;
      cell.style.color = colour.ink;
      cell.append(text(value));
      return cell;
    })));
    host.replaceChildren(html("table", { class: columns.some((name) => name.length > 3) ? "heat named" : "heat" }, html("thead", {}, head), html("tbody", {}, ...body)));
  }

  return { plot, heat, html, NAMES };
})();
