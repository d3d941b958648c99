"use strict";
// Helpers that all scripts of the page share. All text of a run enters the page through textContent.
const DATA = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function showTip(x, y, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, top) + "px";
}
const hideTip = () => { tip.hidden = true; };

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(k => k * power).find(s => s >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), out = [];
  for (let k = first; k * step <= high + step * 1e-6; k++) out.push(+(k * step).toPrecision(10));
  return out;
}
const format = v => Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(3));

// Draw again whenever the width changes, so that text keeps its size on a phone.
function onWidth(node, draw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(node.clientWidth);
    if (width && width !== last) { last = width; requestAnimationFrame(() => draw(width)); }
  }).observe(node);
}

const plural = (n, word) => `${format(n)} ${word}${n === 1 ? "" : "s"}`;
const seconds = s => s >= 100 ? `${Math.round(s)} s` : s >= 1 ? `${s.toFixed(1)} s` : `${Math.round(1000 * s)} ms`;
