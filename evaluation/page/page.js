"use strict";
// Draws the studies. All texts of the data are inserted as text nodes, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAGE = 8;                                   // studies per click on "Show more"
const WORST = { match: 0, differs: 1, missed: 2, denied: 2, invented: 3 };

function el(tag, cls, ...children) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  node.append(...children);
  return node;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), c => c.charCodeAt(0));
}

// One view with a heat map over it: transparent where the value is lowest, yellow where it is highest.
function heat(map, view, cover) {
  const [, , g, views] = map;
  const levels = bytes(views[Math.min(view, views.length - 1)]);
  const canvas = el("canvas", "heat");
  canvas.width = canvas.height = g;
  const pixels = canvas.getContext("2d").createImageData(g, g);
  levels.forEach((level, i) => {
    const v = level / 255;
    pixels.data.set([255, 90 + 130 * v, 30, 200 * v ** 1.5], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.style.left = canvas.style.top = `${50 * (1 - cover)}%`;
  canvas.style.width = canvas.style.height = `${100 * cover}%`;
  return canvas;
}

function picture(study, view, map) {
  const img = el("img");
  img.src = "data:image/jpeg;base64," + study.v[view];
  img.alt = `view ${view + 1} of ${study.id}`;
  const frame = el("span", "view", img);
  if (map) frame.append(heat(map, view, study.m.cover));
  return frame;
}

function pictures(study) {
  const box = el("div", "pictures");
  box.show = map => box.replaceChildren(...study.v.map((_, i) => picture(study, i, map)));
  box.show(null);
  return box;
}

function report(name, pieces) {
  const text = el("p", "report");
  if (!pieces.length) text.append(el("em", "", "(empty)"));
  for (const [piece, kind, labels] of pieces) {
    if (kind) {
      const mark = el("mark", kind, piece);
      mark.title = `${kind}: ${labels.join(", ")}`;
      text.append(mark, " ");
    } else text.append(piece + " ");
  }
  return el("div", "", el("h4", "", name), text);
}

// A clue's row as a button: a click shows its heat map on the large pictures, a second click hides the map.
function mapped(study, map, box, row) {
  const range = `${map[0].toFixed(2)} to ${map[1].toFixed(2)}`;
  row.append(el("span", "minis", ...study.v.map((_, i) => picture(study, i, map))));
  row.title = `Heat map, transparent to yellow: ${range}. Click to show the map on the large pictures`;
  row.type = "button";
  row.ariaPressed = false;
  row.addEventListener("click", () => {
    const on = !row.classList.contains("on");
    row.parentNode.querySelectorAll(".on").forEach(other => other.classList.remove("on"));
    row.classList.toggle("on", on);
    row.parentNode.querySelectorAll("button").forEach(button => button.ariaPressed = button.classList.contains("on"));
    box.show(on ? map : null);
  });
  return row;
}

function clues(study, box) {
  const list = el("div", "clues");
  const press = study.m && study.v.length ? "; press one to see where the picture is most similar to it" : "";
  if (study.c.length) list.append(el("h4", "", `clues, with their weights among the 14 diseases${press}`));
  study.c.forEach(([prompt, weight], i) => {
    const map = study.m && study.v.length ? study.m.clues[i] : null;
    const row = el(map ? "button" : "div", "clue");
    const fill = el("span", "fill");
    fill.style.width = `${100 * weight}%`;
    row.append(el("span", "prompt", prompt.replace(/^Clue: /, "")), el("span", "percent", `${(100 * weight).toFixed(1)} %`),
               el("span", "rail", fill));
    list.append(map ? mapped(study, map, box, row) : row);
  });
  if (study.m && study.m.queries && study.v.length) {
    const row = el("button", "clue", el("span", "prompt", "where the learnable queries look"));
    list.append(mapped(study, study.m.queries, box, row));
  }
  return list;
}

function card(study) {
  const article = el("article", "card");
  const score = DATA.labelled ? `labels F1 ${study.s.toFixed(2)} · ` : "";
  article.append(el("h3", "", el("span", "id", study.id), el("span", "score", `${score}ROUGE-L ${study.l.toFixed(2)}`)));
  const box = pictures(study);
  if (study.v.length) article.append(box);
  const texts = el("div", "texts", report("reference", study.r), report("generated", study.h));
  if (DATA.labelled) {
    const chips = study.f.map(([label, kind, note]) => el("li", kind, label, note ? el("small", "", ` ${note}`) : ""));
    texts.append(el("ul", "chips", ...(chips.length ? chips : [el("li", "quiet", "no finding in either report")])));
  }
  article.append(texts);
  if (study.c.length || (study.m && study.m.queries)) article.append(clues(study, box));
  return article;
}

function disputes(study) {
  return study.f.reduce((sum, [, kind]) => sum + (kind === "match" ? 0 : kind === "differs" ? 0.5 : 1), 0);
}

const ORDERS = {
  "as in the data": null,
  "best first": (a, b) => b.s - a.s || b.l - a.l,
  "worst first": (a, b) => a.s - b.s || a.l - b.l,
  "most differences first": (a, b) => disputes(b) - disputes(a) || a.l - b.l,
};

// Whether a study holds all words, and a finding (null: any) of a kind (null: any). With a finding chosen, "match"
// includes "differs", as in the table's counts.
function wanted(study, words, finding, kind) {
  return words.every(word => study.words.includes(word)) && ((finding === null && kind === null)
    || study.f.some(([label, how]) => (finding === null || label === finding)
      && (kind === null || how === kind || (finding !== null && kind === "match" && how === "differs"))));
}

function textOf(study) {
  return [study.id, ...study.h.map(p => p[0]), ...study.r.map(p => p[0]), ...study.c.map(c => c[0])].join(" ").toLowerCase();
}

function labelled(text, control) {
  return el("label", "", el("span", "", text), control);
}

function options(select, names) {
  for (const name of names) select.append(new Option(name));
  return select;
}

function gallery() {
  const tools = document.getElementById("tools"), cards = document.getElementById("cards");
  const more = document.getElementById("more"), count = document.getElementById("count");
  for (const study of DATA.studies) study.words = textOf(study);

  const order = options(el("select"), Object.keys(ORDERS).filter(name => DATA.labelled || !name.includes("differences")));
  const search = el("input");
  search.type = "search";
  search.placeholder = "id or words of a report";
  const finding = options(el("select"), ["any finding", ...DATA.labels]);
  const kind = options(el("select"), ["any kind", "match", "differs", "invented", "missed"]);
  tools.append(labelled("Sort", order), labelled("Search", search));
  if (DATA.labelled) tools.append(labelled("Finding", finding), labelled("Kind", kind));

  let found = [], shown = 0;
  function extend(to) {
    cards.append(...found.slice(shown, to).map(card));
    shown = Math.min(to, found.length);
    more.hidden = shown >= found.length;
    count.textContent = `${found.length} of ${DATA.studies.length} studies` + (more.hidden ? "" : `, ${shown} shown`);
  }
  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = select => select.selectedIndex > 0 ? select.value : null;
    found = DATA.studies.filter(study => wanted(study, words, chosen(finding), chosen(kind)));
    if (ORDERS[order.value]) found.sort(ORDERS[order.value]);
    cards.replaceChildren();
    shown = 0;
    extend(PAGE);
  }
  for (const control of [order, search, finding, kind]) control.addEventListener("input", refresh);
  tools.addEventListener("submit", event => event.preventDefault());
  more.addEventListener("click", () => extend(shown + PAGE));
  document.querySelectorAll("button.count").forEach(button => button.addEventListener("click", () => {
    finding.value = button.dataset.finding;
    kind.value = button.dataset.kind;
    search.value = "";                             // the count ignores the search
    refresh();
    document.getElementById("gallery").scrollIntoView();
  }));
  refresh();
}

if (DATA) gallery();
