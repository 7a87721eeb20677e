"use strict";
// The attention explorer: shows one query and what zero-shot, ICL and FT attend to while they read it.
(() => {
  const box = document.getElementById("look");
  const source = document.getElementById("look-data");
  const data = JSON.parse(source.textContent);
  const colours = { icl: source.dataset.icl, ft: source.dataset.ft };
  const at = (id) => document.getElementById(id);
  const [query, layer, order, tip] = ["look-query", "look-layer", "look-order", "look-tip"].map(at);
  const MEAN = -1;
  const UNDERLINED = 5;
  const LISTED = 10;
  // Keeps letters legible on light and dark backgrounds.
  const DARKEST = 0.62;
  const MOST_ANSWERS = 12;

  // Text is inserted as text nodes only, so that it is never parsed as HTML.
  function make(tag, content, name) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...(Array.isArray(content) ? content : [content ?? ""]));
    return element;
  }

  // Makes tokens of spaces visible.
  const visible = (text) => (text.trim() === "" ? text.replaceAll(" ", "␣") : text);

  function percent(share) {
    if (share > 0 && share < 0.00005) return "< 0.01 %";
    return `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;
  }

  function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }

  // --- the numbers of one query by layer ----------------------------------------------------------------------------

  // A token that is part of a character has no text: it is joined with the token that completes the character.
  function units(pieces, first) {
    const found = [];
    let start = 0;
    pieces.forEach((piece, place) => {
      if (piece === "" && place < pieces.length - 1) return;
      found.push({ text: piece, start: first + start, end: first + place + 1 });
      start = place + 1;
    });
    return found;
  }

  let counted = 0;
  const shown = data.demonstrations.map((each) => {
    const first = counted;
    counted += each.tokens;
    return { ...each, first, end: counted, units: units(each.pieces, first) };
  });
  const inContext = counted;

  function weightRows({ scale, codes }) {
    const all = bytes(codes);
    const width = all.length / scale.length;
    return scale.map((largest, row) => {
      const part = all.subarray(row * width, (row + 1) * width);
      return Float64Array.from(part, (code) => largest * (code / 255) ** 2);
    });
  }

  // Share of the other tokens that are ranked below a token; ties get the middle of their places.
  function percentiles(values) {
    const places = Array.from(values.keys()).sort((a, b) => values[a] - values[b]);
    const found = new Float64Array(values.length);
    const most = Math.max(1, values.length - 1);
    for (let start = 0; start < places.length; ) {
      let end = start;
      while (end < places.length && values[places[end]] === values[places[start]]) end += 1;
      for (let i = start; i < end; i += 1) found[places[i]] = (start + end - 1) / 2 / most;
      start = end;
    }
    return found;
  }

  function rankRows(codes) {
    const all = bytes(codes);
    const width = all.length / 2 / data.layers;
    return Array.from({ length: data.layers }, (_, row) =>
      percentiles(Float64Array.from({ length: width }, (_, i) => {
        const place = 2 * (row * width + i);
        return all[place] + 256 * all[place + 1];
      })));
  }

  function meanOf(rows) {
    const mean = new Float64Array(rows[0].length);
    for (const row of rows) row.forEach((value, i) => { mean[i] += value / rows.length; });
    return mean;
  }

  const decoded = new Map();

  function numbers(number) {
    if (!decoded.has(number)) {
      const example = data.examples[number];
      const found = { example, units: units(example.pieces, 0) };
      for (const key of ["zsl", "icl", "ft"]) found[key] = weightRows(example[key]);
      found.ranks = example.ranks === null || inContext === 0 ? null : rankRows(example.ranks);
      decoded.set(number, found);
    }
    return decoded.get(number);
  }

  function chosenLayer(rows) {
    const number = Number(layer.value) - 1;
    return number === MEAN ? meanOf(rows) : rows[number];
  }

  function chosenNumber(values) {
    if (!values) return null;
    const number = Number(layer.value) - 1;
    if (number !== MEAN) return values[number];
    const known = values.filter((value) => value !== null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  }

  const sum = (values, start, end) => {
    let total = 0;
    for (let i = start; i < end; i += 1) total += values[i];
    return total;
  };
  const most = (values, start, end) => {
    let largest = 0;
    for (let i = start; i < end; i += 1) largest = Math.max(largest, values[i]);
    return largest;
  };
  // Weights of joined tokens are added; of ranks the highest counts.
  const KINDS = {
    weight: {
      of: (values, unit) => sum(values, unit.start, unit.end),
      dark: (value, largest) => (largest > 0 ? Math.sqrt(value / largest) : 0),
      words: (value) => `${percent(value)} of attention`,
    },
    rank: {
      of: (values, unit) => most(values, unit.start, unit.end),
      dark: (value) => Math.max(0, 2 * value - 1) ** 2,
      words: (value) => `ranked above ${percent(value)} of the demonstrations’ other tokens`,
    },
  };

  // --- drawing ------------------------------------------------------------------------------------------------------

  function tinted(colour, dark) {
    const [red, green, blue] = [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
    return `rgba(${red}, ${green}, ${blue}, ${(DARKEST * Math.min(1, dark)).toFixed(3)})`;
  }

  function draw(text, list, kind, values, colour, where, options = {}) {
    const { of, dark, words } = KINDS[kind];
    const found = list.map((unit) => of(values, unit));
    const largest = options.largest ?? found.reduce((a, b) => Math.max(a, b), 0);
    const top = options.top ?? new Set([...found.keys()].sort((a, b) => found[b] - found[a]).slice(0, UNDERLINED));
    const tokens = list.map((unit, place) => {
      const token = make("span", unit.text, "token");
      token.style.backgroundColor = tinted(colour, dark(found[place], largest));
      token.classList.toggle("top", top.has(place) && found[place] > 0);
      token.classList.toggle("answer", unit.end > (options.answerFrom ?? Infinity));
      token.tabIndex = place === 0 ? 0 : -1;
      token.dataset.tip = `“${visible(unit.text.trim() || unit.text)}”: ${words(found[place])} (${where})`;
      return token;
    });
    if (options.missing > 0) tokens.push(make("span", ` … ${options.missing} more tokens are not shown`, "look-more"));
    text.replaceChildren(...tokens);
    return found;
  }

  function answers({ example }) {
    const rows = example.answers.map((answer, place) => {
      const right = place === example.label;
      const name = make("th", [answer]);
      name.scope = "row";
      name.dir = "auto";
      if (right) name.append(make("span", " (right answer)", "look-right"));
      const cells = data.answering.map((key) => {
        const of = example.probabilities[key];
        const cell = make("td", of ? "" : "–", "number");
        if (!of) return cell;
        const chosen = of.every((other) => other === null || other <= of[place]);
        cell.textContent = of[place] === null ? "–" : percent(of[place]);
        if (chosen) {
          cell.classList.add("chosen");
          cell.append(make("span", right ? "✓ right" : "✗ wrong", "under"));
        }
        return cell;
      });
      return { row: make("tr", [name, ...cells]), right, best: cells.some((cell) => cell.className.includes("chosen")) };
    });
    const few = rows.length > MOST_ANSWERS ? rows.filter((each) => each.right || each.best) : rows;
    at("look-answers").tBodies[0].replaceChildren(...few.map((each) => each.row));
    const left = rows.length - few.length;
    const rest = left ? ` ${left} answers that no learner gave are omitted.` : "";
    at("look-answers-note").textContent =
      `Row ${example.query} of the reported split. Probabilities sum to 1 over the answers; each learner’s answer is bold.${rest}`;
  }

  function theQuery(found, looks) {
    const { example } = found;
    const missing = example.tokens - example.pieces.length;
    for (const key of ["zsl", "icl", "ft"]) {
      const text = at(`look-text-${key}`);
      const where = { zsl: "zero-shot", icl: "ICL", ft: "FT" }[key];
      draw(text, found.units, "weight", looks[key].own, text.dataset.colour, where, { missing });
      const elsewhere = chosenNumber(example.elsewhere[key]);
      const before = key === "icl" ? chosenNumber(example.shown) : 0;
      const parts = [`${percent(Math.max(0, 1 - before - elsewhere))} of attention on the query`];
      if (key === "icl" && inContext) parts.push(`${percent(before)} on the demonstrations`);
      parts.push(`${percent(elsewhere)} on the opening token${key === "icl" && inContext ? " and separators" : ""}`);
      at(`look-sum-${key}`).textContent = parts.join(", ");
    }
  }

  // Share of each demonstration: for ICL the sum of its weights, for FT its share of the top tenth of the ranking.
  function shares(looks) {
    const tenth = Math.max(1, Math.round(inContext / 10));
    let highest = null;
    if (looks.ranks) {
      highest = new Uint8Array(inContext);
      const places = Array.from(looks.ranks.keys()).sort((a, b) => looks.ranks[b] - looks.ranks[a]);
      for (const place of places.slice(0, tenth)) highest[place] = 1;
    }
    return shown.map((each) => ({
      icl: sum(looks.icl.shown, each.first, each.end),
      ft: highest ? sum(highest, each.first, each.end) / tenth : null,
    }));
  }

  function bar(share, largest, key, name) {
    const line = make("span", "");
    line.style.width = `${largest > 0 ? (100 * share) / largest : 0}%`;
    line.style.background = colours[key];
    const whole = make("span", [make("span", percent(share)), line], `look-bar ${key}`);
    whole.title = name;
    return whole;
  }

  const rows = shown.map((each, number) => {
    const row = document.createElement("li");
    const opened = make("div", "", "look-opened");
    const summary = document.createElement("summary");
    const details = make("details", [summary, opened]);
    row.append(details);
    details.addEventListener("toggle", () => tokensOf(number));
    return { row, details, summary, opened };
  });

  let current = null;

  function tokensOf(number) {
    const { details, opened } = rows[number];
    if (!details.open || !current) {
      opened.replaceChildren();
      return;
    }
    const each = shown[number];
    const missing = each.tokens - each.pieces.length;
    const answerFrom = each.end - each.answer_tokens;
    const lines = [["icl", "weight", current.icl.shown, ["In context"]]];
    if (current.ranks) lines.push(["ft", "rank", current.ranks, ["Finetuned, by the rank in m", make("sub", "FT")]]);
    opened.replaceChildren(...lines.map(([key, kind, values, title]) => {
      const text = make("p", "", "look-text");
      text.dir = "auto";
      text.setAttribute("role", "group");
      text.setAttribute("aria-label", `Demonstration ${number + 1}, ${key === "icl" ? "in context" : "finetuned"}`);
      const who = make("p", title, "look-who");
      // Scale by the largest weight of all demonstrations, so that open demonstrations can be compared.
      const largest = kind === "weight" ? current.icl.shown.reduce((a, b) => Math.max(a, b), 0) : 1;
      const where = `${key === "icl" ? "ICL" : "FT"}, demonstration ${number + 1}`;
      draw(text, each.units, kind, values, colours[key], where, { largest, missing, answerFrom });
      return make("div", [who, text], "look-line");
    }));
  }

  function theDemonstrations(found, looks) {
    if (!inContext) return;
    const each = shares(looks);
    const [byIcl, byFt] = ["icl", "ft"].map((key) => each.reduce((a, share) => Math.max(a, share[key] ?? 0), 0));
    shown.forEach((one, number) => {
      const share = each[number];
      const excerpt = make("span", [make("strong", one.answer), one.excerpt], "look-excerpt");
      excerpt.dir = "auto";
      const bars = [bar(share.icl, byIcl, "icl", "share of ICL’s attention")];
      if (share.ft !== null) bars.push(bar(share.ft, byFt, "ft", "share of the top tenth of FT’s ranking"));
      rows[number].summary.replaceChildren(make("span", `${number + 1}`, "look-place"), excerpt, ...bars);
      tokensOf(number);
    });
    const key = order?.value ?? "prompt";
    const places = [...shown.keys()];
    if (key !== "prompt") places.sort((a, b) => each[b][key] - each[a][key]);
    // Moving a row loses its focus, so rows are moved only if their order changes.
    const list = at("look-shown");
    if (places.some((number, place) => list.children[place] !== rows[number].row)) {
      list.replaceChildren(...places.map((number) => rows[number].row));
    }
    const tau = chosenNumber(found.example.kendall);
    at("look-tau").textContent = tau === null
      ? ""
      : `${Number(layer.value) === 0 ? "Mean over layers of Kendall’s tau" : "Kendall’s tau in this layer"}, for this query: ${tau.toFixed(3)}.`;
  }

  // --- the ten most attended tokens ---------------------------------------------------------------------------------

  function topTable(title, candidates, unit) {
    const best = candidates.sort((a, b) => b.value - a.value).slice(0, LISTED);
    const head = make("thead", [make("tr", ["", "token", "in", unit].map((name, place) => {
      const cell = make("th", name, place === 3 ? "number" : "");
      cell.scope = "col";
      return cell;
    }))]);
    const body = make("tbody", best.map((each, place) => {
      const what = make("td", visible(each.text), "what");
      what.dir = "auto";
      const cells = [make("td", each.where, "name"), make("td", percent(each.value), "number")];
      return make("tr", [make("td", `${place + 1}`), what, ...cells]);
    }));
    const scroll = make("div", [make("table", [head, body])], "scroll");
    return make("div", [make("h4", title), scroll]);
  }

  function theTops(found, looks) {
    const own = (values) => found.units.map((unit) => ({ text: unit.text, where: "query", value: KINDS.weight.of(values, unit) }));
    const read = (kind, values) => shown.flatMap((each, number) => each.units.map((unit) => ({
      text: unit.text, where: `dem. ${number + 1}`, value: KINDS[kind].of(values, unit),
    })));
    const tables = [
      topTable("ICL: in its whole prompt", [...own(looks.icl.own), ...read("weight", looks.icl.shown)], "attention"),
      topTable("FT: in the query", own(looks.ft.own), "attention"),
    ];
    if (looks.ranks) tables.push(topTable("FT: among the training tokens", read("rank", looks.ranks), "rank"));
    at("look-tops").replaceChildren(...tables);
  }

  // --- choosing -----------------------------------------------------------------------------------------------------

  function show() {
    hide();
    const found = numbers(query.selectedIndex);
    const [zsl, icl, ft] = ["zsl", "icl", "ft"].map((key) => chosenLayer(found[key]));
    const ranks = found.ranks && percentiles(chosenLayer(found.ranks));
    current = {
      zsl: { own: zsl },
      icl: { shown: icl.subarray(0, inContext), own: icl.subarray(inContext) },
      ft: { own: ft },
      ranks,
    };
    const number = Number(layer.value);
    const name = number === 0 ? `mean of all ${data.layers}` : `${number - 1}`;
    at("look-layer-name").textContent = name;
    layer.setAttribute("aria-valuetext", number === 0 ? name : `layer ${name}`);
    answers(found);
    theQuery(found, current);
    theDemonstrations(found, current);
    theTops(found, current);
  }

  // --- a token's number ---------------------------------------------------------------------------------------------

  function hide() {
    tip.hidden = true;
    box.querySelector("[aria-describedby='look-tip']")?.removeAttribute("aria-describedby");
  }

  function tell(token) {
    hide();
    tip.textContent = token.dataset.tip;
    tip.hidden = false;
    token.setAttribute("aria-describedby", "look-tip");
    const [frame, place] = [box.getBoundingClientRect(), token.getClientRects()[0]];
    if (!place) return;
    const left = Math.min(place.left - frame.left, frame.width - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${place.top - frame.top - tip.offsetHeight - 6}px`;
  }

  const tokenOf = (event) => (event.target instanceof Element ? event.target.closest(".token") : null);
  for (const kind of ["mouseover", "focusin", "click"]) {
    box.addEventListener(kind, (event) => {
      const token = tokenOf(event);
      if (token) tell(token);
    });
  }
  for (const kind of ["mouseout", "focusout"]) {
    box.addEventListener(kind, (event) => {
      if (tokenOf(event)) hide();
    });
  }
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const token = tokenOf(event);
    if (!token) return;
    const all = [...token.parentElement.querySelectorAll(".token")];
    const place = all.indexOf(token);
    // In right-to-left text the next token is to the left.
    const step = getComputedStyle(token.parentElement).direction === "rtl" ? -1 : 1;
    const next = { ArrowRight: place + step, ArrowLeft: place - step, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined || !all[next]) return;
    event.preventDefault();
    token.tabIndex = -1;
    all[next].tabIndex = 0;
    all[next].focus();
  });

  query.addEventListener("change", show);
  layer.addEventListener("input", show);
  order?.addEventListener("change", show);
  box.hidden = false;
  show();
})();
