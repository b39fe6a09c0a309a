'use strict';
// Elements and numbers. Whatever comes from a rollout gets into the page as text only: here, by text nodes.

const SVG = 'http://www.w3.org/2000/svg';

/** An element; strings among the children become text, null and false nothing. */
function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for the elements of a drawing. */
function svg(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  for (const child of children.flat()) {
    if (child == null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** The head of a column; what it means, if that is not plain, is its tooltip. */
function columnHead([name, about]) {
  return el('th', { scope: 'col', title: about || null }, name);
}

function byId(id) {
  return document.getElementById(id);
}

/** Text with the characters made visible that a reader would not see, or that would turn the text around. */
function visible(text) {
  return String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (found) => String.fromCharCode(0x2400 + found.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (found) =>
      `⟨U+${found.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}⟩`);
}

/** A block of text as it was written. */
function verbatim(text, name) {
  return el('pre', { class: name || 'text', dir: 'auto', tabindex: 0 }, visible(text));
}

/** +1.41, −0.83: a sign always, so that colour is never the only thing that tells. */
function signed(value, digits = 2) {
  if (value == null) return '–';
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return (0).toFixed(digits);
  return (value < 0 ? '−' : '+') + text;
}

function plain(value, digits = 2) {
  if (value == null) return '–';
  return (value < 0 && Number(value.toFixed(digits)) !== 0 ? '−' : '') + Math.abs(value).toFixed(digits);
}

/** A number as short as it can be read: 0.0012, 12.3, 12,345. */
function compact(value) {
  if (value == null) return '–';
  const far = Math.abs(value);
  if (far >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(far >= 100 ? 4 : 3))).replace('-', '−');
}

function count(number, one, many) {
  return `${number.toLocaleString('en')} ${number === 1 ? one : many}`;
}

/** Colour an element by an advantage: blue above 0, orange below, stronger the farther from it. */
function shade(element, value, scale) {
  const share = scale > 0 ? Math.min(Math.abs(value) / scale, 1) : 0;
  element.classList.add('shade', Math.abs(value) < 0.005 ? 'nil' : value > 0 ? 'pos' : 'neg');
  element.style.setProperty('--strength', `${Math.round(8 + 62 * Math.sqrt(share))}%`);
  return element;
}

/** What the colours mean. */
function legend(scale) {
  const steps = [-1, -0.5, 0, 0.5, 1].map((share) =>
    shade(el('span', { class: 'step' }, signed(share * scale, 1)), share * scale, scale));
  return el('p', { class: 'legend' }, el('span', {}, 'advantage: '), ...steps,
    el('span', {}, ' orange: less of this, blue: more of this'));
}
