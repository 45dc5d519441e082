"use strict";
// The explorer of predictions: search, filters and order make `shown`, a list of indices into the columns of
// `predictions-json`; the list draws only the visible rows, so that 40,000 pairs are as fast as 40.
// All texts come from data files. They reach the page only as text nodes, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("predictions-json").textContent);
  const { pairs, runs, labels } = data;
  const numPairs = pairs.id.length;
  const byId = (id) => document.getElementById(id);
  const list = byId("list"), rows = byId("rows"), detail = byId("detail");
  const toggles = [...document.querySelectorAll("[data-filter]")];

  const ROW = 64; // px, like `.row` in page.css
  const SPARE = 6; // rows drawn beyond the visible ones, so that scrolling shows no gap
  const UNSURE = 0.75; // a label with a lower probability has low confidence
  // Words in every text: marking them would hide what matters. Negations and quantifiers are not among them.
  const COMMON = new Set(("a an the of to in on at by for from with as and or is are was were be been being has have " +
    "had do does did it its this that these those he she his her they their them who which there when then than up out into so step").split(" "));
  const WORD = /[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu;

  const state = { run: 0, query: "", phenomenon: "", truth: "", sort: "file", on: new Set() };
  const marked = new Set();
  let shown = [], current = -1;

  // ---------------------------------------------------------------- properties of a pair

  const isRight = (i, run = state.run) => runs[run].label[i] === pairs.label[i];
  const flips = Array.from({ length: numPairs }, (_, i) => runs.some((run) => run.label[i] !== runs[0].label[i]));
  const haystack = Array.from({ length: numPairs }, (_, i) =>
    [pairs.id[i], pairs.premise[i], pairs.hypothesis[i], pairs.phenomenon[i] ?? "", ...runs.map((run) => run.thought[i] ?? "")]
      .join("\n").toLowerCase());

  // The probability of the predicted label; null if there is none.
  function confidence(i, run = state.run) {
    const { label: { [i]: label }, p: { [i]: p } } = runs[run];
    return label === null || p === null ? null : label === 1 ? p : 1 - p;
  }
  function pOfTruth(i) {
    const p = runs[state.run].p[i];
    return p === null ? 0.5 : pairs.label[i] === 1 ? p : 1 - p;
  }

  const FILTERS = {
    right: (i) => isRight(i),
    wrong: (i) => !isRight(i),
    flipped: (i) => flips[i],
    unsure: (i) => (confidence(i) ?? 1) < UNSURE,
    marked: (i) => marked.has(i),
  };
  const length = (column) => (i) => (column[i] ?? "").length;
  const SORTS = { // name: [menu text, key]; smallest first
    file: ["as in the file", null],
    unsure: ["least confident", (i) => confidence(i) ?? 2],
    sure: ["most confident", (i) => -(confidence(i) ?? -1)],
    mistaken: ["most mistaken", pOfTruth],
    premise: ["longest premise", (i) => -length(pairs.premise)(i)],
    thought: ["longest thought", (i) => -length(runs[state.run].thought)(i)],
  };

  // ---------------------------------------------------------------- filters

  function applyFilters() {
    const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = [...state.on].map((name) => FILTERS[name]);
    if (terms.length) tests.push((i) => terms.every((term) => haystack[i].includes(term)));
    if (state.phenomenon) tests.push((i) => pairs.phenomenon[i] === state.phenomenon);
    if (state.truth) tests.push((i) => String(pairs.label[i]) === state.truth);
    shown = [];
    for (let i = 0; i < numPairs; i++) if (tests.every((test) => test(i))) shown.push(i);
    const key = SORTS[state.sort][1];
    if (key) {
      const keys = new Map(shown.map((i) => [i, key(i)]));
      shown.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
    }
  }

  function refresh() {
    applyFilters();
    const filtered = state.query || state.phenomenon || state.truth || state.on.size;
    byId("count").textContent = filtered ? `${shown.length} of ${numPairs} pairs` : `${numPairs} pairs`;
    byId("export").textContent = `Export ${shown.length} as CSV`;
    byId("export").disabled = !shown.length;
    byId("clear").hidden = !filtered;
    for (const button of toggles) button.setAttribute("aria-pressed", String(state.on.has(button.dataset.filter)));
    rows.style.height = `${shown.length * ROW}px`;
    list.scrollTop = 0;
    if (!shown.includes(current)) current = shown[0] ?? -1;
    scrollToCurrent();
    drawRows();
    drawDetail();
  }

  function clear() {
    Object.assign(state, { query: "", phenomenon: "", truth: "", on: new Set() });
    for (const id of ["search", "phenomenon", "truth"]) byId(id).value = "";
    refresh();
  }

  // ---------------------------------------------------------------- drawing

  // Make an element with text or children; texts become text nodes, so that no text is parsed as markup.
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  const percent = (p) => (p > 0.9994 ? ">99.9 %" : p < 0.0006 ? "<0.1 %" : `${(100 * p).toFixed(p > 0.99 || p < 0.01 ? 1 : 0)} %`);
  const mark = (i, run) => (runs[run].label[i] === null ? "–" : isRight(i, run) ? "✓" : "✗");
  const verdict = (i, run) => (runs[run].label[i] === null ? "unanswered" : isRight(i, run) ? "right" : "wrong");
  const chip = (run) => element("span", { class: `chip series-${(run % 8) + 1}`, title: runs[run].name }, String(run + 1));

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    rows.replaceChildren(...shown.slice(first, last).map((i, offset) => row(i, first + offset)));
    if (!shown.length) rows.append(element("p", { class: "nothing" }, "No pair matches. Clear a filter or shorten the search."));
    const active = shown.indexOf(current);
    if (active >= first && active < last) list.setAttribute("aria-activedescendant", `row-${active}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function row(i, position) {
    const sure = confidence(i);
    const made = element("div", {
      class: `row ${verdict(i, state.run)}`, role: "option", id: `row-${position}`, "data-pair": i,
      "aria-selected": String(i === current), "aria-posinset": position + 1, "aria-setsize": shown.length,
    },
    element("span", { class: "mark", role: "img", "aria-label": verdict(i, state.run) }, mark(i, state.run)),
    element("span", { class: "texts" },
      element("span", { class: "hypothesis" }, pairs.hypothesis[i] || pairs.id[i]),
      element("span", { class: "premise" }, pairs.premise[i])),
    element("span", { class: "side" },
      element("span", {}, sure === null ? "" : percent(sure)),
      element("span", { class: "tags", title: "★ marked by you, ⇄ runs differ" }, (marked.has(i) ? "★ " : "") + (runs.length > 1 && flips[i] ? "⇄" : ""))));
    made.style.top = `${position * ROW}px`;
    return made;
  }

  function words(text) {
    return new Set((text.toLowerCase().match(WORD) ?? []).filter((word) => !COMMON.has(word)));
  }

  // The text, with the words that are in `known` marked.
  function withShared(text, known) {
    const parts = document.createDocumentFragment();
    let end = 0;
    for (const found of text.matchAll(WORD)) {
      if (!known.has(found[0].toLowerCase())) continue;
      parts.append(text.slice(end, found.index), element("mark", {}, found[0]));
      end = found.index + found[0].length;
    }
    parts.append(text.slice(end));
    return parts;
  }

  function drawDetail() {
    if (current < 0) return detail.replaceChildren(element("p", { class: "nothing" }, "Nothing to show."));
    const i = current, inPremise = words(pairs.premise[i]), inHypothesis = words(pairs.hypothesis[i]);
    const position = shown.indexOf(i);
    detail.replaceChildren(
      element("header", { class: "pair-head" },
        element("a", { class: "pair-link", href: link(i), title: "Link to this pair" }, pairs.id[i]),
        pairs.phenomenon[i] ? element("span", { class: "tag" }, pairs.phenomenon[i]) : null,
        element("span", { class: "tag truth" }, `true label: ${labels[pairs.label[i]]}`),
        element("span", { class: "moves" },
          button("★", "mark", marked.has(i) ? "Unmark (x)" : "Mark (x)", { "aria-pressed": String(marked.has(i)) }),
          button("↑", "previous", "Previous (k)"),
          element("span", { class: "quiet" }, `${position + 1} / ${shown.length}`),
          button("↓", "next", "Next (j)"))),
      element("div", { class: "pair" },
        element("section", {}, element("h3", {}, "Premise"), element("p", {}, withShared(pairs.premise[i], inHypothesis))),
        element("section", {}, element("h3", {}, "Hypothesis"), element("p", {}, withShared(pairs.hypothesis[i], inPremise)))),
      ...runs.map((_, run) => answer(i, run, inPremise)));
    detail.scrollTop = 0;
  }

  function button(text, action, label, attributes = {}) {
    return element("button", { type: "button", "data-action": action, "aria-label": label, title: label, ...attributes }, text);
  }

  function answer(i, run, inPremise) {
    const { label: { [i]: label }, p: { [i]: p }, thought: { [i]: thought }, status: { [i]: status } } = runs[run];
    const made = element("section", { class: `answer ${verdict(i, run)}` },
      element("h3", {}, chip(run), element("span", { class: "name" }, runs[run].name),
        element("span", { class: "verdict" }, `${mark(i, run)} ${label === null ? "no answer" : labels[label]}`)));
    if (p !== null) {
      const bar = element("div", { class: "p", role: "img", "aria-label": `probability of entailment ${percent(p)}` },
        element("span", { class: "bar" }), element("span", {}, `${percent(p)} entailment`));
      bar.style.setProperty("--p", p);
      made.append(bar);
    }
    // "Step 2: ..." starts a new line; the text itself is unchanged.
    for (const step of thought ? thought.split(/(?=\bStep \d+[:.])/) : []) {
      made.append(element("p", { class: "step" }, withShared(step, inPremise)));
    }
    if (!thought) made.append(element("p", { class: "quiet" }, "No thought."));
    if (status === "truncated") made.append(element("p", { class: "quiet" }, "The thought was cut off by its budget."));
    return made;
  }

  // ---------------------------------------------------------------- navigation

  const link = (i) => `#pair=${encodeURIComponent(pairs.id[i])}`;

  function scrollToCurrent() {
    const top = shown.indexOf(current) * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  }

  function show(i) {
    current = i;
    scrollToCurrent();
    drawRows();
    drawDetail();
    history.replaceState(null, "", link(i));
  }

  function move(by) {
    if (!shown.length) return;
    show(shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(current) + by))]);
  }

  function toggleMark() {
    if (current < 0) return;
    if (!marked.delete(current)) marked.add(current);
    if (state.on.has("marked")) refresh();
    else { drawRows(); drawDetail(); }
  }

  // A link to a pair shows it, whatever the filters are.
  function followLink() {
    const wanted = /^#pair=(.*)$/s.exec(location.hash)?.[1];
    if (wanted === undefined) return;
    let id = wanted;
    try { id = decodeURIComponent(wanted); } catch { /* typed by hand: use it unchanged */ }
    const i = pairs.id.indexOf(id);
    if (i < 0) return;
    if (!shown.includes(i)) clear();
    show(i);
    byId("predictions").scrollIntoView();
  }

  // ---------------------------------------------------------------- export

  // A spreadsheet would run a cell that starts like a formula: an apostrophe makes it text.
  function cell(value) {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = /^\s*[=+\-@＝＋－＠]|^[\t\r\n]/.test(text) ? `'${text}` : text;
    return `"${safe.replaceAll('"', '""')}"`;
  }

  function asCsv(chosen) {
    const header = ["id", "premise", "hypothesis", "true_label", "phenomenon"];
    for (const run of runs) for (const name of ["predicted_label", "p_entailment", "thought_process"]) {
      header.push(runs.length > 1 ? `${name} (${run.name})` : name);
    }
    const lines = chosen.map((i) => [
      pairs.id[i], pairs.premise[i], pairs.hypothesis[i], pairs.label[i], pairs.phenomenon[i],
      ...runs.flatMap((run) => [run.label[i], run.p[i], run.thought[i]]),
    ]);
    return [header, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  function exportCsv() {
    // Excel recognises UTF-8 by the byte order mark.
    const url = URL.createObjectURL(new Blob(["\ufeff", asCsv(shown)], { type: "text/csv;charset=utf-8" }));
    element("a", { href: url, download: "predictions.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  // ---------------------------------------------------------------- setup

  function options(id, entries) {
    byId(id).append(...entries.map(([value, text]) => element("option", { value }, text)));
  }

  options("run", runs.map((run, number) => [number, `${number + 1} ${run.name}`]));
  const phenomena = [...new Set(pairs.phenomenon.filter((name) => name !== null))].sort();
  options("phenomenon", [["", "any"], ...phenomena.map((name) => [name, name])]);
  options("truth", [["", "any"], ["1", labels[1]], ["0", labels[0]]]);
  options("sort", Object.entries(SORTS).map(([name, [text]]) => [name, text]));
  byId("run-control").hidden = runs.length < 2;
  byId("phenomenon-control").hidden = !phenomena.length;
  for (const button of toggles) if (button.dataset.filter === "flipped") button.hidden = runs.length < 2;

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("search").addEventListener("input", (event) => { state.query = event.target.value; refresh(); });
  for (const id of ["phenomenon", "truth", "sort"]) {
    byId(id).addEventListener("change", (event) => { state[id] = event.target.value; refresh(); });
  }
  byId("run").addEventListener("change", (event) => { state.run = Number(event.target.value); refresh(); });
  for (const button of toggles) {
    button.addEventListener("click", () => {
      const name = button.dataset.filter, other = { right: "wrong", wrong: "right" }[name];
      if (!state.on.delete(name)) { state.on.add(name); state.on.delete(other); }
      refresh();
    });
  }
  byId("clear").addEventListener("click", clear);
  byId("export").addEventListener("click", exportCsv);
  rows.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-pair]");
    if (chosen) show(Number(chosen.dataset.pair));
  });
  detail.addEventListener("click", (event) => {
    const actions = { next: () => move(1), previous: () => move(-1), mark: toggleMark };
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (!action) return;
    actions[action]();
    detail.querySelector(`[data-action="${action}"]`)?.focus(); // its button was redrawn
  });
  list.addEventListener("scroll", drawRows);
  new ResizeObserver(drawRows).observe(list);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing) { list.focus(); return; }
    if (typing) return;
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const anywhere = { j: () => move(1), k: () => move(-1), x: toggleMark, "/": () => { byId("search").focus(); byId("search").select(); } };
    // Elsewhere arrows scroll the page as usual.
    const inList = {
      ArrowDown: () => move(1), ArrowUp: () => move(-1), PageDown: () => move(page), PageUp: () => move(-page),
      Home: () => move(-numPairs), End: () => move(numPairs), Enter: () => detail.focus(),
    };
    const within = list.contains(event.target) || detail === event.target;
    const action = anywhere[event.key] ?? (within ? inList[event.key] : undefined);
    if (action) { event.preventDefault(); action(); }
  });
  addEventListener("hashchange", followLink);
  refresh();
  followLink();
})();
