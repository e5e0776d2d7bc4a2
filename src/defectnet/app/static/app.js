"use strict";
// The page. It holds the files and the question; the server keeps nothing between requests.

const $ = (selector, root = document) => root.querySelector(selector);
const SVG = "http://www.w3.org/2000/svg";
let facts;

function h(tag, attributes = {}, ...children) {
  const made = /^(svg|path|line|rect|text|g)$/.test(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (["value", "checked", "disabled", "hidden", "htmlFor"].includes(key)) made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const options = (values, chosen, empty) =>
  [...(empty === undefined ? [] : [["", empty]]), ...values.map((v) => (Array.isArray(v) ? v : [v, v]))]
    .map(([value, text]) => { const o = h("option", { value }, text); o.selected = value === (chosen ?? ""); return o; });
const percent = (p) => (p >= 0.995 ? "100 %" : p < 0.01 ? "< 1 %" : `${Math.round(100 * p)} %`);
const amount = (v) => (v === null ? "" : v >= 10 ? v.toFixed(0) : v >= 0.1 ? v.toFixed(1) : v.toPrecision(1));
const sentence = (text, role = "alert") => h("p", { class: "problem", role }, text);
const list = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);

// -- questions -----------------------------------------------------------------------------------------------------

const running = new Set();
addEventListener("pagehide", () => running.forEach((id) => navigator.sendBeacon(`/api/jobs/${id}/stop`)));

async function call(path, request) {
  let answer;
  try { answer = await fetch(path, request); }
  catch { throw new Error("The server does not answer. Start `defectnet app` again, and ask again."); }
  const found = await answer.json().catch(() => ({ error: "The server gave no answer. Ask again." }));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

/** Asks, and tells parts and progress as they come. `task.stop()` ends it. */
async function ask(name, question, files, task = {}) {
  const form = new FormData();
  form.append("question", JSON.stringify(question));
  for (const [role, given] of Object.entries(files)) for (const file of [given ?? []].flat()) {
    tooLarge(file);
    form.append(role, file, file.name);
  }
  let stopped = false;
  task.stop = () => { stopped = true; };
  const { id } = await call(`/api/${name}`, { method: "POST", body: form });
  running.add(id);
  task.stop = () => { stopped = true; return call(`/api/jobs/${id}/stop`, { method: "POST" }); };
  try {
    if (stopped) await task.stop();
    for (let seen = 0, wait = 40; ; wait = Math.min(400, wait * 1.4)) {
      await new Promise((done) => setTimeout(done, wait));
      const job = await call(`/api/jobs/${id}?seen=${seen}`);
      for (const [kind, values] of job.parts) { seen += 1; task.part?.(kind, values); }
      if (job.state === "failed") throw new Error(job.error);
      if (job.state === "stopped") return "stopped";
      if (job.state === "done") return "done";
      task.progress?.(job);
    }
  } finally { running.delete(id); }
}

function tooLarge(file) {
  if (file.size > facts.largest)
    throw new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, at most ${(facts.largest / 1e6).toFixed(0)} MB ` +
      "are taken. A spectrum has far fewer: export energy and DOS alone.");
}

// -- spectra -------------------------------------------------------------------------------------------------------

const ROLES = { host: "Pristine host", doped: "Doped sample" };

function spectra(root, changed) {
  const slots = {};
  const many = (files, role) => {
    if (files.length > 2) {
      slots[role].fail(`${files.length} files were dropped. Drop two: the pristine host's and the doped sample's.`);
    } else if (files.length === 2) {
      const pristine = files.findIndex((f) => /host|pristine|undoped|pure|parent|ref/i.test(f.name));
      const doped = files.findIndex((f) => /doped|sample/i.test(f.name) && !/undoped/i.test(f.name));
      const first = pristine >= 0 ? pristine : doped >= 0 ? 1 - doped : 0;
      slots.host.take(files[first]);
      slots.doped.take(files[1 - first]);
    } else if (files.length) slots[role].take(files[0]);
  };
  const swap = h("button", { type: "button", class: "plain small", hidden: true, onclick: () => {
    const [a, b] = [slots.host.state(), slots.doped.state()];
    slots.host.set(b); slots.doped.set(a);
  } }, "Swap host and sample");
  for (const role of Object.keys(ROLES)) {
    slots[role] = slot(role, many, () => { swap.hidden = !slots.host?.file && !slots.doped?.file; changed(); }, (key, value) => {
      const other = slots[role === "host" ? "doped" : "host"];  // what no file says is the same of both
      if (other.info && !["the file", "you"].includes(other.info[`${key}_from`])) other.say(key, value);
    });
    $(".slots", root).append(slots[role].root);
  }
  $(".slots", root).append(swap);
  return slots;
}

function slot(role, many, changed, said) {
  const it = { file: null, info: null, said: {}, problem: "" };
  let turn = 0;
  const input = h("input", { type: "file", id: `file-${role}`, multiple: true, onchange: () => many([...input.files], role) });
  const root = h("div", { class: "slot", "data-role": role });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    root.addEventListener(kind, (event) => {
      event.preventDefault();
      root.classList.toggle("over", kind === "dragover");
      if (kind === "drop") many([...event.dataTransfer.files], role);
    });
  }
  const read = async () => {
    const mine = ++turn;
    it.info = null; it.problem = "";
    draw(); changed();
    try {
      await ask("read", { role, read: { [role]: it.said } }, { [role]: it.file },
        { part: (_, info) => { if (mine === turn) it.info = info; } });
    } catch (error) { if (mine === turn) it.problem = error.message; }
    if (mine === turn) { draw(); changed(); }
  };
  const field = (key, label, values, note) => {
    const menu = h("select", { onchange: () => { it.say(key, menu.value); said(key, menu.value); } },
      options(values, it.info?.[key] ?? it.said[key], it.info?.[key] ? undefined : "choose"));
    menu.dataset.key = key;
    return h("label", { class: `field${note.doubt ? " doubt" : ""}` }, h("span", {}, label), menu, h("small", {}, note.text));
  };
  const origin = (from) => ({ text: { you: "you say so", assumed: "assumed: no file says" }[from] ?? `from ${from}`, doubt: from === "assumed" });
  function draw() {
    const { file, info, problem } = it;
    root.classList.toggle("full", Boolean(file));
    root.replaceChildren(h("label", { class: "choose" }, input, h("strong", {}, ROLES[role]),
      h("span", { class: "facts" }, file ? file.name : "Drop a file, or choose one")));
    if (!file) { if (problem) root.append(sentence(problem)); return; }
    root.append(h("button", { type: "button", class: "remove", title: "Remove", "aria-label": `Remove ${ROLES[role]}`,
      onclick: () => it.set({ file: null, info: null, said: {}, problem: "" }) }, "×"));
    if (problem) root.append(sentence(problem));
    else if (!info) root.append(h("p", { class: "facts" }, "reading …"));
    if (info?.points) {
      const edge = info.edge_mev ? `, band edge ${info.edge_mev.toFixed(1)} meV` : "";
      root.append(spark(info.curve), h("p", { class: "facts" }, `${info.format}: ${info.points} points, ` +
        `${+info.from_mev.toPrecision(3)} to ${+info.to_mev.toPrecision(3)} meV${edge}${info.error ? ", with errors" : ""}`));
      if (info.remark) root.append(h("p", { class: "problem" }, info.remark));
    } else if (info) root.append(h("p", { class: "problem" }, `${file.name} declares no energy unit. Choose it below.`));
    const kind = info?.kind ?? it.said.kind;
    if (info || Object.keys(it.said).length) {
      root.append(h("div", { class: "fields" },
        field("unit", "Energy unit", facts.units, info?.unit ? origin(info.unit_from) : { text: "no file says", doubt: true }),
        field("kind", "Kind of DOS", facts.kinds, origin(info?.kind_from ?? (it.said.kind ? "you" : "assumed"))),
        kind === "projected" && field("element", "of element", facts.elements.map((e) => e.symbol), { text: "" })));
    }
  }
  Object.assign(it, {
    root,
    take(file) {
      try { tooLarge(file); } catch (error) { return it.fail(error.message); }
      Object.assign(it, { file, said: {} }); read();
    },
    say(key, value) { it.said = { ...it.said, [key]: value || undefined }; read(); },
    fail(problem) { Object.assign(it, { file: null, info: null, said: {}, problem }); turn++; draw(); changed(); },
    state: () => ({ file: it.file, info: it.info, said: it.said, problem: it.problem }),
    set(state) { Object.assign(it, state); turn++; input.value = ""; if (it.file) read(); else { draw(); changed(); } },
  });
  draw();
  return it;
}

function spark({ x, y }) {
  const top = Math.max(...y), end = x.at(-1);
  const d = x.map((v, i) => `${i ? "L" : "M"}${(100 * v / end).toFixed(2)} ${(30 - 28 * Math.max(0, y[i]) / top).toFixed(2)}`).join("");
  return h("svg", { class: "spark", viewBox: "0 0 100 31", preserveAspectRatio: "none", "aria-hidden": "true" }, h("path", { d }));
}

// -- samples of known content --------------------------------------------------------------------------------------

/** Rows of files and contents, or a table with all that it names; `pair` is what they are read like. */
function known(root, pair, changed) {
  const it = { rows: [], table: null, told: null, problem: "" };
  let turn = 0;
  const input = h("input", { type: "file", id: "file-samples", multiple: true, onchange: () => add([...input.files]) });
  const drop = h("div", { class: "slot" }, h("label", { class: "choose" }, input, h("strong", {}, "Their spectra"),
    h("span", { class: "facts" }, "Drop files, or choose them; a table, too")));
  for (const kind of ["dragover", "dragleave", "drop"]) drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
  const body = h("div"), note = h("div");
  root.append(h("p", { class: "hint" }, "Measured like the sample in question, they correct what the potential gets wrong; one is enough. " +
    "Write what each holds. Or drop a table with columns sample, host_file, doped_file, formula, dopants (such as Al:0.05;In:0.02: atomic fractions) and the files that it names."), drop, body, note);
  const add = async (files) => {
    input.value = "";
    for (const file of files) {
      try { tooLarge(file); } catch (error) { it.problem = error.message; tell(); return; }
      const head = await file.slice(0, 4096).text();
      if (/doped_file/.test(head) && /dopants/.test(head)) it.table = file;
      else it.rows = [...it.rows.filter((row) => row.file.name !== file.name), { file, content: "" }];
    }
    draw(); check();
  };
  const files = () => [...(it.table ? [it.table] : []), ...it.rows.map((row) => row.file)];
  const lacking = () => (it.table ? [] : it.rows.filter((row) => !row.content.trim()).map((row) => row.file.name));
  const check = async () => {
    const mine = ++turn;
    Object.assign(it, { told: null, problem: "" });
    tell(); changed();
    if (!files().length || lacking().length || !(it.table || pair.host.info?.points)) return;
    try {
      await ask("samples", question(), { sample: files(), host: pair.host.file }, { part: (_, told) => { if (mine === turn) it.told = told; } });
    } catch (error) { if (mine === turn) it.problem = error.message; }
    if (mine === turn) { tell(); changed(); }
  };
  const question = () => ({ contents: it.rows.map((row) => row.content), read: { host: pair.host.said, doped: pair.doped.said } });
  const remove = (text, gone) => h("button", { type: "button", class: "plain", title: "Remove", "aria-label": `Remove ${text}`, onclick: () => { gone(); draw(); check(); } }, "×");
  const holds = (content) => Object.entries(content).map(([name, c]) => `${name} ${+c.toPrecision(3)}`).join(", ") || "none";
  // Apart from what is told of them: whoever types in one row must not lose it when another is checked.
  function draw() {
    body.replaceChildren(...(it.table ? [h("div", { class: "sample" }, h("span", {}, it.table.name), h("span", { class: "facts" }, `a table, and ${it.rows.length} spectra`), remove(it.table.name, () => { it.table = null; it.rows = []; }))]
      : it.rows.map((row) => h("div", { class: "sample" }, h("span", {}, row.file.name),
        h("input", { type: "text", value: row.content, placeholder: "at.%, such as Al 5, In 2.5", "aria-label": `Content of ${row.file.name}`, spellcheck: "false", autocapitalize: "off", autocomplete: "off",
          onchange: (event) => { row.content = event.target.value; check(); } }),
        remove(row.file.name, () => { it.rows = it.rows.filter((other) => other !== row); })))));
  }
  function tell() {
    const told = it.told && `${it.told.length === 1 ? "One sample" : `${it.told.length} samples`}, at.%: ${it.told.map((one) => `${one.file} ${holds(one.content)}`).join("; ")}.`;
    note.replaceChildren(it.problem ? sentence(it.problem) : told ? h("p", { class: "facts told" }, told) : "");
  }
  return Object.assign(it, { check, files, question,
    missing: () => (lacking().length ? [`say what is in ${list(lacking())}`] : it.problem ? ["mend the samples of known content"] : []) });
}

// -- crystal -------------------------------------------------------------------------------------------------------

function crystal(root, name, formulaToo, changed) {
  const it = { mode: "zoo", pack: "", formula: "", file: null, info: null };
  const body = h("div");
  const modes = [["zoo", "Host of the zoo"], ["structure", "Structure file"], ...(formulaToo ? [["formula", "Formula alone"]] : [])];
  root.append(h("div", { class: "choice", role: "radiogroup", "aria-label": "Crystal" }, modes.map(([value, text]) =>
    h("label", {}, h("input", { type: "radio", name, value, checked: value === "zoo", onchange: () => it.choose(value) }), h("span", {}, text)))), body);
  const named = (pack) => facts.packs.find((one) => one.pack === pack) ?? null;
  let turn = 0;
  const read = async (file) => {
    const mine = ++turn;
    Object.assign(it, { file, info: null, problem: "" });
    draw(); changed();
    try {
      await ask("structure", {}, { structure: file }, { part: (_, info) => { if (mine === turn) it.info = info; } });
    } catch (error) { if (mine === turn) it.problem = error.message; }
    if (mine === turn) { draw(); changed(); }
  };
  const zooHint = () => {
    const same = facts.packs.filter((one) => one.formula === it.formula.trim());
    return [h("p", { class: "hint" }, "A network answers in a second: a hint. With the structure, what each candidate does to the spectrum is computed."),
      same.map((one) => h("button", { type: "button", class: "plain small", onclick: () => it.choose("zoo", one.pack) }, `The zoo has ${one.pack}: use it instead`))];
  };
  function draw() {
    if (it.mode === "zoo") {
      const menu = h("select", { "aria-label": "Host", onchange: () => it.choose("zoo", menu.value) },
        options(facts.packs.map((one) => one.pack), it.pack, "choose a host"));
      body.replaceChildren(menu, h("p", { class: "hint" }, it.info
        ? `${it.info.dopants.length} substitutions are computed and bundled; an answer takes seconds.`
        : "Crystals whose substitutions are computed already."));
    } else if (it.mode === "structure") {
      const input = h("input", { type: "file", id: `${name}-structure`, onchange: () => input.files[0] && read(input.files[0]) });
      const drop = h("div", { class: `slot${it.file ? " full" : ""}` }, h("label", { class: "choose" }, input, h("strong", {}, "Structure"),
        h("span", { class: "facts" }, it.file ? it.file.name : "Drop a CIF, a POSCAR or another structure file")));
      for (const kind of ["dragover", "dragleave", "drop"]) drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop" && event.dataTransfer.files[0]) read(event.dataTransfer.files[0]);
      });
      body.replaceChildren(drop);
      if (it.problem) drop.append(sentence(it.problem));
      else if (it.file && !it.info) drop.append(h("p", { class: "facts" }, "reading …"));
      if (it.info) {
        drop.append(h("p", { class: "facts" }, `${it.info.formula}, space group ${it.info.spacegroup}, ${it.info.atoms} atoms in the primitive cell`),
          ...it.info.remarks.map((text) => h("p", { class: "problem" }, text)));
        body.append(h("p", { class: "hint" }, it.info.pack ? `The bundled host ${it.info.pack} fits: what it holds is answered in seconds.`
          : "No bundled host fits. Substitutions are computed on this machine, some seconds to minutes each, and kept."));
      }
    } else {
      const hint = h("div", {}, zooHint());
      const input = h("input", { type: "text", placeholder: "such as GaAs or Mg0.9Al0.1B2", "aria-label": "Formula", value: it.formula,
        spellcheck: "false", autocapitalize: "off", autocomplete: "off", oninput: () => {
          it.formula = input.value;
          const own = [...new Set(input.value.match(/[A-Z][a-z]?/g) ?? [])].filter((s) => facts.elements.some((e) => e.symbol === s));
          it.info = own.length ? { formula: input.value, elements: own, dopants: null } : null;
          hint.replaceChildren(...zooHint().flat());
          changed();
        } });
      body.replaceChildren(input, hint);
    }
  }
  Object.assign(it, {
    choose(mode, pack) {
      if (mode !== it.mode) Object.assign(it, { file: null, formula: it.formula || it.info?.formula || "", info: null, problem: "" });
      it.mode = mode;
      turn++;
      if (pack !== undefined) it.pack = pack;
      if (mode === "zoo") it.info = named(it.pack);
      if (mode === "formula" && it.formula) it.info = { formula: it.formula, elements: it.formula.match(/[A-Z][a-z]?/g) ?? [], dopants: null };
      $(`input[value=${mode}]`, root).checked = true;
      draw(); changed();
    },
    question: () => ({ mode: it.mode, pack: it.pack, formula: it.formula }),
    missing: () => (it.mode === "zoo" ? (it.pack ? "" : "choose a host") : it.mode === "structure" ? (it.info ? "" : "give a structure file") : it.formula.trim() ? "" : "write the formula"),
  });
  draw();
  return it;
}

// -- the periodic table --------------------------------------------------------------------------------------------

/** Where an element stands: on a wide screen, and on a phone, where transition metals stand below the main groups. */
function place({ group, period }) {
  const metal = group > 2 && group < 13;
  const column = metal ? (group - 3) * 7 + 1 : (group < 3 ? group - 1 : group - 11) * 10 + 1;
  return { "--c": group, "--r": period - 1, "--mc": `${column} / span ${metal ? 7 : 10}`, "--mr": metal ? period + 3 : period - 1 };
}

function candidates(root, none, changed) {
  const chosen = new Map();  // symbol -> site, or ""
  let crystalInfo = null, computes = false;
  const cells = new Map(facts.elements.map((e) => [e.symbol, h("button", { type: "button", ...place(e),
    onclick: () => { chosen.has(e.symbol) ? chosen.delete(e.symbol) : chosen.set(e.symbol, ""); draw(); changed(); } }, e.symbol)]));
  const chips = h("div", { class: "chips" });
  const compute = h("span", { hidden: true }, h("i", { class: "k-compute" }), "to be computed");
  root.append(h("p", { class: "hint" }, none.hint), h("div", { class: "elements", role: "group", "aria-label": "Elements" }, ...cells.values()),
    h("div", { class: "key" }, h("span", {}, h("i", { class: "k-chosen" }), "chosen"), h("span", {}, h("i", { class: "k-host" }), "in the host"), compute), chips);
  const sites = (symbol) => {
    const held = (crystalInfo?.dopants ?? []).filter((name) => name.startsWith(`${symbol}@`)).map((name) => name.split("@")[1]);
    return computes ? crystalInfo.elements : held;
  };
  function draw() {
    const held = crystalInfo?.dopants && new Set(crystalInfo.dopants.map((name) => name.split("@")[0]));
    for (const [symbol, cell] of cells) {
      const own = crystalInfo?.elements.includes(symbol) ?? false;
      const lacks = Boolean(held) && !held.has(symbol);
      if (own || (lacks && !computes)) chosen.delete(symbol);
      cell.className = own ? "host" : lacks && computes ? "compute" : "";
      cell.disabled = own || (lacks && !computes);
      cell.setAttribute("aria-pressed", chosen.has(symbol));
      cell.title = own ? `${symbol} is in the host` : cell.disabled ? `this host has no computed ${symbol}` : "";
    }
    compute.hidden = !computes;
    chips.replaceChildren(...(chosen.size ? [...chosen].map(([symbol, site]) => {
      const on = sites(symbol);
      const menu = on.length > 1 && h("select", { "aria-label": `Site of ${symbol}`, onchange: () => { chosen.set(symbol, menu.value); changed(); } },
        options(on.map((s) => [s, `on ${s}`]), site, computes ? "likely site" : "any site"));
      return h("span", { class: "chip" }, symbol, menu, h("button", { type: "button", "aria-label": `Remove ${symbol}`,
        onclick: () => { chosen.delete(symbol); draw(); changed(); } }, "×"));
    }).concat(h("button", { type: "button", class: "plain small", onclick: () => { chosen.clear(); draw(); changed(); } }, "Clear"))
      : [h("p", { class: "hint" }, none.text)]));
  }
  draw();
  return {
    host(info, mode) { crystalInfo = info; computes = mode === "structure" && Boolean(info); draw(); },
    choose(names) { chosen.clear(); names.forEach((name) => chosen.set(...`${name}@`.split("@").slice(0, 2))); draw(); changed(); },
    names: () => [...chosen].map(([symbol, site]) => (site ? `${symbol}@${site}` : symbol)),
    lacking: () => (computes ? [...chosen.keys()].filter((s) => !crystalInfo.dopants.some((name) => name.startsWith(`${s}@`))) : []),
  };
}

// -- answers -------------------------------------------------------------------------------------------------------

/** Scrolls to what is new, where it stands below the form. */
const show = (card) => { if (matchMedia("(max-width: 62rem)").matches) card.scrollIntoView({ block: "start" }); };

/** Shows a question while it runs: progress, the queue, a stop button; then what came of it. */
async function follow(reply, button, name, question, files, parts) {
  const task = {}, start = performance.now();
  const what = h("p", {}, "Sending …"), note = h("p", { class: "hint" }), bar = h("div", { class: "bar unknown" }, h("i"));
  const stop = h("button", { type: "button", class: "secondary", onclick: () => { stop.disabled = true; task.stop?.(); } }, "Stop");
  const doing = h("section", { class: "card doing", role: "status" }, h("div", {}, what, note), stop, bar);
  reply.replaceChildren(doing);
  button.disabled = true; button.dataset.busy = "yes";
  show(doing);
  let since = start, step = "";
  task.progress = ({ state, ahead, progress: [text, done, total] }) => {
    const now = performance.now();
    if (state === "queued") {
      what.textContent = "Waiting";
      note.textContent = `This machine computes two questions at a time; ${ahead ? `${ahead} more come before yours` : "yours is the next"}.`;
      return;
    }
    if (text.split(":")[0] !== step) { step = text.split(":")[0]; since = now; }
    what.textContent = `${text[0].toUpperCase()}${text.slice(1)}${total ? `, ${done} of ${total}` : ""}`;
    bar.classList.toggle("unknown", !total);
    bar.firstChild.style.setProperty("--done", total ? `${100 * done / total}%` : "0");
    const left = total && done >= 2 ? (now - since) / done * (total - done) / 1000 : 0;
    note.textContent = `${Math.round((now - start) / 1000)} s${left > 5 ? `, about ${left < 90 ? `${Math.round(left)} s` : `${Math.round(left / 60)} min`} left for this step` : ""}`;
  };
  task.part = (kind, values) => parts[kind]?.(values, (performance.now() - start) / 1000);
  try {
    const end = await ask(name, question, files, task);
    doing.remove();
    if (end === "stopped") reply.prepend(h("section", { class: "card", role: "status" }, h("p", {}, h("strong", {}, "Stopped.")),
      h("p", { class: "hint" }, "Substitutions that were finished are kept: asked again, it goes on from there.")));
  } catch (error) {
    doing.remove();
    reply.prepend(h("section", { class: "card" }, sentence(error.message)));
  } finally { delete button.dataset.busy; button.disabled = false; }
}

function save(name, data, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([data], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function downloads(stem, json) {
  const root = h("div", { class: "actions" }, h("button", { type: "button", class: "secondary", "data-save": "json",
    onclick: () => save(`${stem}.json`, JSON.stringify(json, null, 2), "application/json") }, "JSON"));
  root.figure = (figure) => root.firstChild.after(...Object.entries(figure).map(([form, data]) => h("button", { type: "button", class: "secondary", "data-save": form,
    onclick: () => save(`${stem}.${form}`, bytes(data), form === "pdf" ? "application/pdf" : `image/${form}`) }, `Figure (${form.toUpperCase()})`)));
  return root;
}

function wayOf(way, useZoo) {
  return h("div", { class: `way${way.packs ? " weak" : ""}`, "data-way": way.packs ? "network" : "pack" }, h("strong", {}, way.title), h("p", {}, way.text), h("p", {}, way.better),
    (way.packs ?? []).map((pack) => h("button", { type: "button", class: "plain", onclick: () => useZoo(pack) }, `Ask with ${pack} of the zoo`)));
}

function showAnswer(reply, { json, view }, { named, truth, useZoo, usePlan }) {
  const state = { "explains": ["yes", "✓"], "explains part": ["part", "!"], "does not explain": ["no", "!"] }[view.verdict.state] ?? ["", "?"];
  const files = downloads(`${json.formula}-answer`, json);
  const body = h("tbody"), limit = h("th", { hidden: true }, "detectable from");
  const most = Math.max(...view.rows.filter((r) => r.found).map((r) => r.high ?? r.amount), 0);
  let all = named;
  let limits = null;
  const more = h("button", { type: "button", class: "plain small", onclick: () => { all = true; rows(); } }, `Show all ${view.rows.length}`);
  const rows = () => {
    more.hidden = all || view.rows.length <= 10;
    body.replaceChildren(...(all ? view.rows : view.rows.slice(0, 10)).map((r) => h("tr", { class: r.found ? "there" : "off", "data-element": r.element },
      h("td", {}, r.element), h("td", {}, h("div", { class: "meter" }, h("i", { "--p": `${100 * r.probability}%` }), h("span", {}, percent(r.probability)))),
      h("td", {}, r.found ? [h("strong", {}, `${amount(r.amount)} at.%`), r.low === null ? null : h("small", {}, `${amount(r.low)} to ${amount(r.high)}`)]
        : r.upper === null ? "" : `at most ${amount(r.upper)}`),
      limits && h("td", {}, limits.elements[r.element] ? `${limits.elements[r.element]} at.%` : ""))),
      view.something_else === null ? "" : h("tr", { class: "off" }, h("td", {}, view.something_else_name || "something else"), h("td", {}, h("div", { class: "meter" }, h("i", { "--p": `${100 * view.something_else}%` }), h("span", {}, percent(view.something_else)))), h("td"), limits && h("td")));
  };
  rows();
  const under = h("p", { class: "hint small" }, view.coverage ? `Intervals and upper limits cover ${Math.round(100 * view.coverage)} %. at.% count all atoms.` : "at.% count all atoms.");
  const card = h("section", { class: "card answer" }, h("p", { class: "says" }, view.sentence), h("p", { class: `verdict ${state[0]}` }, h("i", {}, state[1]), h("span", {}, view.verdict.text)),
    h("ul", { class: "notes" }, view.notes.map((text) => h("li", {}, text)), view.warnings.map((text) => h("li", { class: "warning" }, text)), truth && h("li", { class: "truth" }, `Truly in this sample, which was simulated: ${truth}.`)),
    wayOf(view.way, useZoo), files);
  const table = h("section", { class: "card" }, h("h2", {}, "Elements"), h("div", { class: "wide" }, h("table", { class: "found" }, h("thead", {}, h("tr", {}, h("th", {}, "element"), h("th", {}, "probability"), h("th", {}, "amount"), limit)), body)), more, under);
  const charts = h("section", { class: "card" }, h("h2", {}, "Spectra"), h("p", { class: "hint" }, view.about));
  reply.append(card, table, charts);
  show(card);
  drawCurves(charts, view.curves);
  if (view.setup) files.append(h("button", { type: "button", class: "secondary", onclick: () => usePlan(view.setup) }, "Plan with this instrument"));
  return {
    figure: files.figure,
    limits(found) {
      limits = found; limit.hidden = false; rows();
      under.textContent += ` Detectable from: found in ${Math.round(100 * found.power)} % of samples where ${Math.round(100 * found.false_alarms)} % of undoped ones raise a false alarm, with this resolution and noise (${(100 * found.noise).toPrecision(2)} %).`;
    },
  };
}

// -- curves --------------------------------------------------------------------------------------------------------

function drawCurves(root, c) {
  const change = c.change;
  const end = Math.min(c.x.at(-1), Math.max(1.3 * (c.edge_mev ?? 0), c.x.findLast((_, i) => Math.max(c.host[i], c.doped[i]) > 0.02 * Math.max(...c.host)) * 1.06));
  chart(root, "Host and sample", { x: c.x, end, edge: c.edge_mev, height: 190, floor: 0, lines: [["host", c.host, "host"], ["doped", c.doped, "sample"],
    ...(c.answer ? [["answer", c.answer, "sample, by the answer"]] : [])] });
  chart(root, "The change: sample less host", { x: change.x, end, edge: c.edge_mev, height: 170, zero: true, bold: !c.rest && !change.rest, lines: [["doped", change.measured, "measured"],
    ...(change.predicted ? [["answer", change.predicted, "by the answer"]] : [])], band: change.low && [change.low, change.high, "two deviations"] });
  const rest = c.rest ?? change.rest;
  if (rest) chart(root, c.rest ? "What is left over, in deviations" : "What is left over", { x: change.x, end, height: 110, zero: true, last: true, lines: [["doped", rest, ""]],
    band: c.rest && [rest.map(() => -2), rest.map(() => 2), "two deviations"], span: c.rest ? Math.max(3.5, ...rest.map(Math.abs)) : undefined });
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(6)));
  return found;
}

function chart(root, title, spec) {
  const holder = h("div");
  const legend = spec.lines.filter(([, , text]) => text).map(([key, , text]) => h("span", {}, h("i", { class: `c-${key}` }), text));
  if (spec.band) legend.push(h("span", {}, h("i", { class: "c-answer band" }), spec.band[2]));
  const at = h("span", { class: "hint small" });
  root.append(h("h3", {}, title), h("div", { class: "legend" }, ...legend, at), holder);
  const inside = spec.x.map((v, i) => [v, i]).filter(([v]) => v <= spec.end * 1.0001).map(([, i]) => i);
  const values = spec.lines.flatMap(([, y]) => inside.map((i) => y[i]));
  let top = spec.span ?? Math.max(...values), bottom = spec.span ? -spec.span : spec.floor ?? Math.min(...values);
  if (spec.band && !spec.span) {  // a wide band is cut off, so that the lines can be seen
    const more = 0.6 * (top - bottom);
    [bottom, top] = [Math.max(bottom - more, Math.min(bottom, ...inside.map((i) => spec.band[0][i]))), Math.min(top + more, Math.max(top, ...inside.map((i) => spec.band[1][i])))];
  }
  const room = 0.06 * (top - bottom), [low, high] = [spec.floor === 0 ? Math.min(0, Math.min(...values)) : bottom - room, top + room];
  const draw = () => {
    const width = holder.clientWidth, height = spec.height, [left, right, foot] = [42, 8, 34];
    if (!width) return;
    const px = (v) => left + (width - left - right) * v / spec.end, py = (v) => 6 + (height - foot - 6) * (high - Math.min(high, Math.max(low, v))) / (high - low);
    const trace = (y, order = inside) => order.map((i, k) => `${k ? "L" : "M"}${px(spec.x[i]).toFixed(1)} ${py(y[i]).toFixed(1)}`).join("");
    const cursor = h("line", { class: "at", y1: 6, y2: height - foot, hidden: true, visibility: "hidden" });
    const drawn = h("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title },
      ticks(low, high, 4).map((v) => h("g", {}, h("line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) }),
        h("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, String(v).replace("-", "−")))),
      ticks(0, spec.end, width < 420 ? 5 : 9).map((v) => h("text", { x: px(v), y: height - foot + 15, "text-anchor": "middle" }, String(v))),
      h("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "energy (meV)"),
      spec.band && h("path", { class: "band", d: `${trace(spec.band[1])}L${trace(spec.band[0], [...inside].reverse()).slice(1)}Z` }),
      spec.zero && h("line", { class: "axis", x1: left, x2: width - right, y1: py(0), y2: py(0) }),
      spec.edge && spec.edge < spec.end && h("line", { class: "edge", x1: px(spec.edge), x2: px(spec.edge), y1: 6, y2: height - foot }),
      spec.edge && spec.edge < spec.end && h("text", { x: px(spec.edge) + 4, y: 16 }, "host's edge"),
      spec.lines.map(([key, y]) => h("path", { class: `line c-${key}`, d: trace(y) })), cursor);
    const move = (event) => {
      const x = (event.clientX - drawn.getBoundingClientRect().left - left) / (width - left - right) * spec.end;
      const i = inside.reduce((best, k) => (Math.abs(spec.x[k] - x) < Math.abs(spec.x[best] - x) ? k : best), inside[0]);
      cursor.setAttribute("x1", px(spec.x[i])); cursor.setAttribute("x2", px(spec.x[i])); cursor.setAttribute("visibility", "visible");
      at.textContent = `${spec.x[i].toPrecision(3)} meV: ${spec.lines.map(([, y, text]) => `${text} ${y[i].toPrecision(2)}`).join(", ")}`;
    };
    drawn.addEventListener("pointermove", move);
    drawn.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); at.textContent = ""; });
    holder.replaceChildren(drawn);
  };
  new ResizeObserver(draw).observe(holder);
}

// -- plans ---------------------------------------------------------------------------------------------------------

/** Colour of a detection limit on a logarithmic scale, deep for small ones, and of what is written on it. */
function shade(value, low, high) {
  const at = high > low ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : 0;
  const stops = [[19, 74, 93], [31, 111, 139], [127, 179, 197], [220, 235, 240]];
  const k = Math.min(2, Math.floor(3 * at)), t = 3 * at - k;
  return [`rgb(${stops[k].map((v, i) => Math.round(v + t * (stops[k + 1][i] - v))).join(",")})`, at < 0.4 ? "#fff" : "#1b2430"];
}

function showPlan(reply, { json, view }) {
  const best = new Map();
  for (const row of view.rows) {
    const symbol = row.dopant.split("@")[0], old = best.get(symbol);
    if (!old || (row.limit ?? Infinity) < (old.limit ?? Infinity)) best.set(symbol, row);
  }
  const finite = [...best.values()].map((row) => row.limit).filter((v) => v !== null);
  const spread = Math.max(1, Math.sqrt(10 * Math.min(...finite) / Math.max(...finite)));  // a decade at least: small differences are none
  const [low, high] = [Math.min(...finite) / spread, Math.max(...finite) * spread];
  view.rows.sort((a, b) => (a.limit ?? Infinity) - (b.limit ?? Infinity));
  const files = downloads(`${json.formula}-plan`, json);
  const cells = facts.elements.map((e) => {
    const row = best.get(e.symbol), own = view.elements.includes(e.symbol);
    const cell = h("div", { ...place(e), class: own ? "host" : row ? (row.limit === null ? "none" : "limit") : "unasked", title: row ? `${row.dopant}: ${row.text} at.%` : "" },
      e.symbol, row && row.limit !== null && h("small", {}, amount(row.limit)));
    if (row && row.limit !== null) [cell.style.background, cell.style.color] = shade(row.limit, low, high);
    else if (!own && !row) cell.style.color = "#bcc4cb";
    return cell;
  });
  const card = h("section", { class: "card answer" }, h("p", { class: "says" }, view.sentence), h("p", { class: "hint" }, view.about),
    h("div", { class: "elements", "data-limits": "" }, cells),
    finite.length ? h("div", {}, h("div", { class: "scale" }), h("div", { class: "ends" }, h("span", {}, `${amount(low)} at.%`), h("span", {}, "detection limit"), h("span", {}, `${amount(high)} at.%`))) : null,
    h("div", { class: "key" }, h("span", {}, h("i", { class: "k-host" }), "in the host"), best.size > finite.length && h("span", {}, h("i", { class: "k-none" }), "not found in any amount that fits in")), files);
  const table = h("section", { class: "card" }, h("h2", {}, "Dopants"), h("div", { class: "wide" }, h("table", { class: "found" },
    h("thead", {}, h("tr", {}, ["dopant", "limit", "named from", ...view.amounts.map((a) => `90 % at ${+a.toPrecision(3)}`), "told apart from others at"].map((t) => h("th", {}, t)))),
    h("tbody", {}, view.rows.map((r) => h("tr", {}, h("td", {}, r.dopant), h("td", {}, h("strong", {}, r.text)), h("td", {}, r.named),
      r.intervals.map((pair) => h("td", {}, pair ? `${amount(pair[0])} to ${amount(pair[1])}` : "")), h("td", { class: "long" }, r.apart.join(", "))))))),
    h("p", { class: "hint" }, `at.% of all atoms. Limit: found in ${Math.round(100 * view.power)} % of samples where ${Math.round(100 * view.false_alarms)} % of undoped ones raise a false alarm. ` +
      "Named from: Identify calls it present. 90 % at: the interval that would be stated of such an amount. Told apart: from which amount on it is not taken for the other."));
  reply.append(card, table);
  show(card);
  if (view.rows.some((r) => r.by_instrument)) {
    const grid = (title, hint, head, rows) => h("section", { class: "card" }, h("h2", {}, title), h("p", { class: "hint" }, hint), h("div", { class: "wide" }, h("table", { class: "found" },
      h("thead", {}, h("tr", {}, head.map((t) => h("th", {}, t)))), h("tbody", {}, rows.map((r) => h("tr", {}, r.map((t) => h("td", {}, t))))))));
    const asked = (n, f) => view.times[n] === 1 && view.fwhms_mev[f] === view.fwhm_mev;
    reply.append(grid("Limit with another instrument", "at.%, by resolution (FWHM), noise, and the counting time that this noise takes. Bold: as asked.",
      ["dopant", "noise", "time", ...view.fwhms_mev.map((f) => `${+f.toPrecision(3)} meV`)],
      view.rows.flatMap((r) => view.noises.map((n, k) => [k ? "" : r.dopant, `${+(100 * n).toPrecision(3)} %`, view.times[k] === null ? "" : `× ${+view.times[k].toPrecision(3)}`,
        ...r.by_instrument[k].map((text, f) => (asked(k, f) ? h("strong", {}, text) : text))]))));
    if (view.standards.length) reply.append(grid("Limit with samples of known content", "at.%. They help amounts, hardly limits, which are a matter of noise.",
      ["dopant", ...view.standards.map((n) => (n === 1 ? "1 sample" : n ? `${n} samples` : "none"))], view.rows.map((r) => [r.dopant, ...r.by_standards])));
  }
  return files;
}

// -- the two tabs --------------------------------------------------------------------------------------------------

function number(label, key, { value = "", unit = "", step = "any", min = 0, note = "" } = {}) {
  return h("label", { class: "field" }, h("span", {}, unit ? `${label} (${unit})` : label), h("input", { type: "number", name: key, value, step, min, inputmode: "decimal" }), h("small", {}, note));
}
const values = (root) => Object.fromEntries([...root.querySelectorAll("[name]")].filter((i) => !i.closest("[hidden]") && i.type !== "radio")
  .map((i) => [i.name, i.type === "checkbox" ? i.checked : i.type === "number" ? (i.value === "" ? null : Number(i.value)) : i.value]));

/** How what no bundled host has is computed. */
const computing = () => [
  h("label", { class: "field", "data-for": "structure" }, h("span", {}, "Potential"), h("select", { name: "potential" },
    options([["nequix", "nequix: best"], ["defectnet-nep", "defectnet-nep: fastest"]].filter(([name]) => facts.potentials.includes(name)), facts.potentials[0])), h("small", {}, "for what is not bundled")),
  h("div", { "data-for": "structure" }, number("Stop computing after", "minutes", { unit: "minutes", note: "never by default" }))];

function identifyTab(usePlan) {
  const root = $("#identify"), form = $("form", root), reply = $(".reply", root), button = $(".primary", root);
  let truth = "";
  const settings = $(".settings", root);
  $(".fields", settings).append(number("Band edge of the host", "edge_mev", { unit: "meV", note: "read from its file by default" }),
    h("div", { class: "field", "data-for": "zoo structure", "data-slow": "" }, number("Resolution, FWHM", "fwhm_mev", { unit: "meV", note: "fitted by default" })), ...computing(),
    h("label", { class: "field", "data-for": "formula" }, h("span", {}, "Network"), h("select", { name: "network" }, options(facts.networks, facts.network))),
    h("label", { class: "field check", "data-for": "zoo structure", "data-slow": "" }, h("input", { type: "checkbox", name: "same_potential" }), h("span", {}, "The spectra are simulated, with the very potential of the host")),
    h("label", { class: "field check", "data-for": "zoo structure" }, h("input", { type: "checkbox", name: "quick", onchange: () => changed() }), h("span", {}, "Quick answer: a network reads what each candidate does to the spectrum, in place of the inference")));
  let pair, host, elements, samples;
  const changed = () => {
    if (!pair || !host || !elements || !samples) return;
    const quick = $("[name=quick]", settings).checked && host.mode !== "formula";
    root.querySelectorAll("[data-for]").forEach((one) => { one.hidden = !one.dataset.for.includes(host.mode) || (quick && "slow" in one.dataset); });
    elements.host(host.info, host.mode);
    const lacks = [["host", "the host's spectrum"], ["doped", "the sample's spectrum"]].filter(([role]) => !pair[role].info?.points).map(([, text]) => `give ${text}`).concat(host.missing() || [], useSamples() ? samples.missing() : []);
    const many = elements.lacking();
    $(".missing", root).textContent = lacks.length ? `Still to do: ${list(lacks)}.` : many.length ? `${list(many)} will be computed first; you can stop, and what is finished is kept.` : "";
    button.disabled = lacks.length > 0 || Boolean(button.dataset.busy);
  };
  const useSamples = () => !$(".samples", root).hidden && samples.files().length > 0;
  pair = spectra($("#spectra"), () => { truth = ""; changed(); if (samples?.rows.length && !samples.told && pair.host.info?.points) samples.check(); });
  host = crystal($(".crystal", root), "identify-crystal", true, changed);
  elements = candidates($(".candidates", root), { hint: "Click the elements that may be there.", text: "None chosen: every element that can be is in question." }, changed);
  samples = known($(".samples", root), pair, () => changed());
  const go = async () => {
    const names = elements.names(), known = truth;
    const question = { ...host.question(), candidates: names, ...values(settings), ...samples.question() };
    let shown;
    await follow(reply, button, "identify", question, { host: pair.host.file, doped: pair.doped.file, structure: host.mode === "structure" ? host.file : null, sample: useSamples() ? samples.files() : [] }, {
      answer: (part, seconds) => {
        shown = showAnswer(reply, part, { named: names.length > 0, truth: known, usePlan: (setup) => usePlan(host, names, setup), useZoo: (pack) => { host.choose("zoo", pack); go(); } });
        reply.dataset.seconds = seconds.toFixed(2);
      },
      figure: (figure) => shown.figure(figure),
      limits: (limits) => shown.limits(limits),
    });
    changed();
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); go(); });
  const example = facts.example;
  $("#example").disabled = !example;
  if (example) $("#example-about").textContent = `A sample of ${example.pack}, seen through a neutron instrument, with ${example.candidates.length} candidates.`;
  $("#example").addEventListener("click", async () => {
    $("#example").disabled = true;
    host.choose("zoo", example.pack);
    elements.choose(example.candidates);
    for (const role of Object.keys(ROLES)) pair[role].take(new File([example[role]], `${role}.csv`));
    while (!pair.host.info || !pair.doped.info) {
      if (pair.host.problem || pair.doped.problem) { $("#example").disabled = false; return; }
      await new Promise((done) => setTimeout(done, 20));
    }
    truth = example.true;
    go();
  });
  changed();
}

function planTab() {
  const root = $("#plan"), form = $("form", root), reply = $(".reply", root), button = $(".primary", root);
  const fields = $(".setup .fields", root);
  const kind = h("select", { name: "kind", onchange: () => changed() }, options(facts.kinds, facts.kinds[0]));
  const element = h("select", { name: "element" });
  fields.append(h("label", { class: "field" }, h("span", {}, "Kind of DOS"), kind), h("label", { class: "field", "data-for": "projected" }, h("span", {}, "of element"), element),
    number("Resolution, FWHM", "fwhm_mev", { value: 3, unit: "meV" }), number("Noise", "noise_percent", { value: 2, unit: "%", note: "of the host's highest value, at each point" }),
    h("label", { class: "field" }, h("span", {}, "Amounts (at.%)"), h("input", { name: "amounts", value: "1, 3, 10" }), h("small", {}, "where intervals are told")), ...computing(),
    h("label", { class: "field check" }, h("input", { type: "checkbox", name: "vary", checked: true }), h("span", {}, "Other instruments and standards, too, for up to six dopants: takes longer")));
  let host, elements;
  const changed = () => {
    if (!host || !elements) return;
    elements.host(host.info, host.mode);
    for (const one of root.querySelectorAll("[data-for]")) one.hidden = one.dataset.for !== (one.dataset.for === "projected" ? kind.value : host.mode);
    element.replaceChildren(...options(host.info?.elements ?? [], element.value || host.info?.elements[0]));
    const lacks = host.missing(), many = elements.lacking();
    $(".missing", root).textContent = lacks ? `Still to do: ${lacks}.` : many.length ? `${list(many)} will be computed first; you can stop, and what is finished is kept.` : "";
    button.disabled = Boolean(lacks) || Boolean(button.dataset.busy);
  };
  host = crystal($(".crystal", root), "plan-crystal", false, changed);
  elements = candidates($(".candidates", root), { hint: "Click up to six to see other instruments and standards, too.", text: "None chosen: all that the host has." }, changed);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { noise_percent: noise, ...setup } = values(fields);
    let files;
    await follow(reply, button, "plan", { ...host.question(), candidates: elements.names(), ...setup, noise: noise === null ? null : noise / 100 },
      { structure: host.mode === "structure" ? host.file : null }, {
        plan: (part) => { files = showPlan(reply, part); },
        figure: (figure) => files.figure(figure),
      });
    changed();
  });
  changed();
  return (from, names, setup) => {
    select("plan");
    if (from.mode === "zoo") host.choose("zoo", from.pack);
    elements.choose(names);
    kind.value = setup.kind;
    changed();
    if (setup.element) element.value = setup.element;
    $("[name=fwhm_mev]", fields).value = +setup.fwhm_mev.toPrecision(3);
    $("[name=noise_percent]", fields).value = +(100 * setup.noise).toPrecision(2);
  };
}

function select(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", on);
    $(`#${tab.getAttribute("aria-controls")}`).hidden = !on;
  }
  scrollTo(0, 0);
}

// A file that misses the places for it would replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
document.querySelectorAll("[role=tab]").forEach((tab) => tab.addEventListener("click", () => select(tab.id.slice(4))));
call("/api/start").then((found) => {
  facts = found;
  $("#version").textContent = `Version ${facts.version}.`;
  identifyTab(planTab());
  document.body.dataset.ready = "yes";
}).catch((error) => $("main").prepend(sentence(error.message)));
