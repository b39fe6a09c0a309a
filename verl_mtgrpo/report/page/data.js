'use strict';
// What the report knows: the index, at once, and the text of a group when it is opened.

const INDEX = JSON.parse(byId('index').textContent);
// As in report/html.py.
const RIGHT = 1, WRONG = 2, USED = 4, HIT = 8, ERRORS = 16, DROPPED = 32, NO_HIT_DEFINED = 64;

const GROUPS = INDEX.groups.map(([step, training, source, question, estimator, rows], number) => {
  const rollouts = rows.map(([name, rewards, advantages, flags], at) => ({
    at, name, rewards, advantages, flags,
    total: rewards.reduce((sum, reward) => sum + reward, 0),
    spread: advantages.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
  }));
  return {
    number, step, training: training === 1, source: INDEX.sources[source], question, estimator, rollouts,
    text: question.toLowerCase(),
    spread: rollouts.reduce((most, one) => Math.max(most, one.spread), 0),
    turns: rollouts.reduce((most, one) => Math.max(most, one.rewards.length), 0),
  };
});

/** The advantage at which colours are strongest: nearly the largest, so that one outlier does not pale the rest. */
const SCALE = (() => {
  const all = GROUPS.flatMap((group) => group.rollouts.map((one) => one.spread)).sort((a, b) => a - b);
  return all.length ? all[Math.floor(0.98 * (all.length - 1))] || 1 : 1;
})();

const opened = new Map();

/** The text of a group. */
async function details(number) {
  if (!opened.has(number)) {
    if (opened.size > 50) opened.delete(opened.keys().next().value);
    opened.set(number, packedText(number).then(inflate));
  }
  return opened.get(number);
}

/** The browser may still be reading the end of the file. */
async function packedText(number) {
  if (!complete(number) && document.readyState === 'loading') {
    await new Promise((done) => document.addEventListener('DOMContentLoaded', done, { once: true }));
  }
  const element = byId(`g${number}`);
  if (!element) throw new Error('this file is cut off: the text of this group is missing');
  return element.textContent;
}

/** An element is whole when something comes after it. */
function complete(number) {
  return Boolean(byId(`g${number}`) && byId(`g${number}`).nextElementSibling);
}

async function inflate(text) {
  if (typeof DecompressionStream === 'undefined') {
    throw new Error('this browser cannot decompress (DecompressionStream); use one of 2023 or later');
  }
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return JSON.parse(await new Response(stream).text());
}
