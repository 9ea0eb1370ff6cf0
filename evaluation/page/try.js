"use strict";
// The page of --serve: sends pictures or an example's id, shows the answer by means of page.js, and compares what-ifs.
// All texts of the data are inserted as text nodes, never as markup.

const at = id => document.getElementById(id);
let facts = null;                                 // the server's /facts: checkpoint, examples, bank of clues, limits
let asked = null;                                 // {files} or {example}: the study of the report on the page
let base = null;                                  // the answer on the page; what-ifs are compared with it

// --- asking ----------------------------------------------------------------------------------------------------------

// One request to the server: a line of JSON, then the pictures' bytes.
async function ask(what, change) {
  const files = what.files || [];
  const size = files.reduce((sum, file) => sum + file.size, 0);
  if (files.length > facts.pictures) throw new Error(`You chose ${files.length} files; a study has at most ${facts.pictures} pictures here.`);
  if (size > facts.body) throw new Error(`The pictures together are larger than ${facts.body >> 20} MB; choose smaller files.`);
  const study = what.files ? { pictures: files.map(file => [file.name, file.size]) } : { example: what.example };
  const body = new Blob([JSON.stringify({ ...study, ...change }), "\n", ...files]);
  const response = await fetch("/report", { method: "POST", body });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Runs one piece of work at a time, and shows its status. No control is disabled, since it would lose the focus.
async function busy(status, work) {
  if (document.body.ariaBusy === "true") return;
  document.body.ariaBusy = "true";
  at("error").hidden = true;
  at("status").textContent = status;
  try {
    at("status").textContent = await work();
  } catch (error) {
    at("status").textContent = "";
    at("error").textContent = error instanceof TypeError ? "No answer from the program. Is it still running in its terminal?" : error.message;
    at("error").hidden = false;
    at("error").scrollIntoView({ block: "nearest" });
  }
  document.body.ariaBusy = "false";
}

function reportOn(what) {
  return busy("Writing the report …", async () => {
    base = await ask(what);
    asked = what;
    at("sides").replaceChildren();
    at("changed").textContent = "";
    at("result").hidden = at("what-if").hidden = false;
    show();
    at("result").scrollIntoView({ block: "nearest" });
    return `Written in ${base.seconds.toFixed(1)} s.`;
  });
}

// --- a report, token by token ----------------------------------------------------------------------------------------

const percent = p => `${(100 * p).toFixed(1)} %`;
const bare = text => text.replaceAll("▁", " ").trim() || "␣";

// The sentences as marked text, token by token. `changed`: a set of tokens that are wrapped in `wrap`, "ins" or "del".
function tokens(answer, detail, changed = new Set(), wrap = "") {
  const box = el("p", "report tokens"), spans = [];
  answer.sentences.forEach((sentence, i) => {
    const [, kind, labels] = answer.study.h[i];
    const part = kind ? el("mark", kind) : el("span");
    if (kind) part.title = `${kind}: ${labels.join(", ")}`;
    let run = null;                                // of changed tokens
    for (const token of sentence) {
      const begun = run;
      run = changed.has(token) ? run || el(wrap) : null;
      if (/^\s/.test(token[0]) && part.hasChildNodes()) (run === begun && run || part).append(" ");
      if (run && run !== begun) part.append(run);
      const span = el("span", `token ${answer.study.f.length ? "" : doubt(token[1])}`, token[0].trimStart());
      span.token = token;
      spans.push(span);
      (run || part).append(span);
    }
    box.append(part, " ");
  });
  if (!spans.length) box.append(el("em", "", "(empty)"));
  told(box, spans, detail);
  return box;
}

// Uncertain tokens are underlined, unless findings are marked.
const doubt = p => p < .5 ? "doubt-2" : p < .9 ? "doubt-1" : "";

// `detail` shows the probability of the token under the pointer or with the focus (reached by Tab, then arrow keys).
function told(box, spans, detail) {
  const tell = event => {
    if (!event.target.token) return;
    const [text, p, best] = event.target.token;
    const likeliest = best.map(([word, q]) => `${bare(word)} ${percent(q)}`).join(" · ");
    detail.replaceChildren(el("b", "", `“${bare(text)}”`), ` ${percent(p)}; likeliest here: ${likeliest}`);
  };
  box.addEventListener("pointerover", tell);
  box.addEventListener("focusin", tell);
  spans.forEach((span, i) => span.tabIndex = i ? -1 : 0);
  box.addEventListener("keydown", event => {
    const from = spans.indexOf(event.target);
    const to = spans[{ ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: spans.length - 1 }[event.key]];
    if (!to) return;
    event.preventDefault();
    spans[from].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
}

// The tokens in which two reports differ, as a set per report. Sentences that both reports have are equal; of all other
// sentences, the tokens outside the longest common subsequence are changed.
function difference(a, b) {
  const text = sentence => sentence.map(([piece]) => piece).join("").trim();
  const rest = (of, other) => {
    const there = other.map(text);
    return of.filter(sentence => {
      const i = there.indexOf(text(sentence));
      return i < 0 || !there.splice(i, 1);
    }).flat();
  };
  const x = rest(a, b), y = rest(b, a), same = (i, j) => x[i][0].trim() === y[j][0].trim();
  const longest = Array.from({ length: x.length + 1 }, () => new Array(y.length + 1).fill(0));
  for (let i = x.length - 1; i >= 0; i--)
    for (let j = y.length - 1; j >= 0; j--)
      longest[i][j] = same(i, j) ? 1 + longest[i + 1][j + 1] : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const gone = new Set(x), added = new Set(y);
  for (let i = 0, j = 0; i < x.length && j < y.length;) {
    if (same(i, j)) { gone.delete(x[i++]); added.delete(y[j++]); }
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++; else j++;
  }
  return [gone, added];
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function plain(prompt) {
  return prompt.replace(/^Clue: /, "");
}

function chips(study) {
  return el("ul", "chips", ...study.f.map(([label, kind, note]) =>
    el("li", kind, el("span", "unseen", `${kind}: `), label, note ? el("small", "", ` ${note}`) : "")));
}

// The line below a report: first the least certain words, later the probability of the token that is pointed at.
function detailOf(answer) {
  const doubtful = answer.sentences.flat().filter(([, p]) => p < .9).sort((a, b) => a[1] - b[1]).slice(0, 3);
  const least = doubtful.map(([text, p]) => `“${bare(text)}” ${percent(p)}`).join(", ");
  const detail = el("p", "detail", least ? `Least sure of: ${least}. ` : "Sure of every word. ",
                    "Point at a word, or use the arrow keys, for its probability.",
                    answer.study.f.length ? "" : " Underlined: below 90 %; solid line: below 50 %.");
  detail.setAttribute("role", "status");
  return detail;
}

// page.js's pictures, each with its number, and below them the scale of the heat map.
function framed(study) {
  const box = pictures(study), draw = box.show, views = study.v.length;
  const again = () => reportOn({ files: [...asked.files].reverse() });
  box.show = map => {
    draw(map);
    if (views > 1) [...box.children].forEach((view, i) => view.append(el("small", "", `view ${i + 1}`)));
    if (map) box.append(el("p", "scale", map[0].toFixed(2), el("i"), map[1].toFixed(2)));
    if (asked.files && views > 1) box.append(button("Swap the order of the views", again));
  };
  box.show(null);
  return box;
}

function button(name, press) {
  const node = el("button", "press", name);
  node.type = "button";
  node.addEventListener("click", press);
  return node;
}

function show() {
  const { study } = base;
  study.id = asked.files ? asked.files.map(file => file.name).join(", ") : asked.example;
  const box = framed(study), list = clues(study, box), detail = detailOf(base), texts = el("div", "texts");
  if (study.r.length) texts.append(report("reference", study.r));
  texts.append(el("h4", "", study.r.length ? "generated" : "report"), tokens(base, detail), detail);
  for (const note of base.notes) texts.append(el("p", "note", `Note: ${note}.`));
  if (base.cut) texts.append(el("p", "note", "The report was cut at the maximum length."));
  if (study.f.length) {
    const key = "✓ in both reports · ≠ in both, but with another side or severity · + invented · − missed";
    texts.append(chips(study), el("p", "note", key));
  }
  at("card").replaceChildren(el("h3", "", el("span", "id", study.id)), box, texts, list);
  list.querySelector("button.clue")?.click();     // show the heaviest clue's map first
  offer(study);
}

// The what-ifs that this study and this model have.
function offer(study) {
  const changes = [];
  const change = (name, what) => changes.push(button(`Without ${name}`, () => whatIf(`without ${name}`, what)));
  if (facts.bank.length) change("clues", { without: "clues" });
  if (study.v.length > 1) study.v.forEach((_, i) => change(`view ${i + 1}`, { without: i }));
  at("changes").replaceChildren(...changes);
  at("rank").replaceChildren(...study.c.map(([prompt], i) => new Option(`clue ${i + 1}: ${plain(prompt)}`, i)));
  at("replace").hidden = !study.c.length;
  at("what-if").hidden = !changes.length;
}

function side(title, answer, changed, wrap) {
  const { study } = answer, detail = detailOf(answer);
  const box = el("div", "side", el("h3", "", title), tokens(answer, detail, changed, wrap), detail);
  if (study.f.length) box.append(chips(study));
  if (!facts.bank.length) return box;
  const given = study.c.map(([prompt, weight]) => el("li", "", `${plain(prompt)} (${percent(weight)})`));
  box.append(el("h4", "", "clues"), given.length ? el("ol", "given", ...given) : el("p", "note", "none"));
  return box;
}

function whatIf(name, change) {
  return busy("Writing the report again …", async () => {
    const other = await ask(asked, change);
    const [gone, added] = difference(base.sentences, other.sentences);
    const [before, after] = [base, other].map(answer => answer.sentences.flat().map(([text]) => text).join(""));
    const verdict = gone.size + added.size ? "the report changes; differences are marked."
      : before === after ? "the report stays the same, word for word." : "the same sentences, in another order.";
    at("changed").replaceChildren(el("b", "", `${name[0].toUpperCase()}${name.slice(1)}: ${verdict}`));
    at("sides").replaceChildren(side("unchanged", base, gone, "del"), side(name, other, added, "ins"));
    at("what-if").scrollIntoView({ block: "nearest" });
    return "";
  });
}

// --- the start -------------------------------------------------------------------------------------------------------

function listen() {
  const drop = at("drop"), files = at("files");
  const take = list => { if (list.length) reportOn({ files: [...list] }); };
  files.addEventListener("change", () => { take([...files.files]); files.value = ""; });
  for (const name of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(name, event => {     // on the whole page, so that the browser never opens a dropped file
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
  at("choose").addEventListener("submit", event => {
    event.preventDefault();
    reportOn({ example: at("example").value });
  });
  at("random").addEventListener("click", () => {
    at("example").selectedIndex = Math.floor(Math.random() * at("example").length);
    reportOn({ example: at("example").value });
  });
  at("replace").addEventListener("submit", event => {
    event.preventDefault();
    const rank = +at("rank").value, prompt = at("prompt").selectedOptions[0].textContent;
    whatIf(`with “${prompt}” as clue ${rank + 1}`, { clue: rank, prompt: +at("prompt").value });
  });
}

async function start() {
  facts = await (await fetch("/facts")).json();
  at("which").textContent = `${facts.checkpoint}, ${facts.variant}`;
  at("notice").textContent = facts.notice[0].toUpperCase() + facts.notice.slice(1) + ".";
  at("example").append(...facts.examples.map(id => new Option(id)));
  at("choose").hidden = !facts.examples.length;
  for (const [disease, prompts] of facts.bank) {
    const group = el("optgroup");
    group.label = disease;
    group.append(...prompts.map(([number, text]) => new Option(plain(text), number)));
    at("prompt").append(group);
  }
  listen();
}

start();
