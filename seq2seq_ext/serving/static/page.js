// The page's form and answers. Whatever comes of the service or its models is put in as text,
// never as HTML.

import { picture } from "./attention.js";

const byId = (id) => document.getElementById(id);
const models = new Map();
let running = null; // the request on its way

function make(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className !== undefined) made.className = className;
  return made;
}

function showError(text) {
  byId("error").textContent = text;
  byId("error").hidden = text === "";
}

/** The service's answer, or an Error that says in words why there is none. */
async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached.", { cause: error });
  }
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  const detail = content?.detail ?? `The service answered with status ${response.status}.`;
  const after = response.headers.get("Retry-After");
  throw new Error(after === null ? detail : `${detail} (again in ${after} s)`);
}

async function loadModels() {
  const answer = await ask("models");
  for (const model of answer.models) {
    models.set(model.name, model);
    byId("model").append(new Option(model.name, model.name));
  }
  byId("beams").max = byId("best").max = answer.limits.max_beams;
  byId("beams").value = Math.min(5, answer.limits.max_beams);
  byId("best").value = Math.min(3, answer.limits.max_beams);
  tellAbout();
}

function tellAbout() {
  const model = models.get(byId("model").value);
  const attention = model.attention === "none" ? "no attention" : `${model.attention.replaceAll("_", " ")} attention`;
  const parameters = model.parameters.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
  byId("about").textContent = `${model.cell.toUpperCase()}, ${attention}, ${parameters} parameters`;
}

function show(result, hypothesis, row) {
  for (const other of document.querySelectorAll("tr.chosen")) {
    other.classList.remove("chosen");
    other.querySelector("button").setAttribute("aria-pressed", "false");
  }
  row.classList.add("chosen");
  row.querySelector("button").setAttribute("aria-pressed", "true");
  const tell = (text) => { byId("cell").textContent = text; };
  byId("map").replaceChildren(
    picture(result.source_tokens, hypothesis.tokens, hypothesis.attention, tell),
  );
  byId("attention").hidden = false;
}

/** The n best of one text, as a table; with attention, each may be chosen to be looked at. */
function article(result) {
  const made = make("article");
  made.append(make("h3", result.source === "" ? "(empty)" : result.source));
  if (result.n_best.length === 0) {
    made.append(make("p", "No result.", "quiet"));
    return made;
  }
  const table = make("table");
  const head = table.createTHead().insertRow();
  for (const [title, className] of [["", "number"], ["Result"], ["Score", "number"]]) {
    const cell = make("th", title === "" ? "#" : title, className);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  result.n_best.forEach((hypothesis, rank) => {
    const row = body.insertRow();
    const text = make("td", undefined, "text");
    if (hypothesis.attention === undefined) {
      text.textContent = hypothesis.text;
    } else {
      const button = make("button", hypothesis.text === "" ? "(empty)" : hypothesis.text);
      button.type = "button";
      button.title = "Show its attention";
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => show(result, hypothesis, row));
      text.append(button);
    }
    row.append(make("td", rank + 1, "number"), text, make("td", hypothesis.score.toFixed(3), "number"));
  });
  made.append(table);
  return made;
}

function tellSpeed(answer) {
  const words = answer.results.reduce((sum, { source }) => sum + Math.max(1, source.trim().split(/\s+/u).length), 0);
  const rate = (words / answer.seconds).toLocaleString("en", { maximumSignificantDigits: 3 });
  const time = (1000 * answer.seconds).toLocaleString("en", { maximumSignificantDigits: 3 });
  byId("status").textContent = `${words} ${words === 1 ? "word" : "words"} in ${time} ms: ${rate} words/s`;
}

function clear() {
  showError("");
  byId("status").textContent = "";
  byId("results").replaceChildren();
  byId("map").replaceChildren();
  byId("cell").textContent = "";
  byId("attention").hidden = true;
}

async function convert() {
  running?.abort();
  const mine = running = new AbortController();
  byId("convert").setAttribute("aria-busy", "true");
  const text = byId("text").value.split("\n").filter((line) => line.trim() !== "");
  const model = byId("model").value;
  const beams = Number(byId("beams").value);
  const body = {
    text, model, num_beams: beams, n_best: Math.min(beams, Number(byId("best").value)),
    attention: models.get(model).attention !== "none",
  };
  try {
    const answer = await ask("translate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: mine.signal,
    });
    clear();
    byId("results").append(...answer.results.map(article));
    tellSpeed(answer);
    document.querySelector("td.text button")?.click();
  } catch (error) {
    if (error.name === "AbortError") return; // another request is on its way
    clear();
    showError(error.message);
  } finally {
    if (running === mine) byId("convert").removeAttribute("aria-busy");
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (models.size > 0) convert();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("form").requestSubmit();
});
byId("model").addEventListener("change", tellAbout);
loadModels().then(() => byId("text").focus(), (error) => showError(error.message));
