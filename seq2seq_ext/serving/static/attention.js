// Attention as a picture: a column for every token read, a row for every token written.

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 28; // of a square, in CSS pixels
const LETTER = 9; // about the width of one
const LONGEST = 12; // letters of a label
const FAINTEST = 0.01; // squares with less are not drawn: no eye would see them

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** A token as a label: what is invisible gets a sign, what is long is cut. */
export function labelOf(token) {
  const seen = token.replace(/ /gu, "␣").replace(/[\p{C}\p{Z}]/gu, (character) => {
    return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  });
  const letters = Array.from(seen);
  return letters.length <= LONGEST ? seen : letters.slice(0, LONGEST - 1).join("") + "…";
}

/** In words, for those who do not see it: what each written token looks at most. */
export function described(source, target, weights) {
  if (source.length === 0) return "Attention: nothing was read.";
  const rows = target.slice(0, 100).map((token, row) => {
    const most = weights[row].indexOf(Math.max(...weights[row]));
    const share = Math.round(100 * weights[row][most]);
    return `${labelOf(token)} from ${labelOf(source[most])} (${share} %)`;
  });
  return "Attention. " + rows.join(", ") + (target.length > 100 ? ", and so on." : ".");
}

/**
 * The picture as an SVG element.
 *
 * @param {string[]} source tokens read.
 * @param {string[]} target tokens written.
 * @param {number[][]} weights a row for each of `target`, a number for each of `source`.
 * @param {(text: string) => void} onPoint is told what the square under the pointer says.
 */
export function picture(source, target, weights, onPoint) {
  const above = source.map(labelOf);
  const beside = target.map(labelOf);
  const width = (labels) => Math.max(0, ...labels.map((label) => Array.from(label).length));
  const upright = width(above) <= 2; // long labels stand on end
  const top = upright ? 28 : 14 + LETTER * width(above);
  const left = 14 + LETTER * Math.max(1, width(beside));
  const across = SIDE * source.length;
  const down = SIDE * target.length;
  const [w, h] = [left + across + 1, top + down + 1];
  const svg = element("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "img" });
  svg.setAttribute("aria-label", described(source, target, weights));
  svg.append(element("rect", { class: "ground", x: left, y: top, width: across, height: down }));
  weights.forEach((row, i) => row.forEach((weight, j) => {
    if (weight < FAINTEST) return;
    svg.append(element("rect", {
      class: "cell", x: left + SIDE * j, y: top + SIDE * i, width: SIDE, height: SIDE,
      "fill-opacity": Math.min(1, weight),
    }));
  }));
  const lines = [];
  for (let j = 0; j <= source.length; j++) lines.push(`M${left + SIDE * j + 0.5} ${top}v${down}`);
  for (let i = 0; i <= target.length; i++) lines.push(`M${left} ${top + SIDE * i + 0.5}h${across}`);
  svg.append(element("path", { class: "grid", d: lines.join("") }));
  above.forEach((label, j) => {
    const [x, y] = [left + SIDE * (j + 0.5), top - 8];
    svg.append(element("text", upright
      ? { x, y, "text-anchor": "middle" }
      : { x: x + 5, y, transform: `rotate(-90 ${x + 5} ${y})` }, label));
  });
  beside.forEach((label, i) => {
    const y = top + SIDE * (i + 0.5) + 5;
    svg.append(element("text", { x: left - 8, y, "text-anchor": "end" }, label));
  });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const j = Math.floor((event.clientX - box.left - left) / SIDE);
    const i = Math.floor((event.clientY - box.top - top) / SIDE);
    const weight = weights[i]?.[j];
    onPoint(weight === undefined ? "" : `${beside[i]} from ${above[j]}: ${(100 * weight).toFixed(1)} %`);
  });
  svg.addEventListener("pointerleave", () => onPoint(""));
  return svg;
}
