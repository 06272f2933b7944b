// The page: what was drawn, what is asked, and what is shown.

import {SIZE, toImage} from "./image.js";
import {surface} from "./pad.js";
import {SAMPLES, again} from "./samples.js";

const answers = await import(document.documentElement.dataset.answers);

const LEAST = 2, MOST = 5;
const STORED = "metajax playground"; // in sessionStorage: a tab's own, which a reload keeps
const find = (id) => document.getElementById(id);
const nameOf = (index) => String.fromCharCode(65 + index);

/** @type {{classes: number[][][][], query: number[][][], seed: number}} */
let state = stored() ?? start("shapes");
let models = null;

function start(kind) {
  if (kind === "empty") return {classes: [[], [], []], query: [], seed: 1};
  const classes = structuredClone(SAMPLES[kind]);
  return {classes, query: again(classes[1]), seed: 1};
}

function stored() {
  try {
    const found = JSON.parse(sessionStorage.getItem(STORED));
    const point = (p) => p.length === 2 && p.every(Number.isFinite);
    const drawing = (d) => d.every((stroke) => stroke.length > 0 && stroke.every(point));
    const {classes, query, seed} = found;
    const counts = classes.length >= LEAST && classes.length <= MOST && Number.isFinite(seed);
    return counts && [...classes, query].every(drawing) ? found : null;
  } catch {
    return null; // nothing there, or damaged
  }
}

function changed() {
  try {
    sessionStorage.setItem(STORED, JSON.stringify(state));
  } catch {
    // Full, or not allowed: a reload then starts anew.
  }
  show();
  ask();
}

// Drawing

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(key, text, label, act, disabled = false) {
  const made = element("button", {type: "button", textContent: text, disabled, onclick: act});
  made.dataset.key = key; // by which the focus is found again
  made.setAttribute("aria-label", label);
  return made;
}

function padOf(key, name, drawing, sample, remove) {
  const empty = !drawing.length;
  const pad = element("div", {className: "pad"});
  pad.dataset.pad = key;
  pad.setAttribute("role", "group");
  pad.setAttribute("aria-label", name);
  const change = (act) => () => {
    act();
    changed();
  };
  const tools = [
    button(`${key}-undo`, "Undo", `Undo the last stroke of ${name}`, change(() => drawing.pop()), empty),
    button(`${key}-clear`, "Clear", `Clear ${name}`, change(() => drawing.splice(0)), empty),
    button(`${key}-sample`, "Sample", `A sample drawing for ${name}`,
      change(() => drawing.splice(0, Infinity, ...structuredClone(sample())))),
  ];
  if (remove) {
    tools.push(button(`${key}-remove`, "Remove", `Remove ${name}`, change(remove),
      state.classes.length <= LEAST));
  }
  pad.append(
    element("span", {className: "name", textContent: name}),
    surface(drawing, `Drawing of ${name}`, changed),
    element("div", {className: "tools"}, ...tools),
  );
  return pad;
}

/** A sample that no class has. */
function newSample() {
  const all = Object.values(SAMPLES).flat();
  const taken = new Set(state.classes.map((each) => JSON.stringify(each)));
  const from = state.seed++;
  const turned = [...all.slice(from % all.length), ...all.slice(0, from % all.length)];
  return turned.find((each) => !taken.has(JSON.stringify(each)));
}

/** Another drawing of one of the classes, of each in turn. */
function anotherOfAClass() {
  const drawn = state.classes.filter((each) => each.length);
  state.seed += 1;
  const known = drawn.length ? drawn[state.seed % drawn.length] : Object.values(SAMPLES).flat()[0];
  return again(known, state.seed);
}

function show() {
  const focused = document.activeElement?.dataset?.key;
  const pads = state.classes.map((drawing, index) =>
    padOf(`class-${index}`, `Class ${nameOf(index)}`, drawing, newSample,
      () => state.classes.splice(index, 1)));
  if (state.classes.length < MOST) {
    const add = element("button", {type: "button", className: "add", textContent: "+ Add a class"});
    add.dataset.key = "add";
    add.onclick = () => {
      state.classes.push([]);
      changed();
    };
    pads.push(add);
  }
  find("examples").replaceChildren(...pads);
  find("query").replaceChildren(padOf("query", "The new drawing", state.query, anotherOfAClass));
  if (focused) {
    const same = document.querySelector(`[data-key="${focused}"]`);
    const left = (same && !same.disabled) ? same
      : document.querySelector(`[data-key="${focused.replace(/-\w+$/, "-sample")}"]`);
    (left ?? document.querySelector('[data-key="class-0-sample"]'))?.focus();
  }
}

// Asking

let asking = false, askAgain = false;

async function ask() {
  if (models === null) return;
  if (asking) {
    askAgain = true;
    return;
  }
  const missing = state.classes.flatMap((drawing, index) => (drawing.length ? [] : [nameOf(index)]));
  if (missing.length || !state.query.length) {
    const removable = state.classes.length > LEAST, list = new Intl.ListFormat("en");
    find("models").replaceChildren();
    find("time").textContent = "";
    say(missing.length > 1 ? `Draw examples of the classes ${list.format(missing)}.`
      : missing.length ? `Draw an example of class ${missing[0]}${removable ? ", or remove it" : ""}.`
        : "Draw something to recognise.");
    return;
  }
  asking = true;
  const started = performance.now();
  try {
    const examples = state.classes.map((drawing) => toImage(drawing, models.image));
    const found = await answers.answer(examples, toImage(state.query, models.image));
    showAnswer(found, examples);
    find("time").textContent = `Answered in ${Math.ceil(performance.now() - started)} ms.`;
  } catch (error) {
    complain(error);
  }
  asking = false;
  if (askAgain) {
    askAgain = false;
    ask();
  }
}

/** What to do next; or, ``heard`` by a screen reader alone, what the cards show. */
function say(text, heard = false) {
  find("problem").hidden = true;
  find("status").classList.toggle("heard", heard);
  find("status").hidden = false;
  if (find("status").textContent !== text) find("status").textContent = text;
}

function complain(error) {
  if (!(error instanceof answers.Problem)) console.error(error);
  find("status").hidden = true;
  find("models").replaceChildren();
  find("time").textContent = "";
  find("problem").textContent = error.message;
  find("problem").hidden = false;
}

// Answers

const percent = (p) => `${Math.round(100 * p)} %`;
const best = (chances) => chances.indexOf(Math.max(...chances));

function picture(image) {
  const canvas = element("canvas", {width: SIZE, height: SIZE});
  canvas.setAttribute("aria-hidden", "true");
  const pixels = new ImageData(SIZE, SIZE);
  const ink = matchMedia("(prefers-color-scheme: dark)").matches ? 255 : 0;
  image.forEach((value, i) => pixels.data.set([ink, ink, ink, value], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function showAnswer(found, examples) {
  const verdicts = [];
  const cards = models.models.map(({name, title}) => {
    const steps = found[name], last = steps.at(-1), winner = best(last);
    verdicts.push(`${title} says ${nameOf(winner)}, ${percent(last[winner])}`);
    const heads = steps.length === 1 ? ["compared"]
      : ["before", ...steps.slice(1).map((_, i) => `step ${i + 1}`)];
    const head = element("tr", {}, element("td"),
      ...heads.map((text) => element("th", {scope: "col", textContent: text})));
    const rows = examples.map((image, index) => {
      const label = element("th", {scope: "row"}, picture(image), nameOf(index));
      const cells = steps.map((chances) => {
        const cell = element("td", {textContent: percent(chances[index])});
        cell.style.setProperty("--chance", chances[index].toFixed(3));
        cell.classList.toggle("winner", best(chances) === index);
        return cell;
      });
      return element("tr", {}, label, ...cells);
    });
    const card = element("article", {className: "card"},
      element("h3", {textContent: title}),
      element("p", {className: "verdict"}, `Class ${nameOf(winner)}`,
        element("span", {textContent: percent(last[winner])})),
      element("table", {}, element("caption", {textContent: `Probability of each class, ${title}`}),
        element("thead", {}, head), element("tbody", {}, ...rows)));
    card.dataset.model = name;
    card.dataset.answer = nameOf(winner);
    return card;
  });
  find("models").replaceChildren(...cards);
  say(`${verdicts.join(". ")}.`, true);
}

// Start

for (const chosen of document.querySelectorAll("[data-start]")) {
  chosen.onclick = () => {
    state = start(chosen.dataset.start);
    changed();
  };
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => ask());
show();
try {
  models = await answers.load();
  find("facts").textContent = models.facts;
  ask();
} catch (error) {
  complain(error);
}
