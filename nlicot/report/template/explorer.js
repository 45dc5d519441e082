"use strict";
// The explorer of predictions: search, filters and order make `shown`, a list of indices into the columns of
// `predictions-json`; the list draws only the visible rows, so that 40,000 pairs are as fast as 40.
// All texts come from data files. They reach the page only as text nodes, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const { pairs, runs, labels } = JSON.parse(byId("predictions-json").textContent);
  const numPairs = pairs.id.length;
  const list = byId("list"), rows = byId("rows"), detail = byId("detail");
  const toggles = [...document.querySelectorAll("[data-filter]")];

  const ROW = 64; // px, like `.row` in page.css
  const SPARE = 6; // rows drawn beyond the visible ones, so that scrolling shows no gap
  const UNSURE = 0.75; // a label with a lower probability has low confidence
  // Words in every text: marking them would hide what matters. Negations and quantifiers are not among them.
  const COMMON = new Set(("a an the of to in on at by for from with as and or is are was were be been being has have " +
    "had do does did it its this that these those he she his her they their them who which there when then than up out into so step").split(" "));
  const WORD = /[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu;

  const state = { search: "", run: 0, phenomenon: "", truth: "", sort: "file", on: new Set() };
  const marked = new Set();
  let shown = [], current = -1;

  // ---------------------------------------------------------------- properties of a pair

  const haystack = pairs.id.map((id, i) =>
    [id, pairs.premise[i], pairs.hypothesis[i], pairs.phenomenon[i] ?? "", ...runs.map((run) => run.thought[i] ?? "")]
      .join("\n").toLowerCase());
  const isFlipped = (i) => runs.some((run) => run.label[i] !== runs[0].label[i]);
  const length = (text) => (text ?? "").length;
  const MARKS = { unanswered: "–", right: "✓", wrong: "✗" };
  function verdict(i, run = runs[state.run]) {
    return run.label[i] === null ? "unanswered" : run.label[i] === pairs.label[i] ? "right" : "wrong";
  }
  // The probability of a label; null if there is none.
  function probability(i, label) {
    const p = runs[state.run].p[i];
    return label === null || p === null ? null : label === 1 ? p : 1 - p;
  }
  const confidence = (i) => probability(i, runs[state.run].label[i]);

  const FILTERS = {
    right: (i) => verdict(i) === "right",
    wrong: (i) => verdict(i) !== "right",
    flipped: isFlipped,
    unsure: (i) => (confidence(i) ?? 1) < UNSURE,
    marked: (i) => marked.has(i),
  };
  const SORTS = { // name: [menu text, key]; smallest first
    file: ["as in the file", (i) => i],
    unsure: ["least confident", (i) => confidence(i) ?? 2],
    sure: ["most confident", (i) => -(confidence(i) ?? -1)],
    mistaken: ["most mistaken", (i) => probability(i, pairs.label[i]) ?? 0.5],
    premise: ["longest premise", (i) => -length(pairs.premise[i])],
    thought: ["longest thought", (i) => -length(runs[state.run].thought[i])],
  };

  function refresh() {
    const terms = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = [...state.on].map((name) => FILTERS[name]);
    if (terms.length) tests.push((i) => terms.every((term) => haystack[i].includes(term)));
    if (state.phenomenon) tests.push((i) => pairs.phenomenon[i] === state.phenomenon);
    if (state.truth) tests.push((i) => String(pairs.label[i]) === state.truth);
    const key = SORTS[state.sort][1], isFiltered = tests.length > 0 || state.search !== "";
    shown = [...pairs.id.keys()].filter((i) => tests.every((test) => test(i))).sort((a, b) => key(a) - key(b));
    byId("count").textContent = isFiltered ? `${shown.length} of ${numPairs} pairs` : `${numPairs} pairs`;
    byId("export").textContent = `Export ${shown.length} as CSV`;
    byId("export").disabled = !shown.length;
    byId("clear").hidden = !isFiltered;
    for (const toggle of toggles) toggle.setAttribute("aria-pressed", String(state.on.has(toggle.dataset.filter)));
    rows.style.height = `${shown.length * ROW}px`;
    list.scrollTop = 0;
    if (!shown.includes(current)) current = shown[0] ?? -1;
    draw();
  }

  function clear() {
    state.on.clear();
    for (const id of ["search", "phenomenon", "truth"]) state[id] = byId(id).value = "";
    refresh();
  }

  // ---------------------------------------------------------------- drawing

  // Make an element with text or children; texts become text nodes, so that no text is parsed as markup.
  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const span = (classes, ...children) => element("span", { class: classes }, ...children);
  const paragraph = (classes, ...children) => element("p", { class: classes }, ...children);
  const percent = (p) => (p > 0.9994 ? ">99.9 %" : p < 0.0006 ? "<0.1 %" : `${(100 * p).toFixed(p > 0.99 || p < 0.01 ? 1 : 0)} %`);
  const link = (i) => `#pair=${encodeURIComponent(pairs.id[i])}`;

  function draw() {
    const top = shown.indexOf(current) * ROW;
    list.scrollTop = Math.min(Math.max(list.scrollTop, top + ROW - list.clientHeight), Math.max(0, top));
    drawRows();
    drawDetail();
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    rows.replaceChildren(...shown.slice(first, last).map((i, offset) => row(i, first + offset)));
    if (!shown.length) rows.append(paragraph("nothing", "No pair matches. Clear a filter or shorten the search."));
    const active = shown.indexOf(current);
    if (active >= first && active < last) list.setAttribute("aria-activedescendant", `row-${active}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function row(i, position) {
    const sure = confidence(i), outcome = verdict(i);
    return element("div", {
      class: `row ${outcome}`, role: "option", id: `row-${position}`, "data-pair": i, style: `top: ${position * ROW}px`,
      "aria-selected": i === current, "aria-posinset": position + 1, "aria-setsize": shown.length,
    },
    element("span", { class: "mark", role: "img", "aria-label": outcome }, MARKS[outcome]),
    span("texts", span("hypothesis", pairs.hypothesis[i] || pairs.id[i]), span("premise", pairs.premise[i])),
    span("side", span("", sure === null ? "" : percent(sure)),
      element("span", { class: "tags", title: "★ marked by you, ⇄ runs differ" },
        (marked.has(i) ? "★ " : "") + (isFlipped(i) ? "⇄" : ""))));
  }

  function words(text) {
    return new Set((text.toLowerCase().match(WORD) ?? []).filter((word) => !COMMON.has(word)));
  }

  // The parts of the text, with the words that are in `known` marked.
  function withShared(text, known) {
    const parts = [];
    let end = 0;
    for (const found of text.matchAll(WORD)) {
      if (!known.has(found[0].toLowerCase())) continue;
      parts.push(text.slice(end, found.index), element("mark", {}, found[0]));
      end = found.index + found[0].length;
    }
    return [...parts, text.slice(end)];
  }

  function drawDetail() {
    if (current < 0) return detail.replaceChildren(paragraph("nothing", "Nothing to show."));
    const i = current, inPremise = words(pairs.premise[i]);
    const button = (text, action, label, attributes) =>
      element("button", { type: "button", "data-action": action, "aria-label": label, title: label, ...attributes }, text);
    const text = (title, content, known) =>
      element("section", {}, element("h3", {}, title), element("p", {}, ...withShared(content, known)));
    detail.replaceChildren(
      element("header", { class: "pair-head" },
        element("a", { class: "pair-link", href: link(i), title: "Link to this pair" }, pairs.id[i]),
        ...(pairs.phenomenon[i] ? [span("tag", pairs.phenomenon[i])] : []),
        span("tag truth", `true label: ${labels[pairs.label[i]]}`),
        span("moves",
          button("★", "mark", marked.has(i) ? "Unmark (x)" : "Mark (x)", { "aria-pressed": marked.has(i) }),
          button("↑", "previous", "Previous (k)"),
          span("quiet", `${shown.indexOf(i) + 1} / ${shown.length}`),
          button("↓", "next", "Next (j)"))),
      element("div", { class: "pair" },
        text("Premise", pairs.premise[i], words(pairs.hypothesis[i])),
        text("Hypothesis", pairs.hypothesis[i], inPremise)),
      ...runs.map((run, number) => answer(i, run, number, inPremise)));
    detail.scrollTop = 0;
  }

  function answer(i, run, number, inPremise) {
    const label = run.label[i], p = run.p[i], thought = run.thought[i], outcome = verdict(i, run);
    const made = element("section", { class: `answer ${outcome}` },
      element("h3", {},
        element("span", { class: "chip", style: `--series: var(--series-${(number % 8) + 1})`, title: run.name }, number + 1),
        span("name", run.name),
        span("verdict", `${MARKS[outcome]} ${label === null ? "no answer" : labels[label]}`)));
    if (p !== null) {
      const name = `probability of entailment ${percent(p)}`;
      made.append(element("div", { class: "p", role: "img", "aria-label": name, style: `--p: ${p}` },
        span("bar"), span("", `${percent(p)} entailment`)));
    }
    // "Step 2: ..." starts a new line; the text itself is unchanged.
    const steps = thought ? thought.split(/(?=\bStep \d+[:.])/) : [];
    made.append(...steps.map((step) => paragraph("step", ...withShared(step, inPremise))));
    if (!thought) made.append(paragraph("quiet", "No thought."));
    if (run.status[i] === "truncated") made.append(paragraph("quiet", "The thought was cut off by its budget."));
    return made;
  }

  // ---------------------------------------------------------------- navigation

  function show(i) {
    current = i;
    draw();
    history.replaceState(null, "", link(i));
  }

  function move(by) {
    if (shown.length) show(shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(current) + by))]);
  }

  function toggleMark() {
    if (current < 0) return;
    if (!marked.delete(current)) marked.add(current);
    if (state.on.has("marked")) refresh();
    else { drawRows(); drawDetail(); }
  }

  // A link to a pair shows it, whatever the filters are.
  function followLink() {
    if (!location.hash.startsWith("#pair=")) return;
    let id = location.hash.slice("#pair=".length);
    try { id = decodeURIComponent(id); } catch { /* typed by hand: use it unchanged */ }
    const i = pairs.id.indexOf(id);
    if (i < 0) return;
    if (!shown.includes(i)) clear();
    show(i);
    byId("predictions").scrollIntoView();
  }

  // ---------------------------------------------------------------- export

  // A spreadsheet would run a cell that starts like a formula: an apostrophe makes it text.
  function cell(value) {
    const safe = String(value ?? "").replace(/^(?=\s*[=+\-@＝＋－＠]|[\t\r\n])/, "'");
    return `"${safe.replaceAll('"', '""')}"`;
  }

  function exportCsv() {
    const ofRun = { predicted_label: "label", p_entailment: "p", thought_process: "thought" };
    const columns = { id: pairs.id, premise: pairs.premise, hypothesis: pairs.hypothesis, true_label: pairs.label, phenomenon: pairs.phenomenon };
    for (const run of runs) for (const [name, key] of Object.entries(ofRun)) {
      columns[runs.length > 1 ? `${name} (${run.name})` : name] = run[key];
    }
    const lines = [Object.keys(columns), ...shown.map((i) => Object.values(columns).map((column) => column[i]))];
    const csv = lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
    // Excel recognises UTF-8 by the byte order mark.
    const url = URL.createObjectURL(new Blob(["\ufeff", csv], { type: "text/csv;charset=utf-8" }));
    element("a", { href: url, download: "predictions.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  // ---------------------------------------------------------------- setup

  const phenomena = [...new Set(pairs.phenomenon.filter((name) => name !== null))].sort();
  const OPTIONS = {
    run: runs.map((run, number) => [number, `${number + 1} ${run.name}`]),
    phenomenon: [["", "any"], ...phenomena.map((name) => [name, name])],
    truth: [["", "any"], ["1", labels[1]], ["0", labels[0]]],
    sort: Object.entries(SORTS).map(([name, [text]]) => [name, text]),
  };
  for (const [id, entries] of Object.entries(OPTIONS)) {
    byId(id).append(...entries.map(([value, text]) => element("option", { value }, text)));
  }
  for (const id of ["search", ...Object.keys(OPTIONS)]) {
    byId(id).addEventListener(id === "search" ? "input" : "change", (event) => { state[id] = event.target.value; refresh(); });
  }
  byId("run-control").hidden = runs.length < 2;
  byId("phenomenon-control").hidden = !phenomena.length;
  for (const toggle of toggles) {
    const name = toggle.dataset.filter, other = { right: "wrong", wrong: "right" }[name];
    toggle.hidden = name === "flipped" && runs.length < 2;
    toggle.addEventListener("click", () => {
      if (!state.on.delete(name)) state.on.add(name).delete(other);
      refresh();
    });
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", clear);
  byId("export").addEventListener("click", exportCsv);
  rows.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-pair]");
    if (chosen) show(Number(chosen.dataset.pair));
  });
  const ACTIONS = { next: () => move(1), previous: () => move(-1), mark: toggleMark };
  detail.addEventListener("click", (event) => {
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (!action) return;
    ACTIONS[action]();
    detail.querySelector(`[data-action="${action}"]`)?.focus(); // its button was redrawn
  });
  list.addEventListener("scroll", drawRows);
  new ResizeObserver(drawRows).observe(list);

  const pageRows = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const KEYS = { j: ACTIONS.next, k: ACTIONS.previous, x: toggleMark, "/": () => { byId("search").focus(); byId("search").select(); } };
  const LIST_KEYS = { // elsewhere these keys scroll the page as usual
    ArrowDown: ACTIONS.next, ArrowUp: ACTIONS.previous, PageDown: () => move(pageRows()), PageUp: () => move(-pageRows()),
    Home: () => move(-numPairs), End: () => move(numPairs), Enter: () => detail.focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") list.focus();
      return;
    }
    const inList = list.contains(event.target) || detail === event.target;
    const action = KEYS[event.key] ?? (inList ? LIST_KEYS[event.key] : undefined);
    if (action) { event.preventDefault(); action(); }
  });
  addEventListener("hashchange", followLink);
  refresh();
  followLink();
})();
