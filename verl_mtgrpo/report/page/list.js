'use strict';
// The list at the side, a page at a time.

const PAGE = 40;
let listed = [], page = 0;

/** Choose and sort again, from the first page on. */
function refreshList() {
  listed = selection();
  page = 0;
  drawList();
}

function drawList() {
  const rollouts = listed.reduce((sum, entry) => sum + entry.matches, 0);
  const all = GROUPS.reduce((sum, group) => sum + group.rollouts.length, 0);
  const what = wanted().list === 'rollouts' ? '' : `${count(listed.length, 'group', 'groups')}, `;
  byId('count').textContent = `${what}${count(rollouts, 'rollout', 'rollouts')} of ${all.toLocaleString('en')}`;
  const shown = listed.slice(page * PAGE, (page + 1) * PAGE);
  byId('list').className = 'entries';
  byId('list').replaceChildren(...shown.map((entry) =>
    (entry.rollout ? rolloutEntry(entry.group, entry.rollout) : groupEntry(entry.group, entry.matches))));
  if (!shown.length) byId('list').append(el('li', { class: 'quiet' }, 'Nothing fits. Reset the filters to see everything.'));
  drawPager();
  markCurrent();
}

function drawPager() {
  const pages = Math.ceil(listed.length / PAGE);
  const turn = (by) => () => {
    page += by;
    drawList();
    byId('list').scrollIntoView({ block: 'nearest' });
  };
  byId('pager').replaceChildren(...(pages < 2 ? [] : [
    el('button', { type: 'button', disabled: page === 0, onclick: turn(-1) }, 'Previous'),
    el('span', {}, ` ${page + 1} of ${pages} `),
    el('button', { type: 'button', disabled: page === pages - 1, onclick: turn(1) }, 'Next'),
  ]));
}

function groupEntry(group, matches) {
  const right = group.rollouts.filter((one) => one.flags & RIGHT).length;
  const known = group.rollouts.some((one) => one.flags & (RIGHT | WRONG));
  const facts = [
    place(group), count(group.rollouts.length, 'rollout', 'rollouts'),
    matches != null && matches < group.rollouts.length && `${matches} fit`,
    known && `${right} right`, `up to ±${group.spread.toFixed(2)}`,
  ];
  return el('li', {}, el('a', { href: `#rollouts/${group.number}`, class: 'entry' },
    el('span', { class: 'question', dir: 'auto' }, visible(group.question) || '(no question)'),
    el('span', { class: 'quiet' }, facts.filter(Boolean).join(' · ')),
    strip(group.rollouts)));
}

function rolloutEntry(group, rollout) {
  return el('li', {}, el('a', { href: `#rollouts/${group.number}/${rollout.at}`, class: 'entry' },
    el('span', { class: 'question', dir: 'auto' }, visible(group.question) || '(no question)'),
    el('span', { class: 'quiet' },
      [`rollout ${rollout.name}`, place(group), `paid ${plain(rollout.total)}`, verdict(rollout)].filter(Boolean).join(' · ')),
    el('span', { class: 'chips' }, ...rollout.advantages.map((value) => shade(el('span', { class: 'chip' }, signed(value)), value, SCALE)))));
}

function place(group) {
  const both = Object.keys(INDEX.kinds).length > 1;
  const source = INDEX.sources.length > 1 ? visible(group.source) : '';
  return [both && (group.training ? 'training' : 'validation'), `step ${group.step}`, source].filter(Boolean).join(' · ');
}

function verdict(rollout) {
  const said = [];
  if (rollout.flags & RIGHT) said.push('✓ right');
  if (rollout.flags & WRONG) said.push('✗ wrong');
  if (rollout.flags & ERRORS) said.push('tool error');
  if (rollout.flags & DROPPED) said.push('dropped');
  return said.join(', ');
}

/** The group in small: a column for each rollout, a square for each turn. */
function strip(rollouts) {
  const columns = rollouts.slice(0, 32).map((rollout) => el('span', { class: 'column' },
    ...rollout.advantages.map((value) => shade(el('span', { class: 'square' }), value, SCALE))));
  return el('span', { class: 'strip', 'aria-hidden': 'true' }, ...columns);
}

/** Say which entry is the one that is open. */
function markCurrent() {
  const [, group] = whereTo();
  for (const link of byId('list').querySelectorAll('a')) {
    const its = link.getAttribute('href').split('/');
    const same = Number(its[1]) === group && (its.length < 3 || link.getAttribute('href') === location.hash);
    if (same) link.setAttribute('aria-current', 'true');
    else link.removeAttribute('aria-current');
  }
}
