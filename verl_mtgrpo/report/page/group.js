'use strict';
// A group: the rollouts of one prompt side by side, and below them the one that was chosen.

let shownGroup = null;

/** Show a group, and of it a rollout and a turn if they are named. */
async function showGroup(number, at, turn) {
  const group = GROUPS[number];
  const detail = byId('detail');
  if (!group) return detail.replaceChildren(el('p', { class: 'quiet' }, 'There is no such group in this report.'));
  const changed = shownGroup !== number;
  if (changed) detail.replaceChildren(el('p', { class: 'quiet' }, 'Opening …'));
  shownGroup = number;
  let text;
  try {
    text = await details(number);
  } catch (error) {
    return detail.replaceChildren(el('p', { class: 'warning' }, `This group cannot be shown: ${error.message}.`));
  }
  if (shownGroup !== number) return undefined; // another one was chosen meanwhile
  const inside = detail.contains(document.activeElement);
  const chosen = at == null || !group.rollouts[at] ? mostCredited(group) : at;
  detail.replaceChildren(groupHead(group, text, chosen), matrix(group, text, chosen, turn), legend(SCALE),
    (text.roles && rolesView(group, text, chosen)) || (text.pairs && pairView(group, text, chosen)) || '', rolloutView(group, text, chosen, turn));
  // What had the focus is gone: whoever uses the keyboard stays where they were.
  if (inside) (detail.querySelector('.cell[aria-current]') || detail).focus({ preventScroll: true });
  const target = turn == null ? null : byId(`turn${turn}`);
  if (target) target.scrollIntoView({ block: 'nearest' });
  else if (changed) scrollTo({ top: 0 });
  return undefined;
}

function mostCredited(group) {
  return group.rollouts.reduce((best, one) => (one.spread > group.rollouts[best].spread ? one.at : best), 0);
}

function groupHead(group, text, chosen) {
  const settings = Object.entries(text.settings).map(([key, value]) => `${key} = ${value}`).join(', ');
  const how = group.training
    ? `advantages by ${group.estimator}${settings ? ` (${settings})` : ''}, as trained on`
    : `advantages recomputed as ${group.estimator}: a validation is not trained on`;
  return el('div', {},
    el('h2', { class: 'question', dir: 'auto' }, visible(group.question) || '(no question)'),
    el('p', {}, el('strong', {}, 'Accepted: '), ...(text.answers.length
      ? text.answers.slice(0, 12).map((answer) => el('span', { class: 'answer', dir: 'auto' }, visible(answer)))
      : ['–']), text.answers.length > 12 ? ` and ${text.answers.length - 12} more` : ''),
    el('p', { class: 'quiet' }, [
      `step ${group.step}`, visible(group.source), text.questionId && `question ${visible(text.questionId)}`, visible(how),
    ].filter(Boolean).join(' · ')),
    // Where there is no working, this is all that can be said.
    el('details', { open: !text.rollouts.some((one) => one.turns.some((turn) => turn.terms.length)) },
      el('summary', {}, `How ${visible(group.estimator)} gives credit`), el('p', {}, INDEX.estimators[group.estimator].words)),
    el('details', {}, el('summary', {}, 'The whole prompt'),
      ...(text.roles ? text.roles[chosen] : text).prompt.map(([role, content]) => el('div', {}, el('p', { class: 'quiet' }, visible(role)), verbatim(content)))));
}

/** Rollouts × turns; each cell opens its turn. */
function matrix(group, text, chosen, turn) {
  const { tree, roles } = text;
  const turns = Array.from({ length: group.turns }, (_, k) => k);
  const head = el('tr', {}, el('th', { scope: 'col' }, 'rollout'), ...turns.map((k) => el('th', { scope: 'col' }, `turn ${k + 1}`)),
    el('th', { scope: 'col' }, 'paid'), el('th', { scope: 'col' }, 'answer'));
  const rows = tree ? treeRows(group, tree, chosen, turn) : group.rollouts.map((rollout) =>
    matrixRow(group, rollout, rollout.at === chosen,
      turns.map((k) => cell(group, rollout, k, rollout.at === chosen && k + 1 === turn)), (roles && roleName(group, roles, rollout.at)) || (text.pairs && sideName(group, text, rollout.at))));
  const means = el('tr', { class: 'means' },
    el('th', { scope: 'row', title: 'The outcome included, where a turn was the last. Under "The working", a mean may be of something else.' }, 'mean paid'),
    ...turns.map((k) => (tree ? meanOfNodes(group, tree, k) : meanCell(group, k))),
    el('td', {}, plain(mean(kept(group).map((one) => one.total)))), el('td', {}));
  const drawn = tree && !tree.note ? '; a turn that rollouts share is drawn once' : '';
  return el('div', { class: 'scroll' },
    tree && tree.note && el('p', { class: 'warning' }, `The tree is not drawn, and its turns are not compared: ${visible(tree.note)}.`),
    el('table', { class: tree ? 'matrix tree' : 'matrix' },
      el('caption', {}, `Advantage, and below it what was paid, by rollout and turn${drawn}`),
      el('thead', {}, head), el('tbody', {}, ...rows), el('tfoot', {}, means)));
}

function matrixRow(group, rollout, chosen, cells, name) {
  return el('tr', { class: chosen ? 'chosen' : '' },
    el('th', { scope: 'row' }, el('a', { href: `#rollouts/${group.number}/${rollout.at}` }, name || rollout.name)), ...cells,
    el('td', {}, plain(rollout.total)), el('td', { class: 'verdict' }, verdict(rollout) || '–'));
}

function cell(group, rollout, k, current) {
  if (k >= rollout.rewards.length) return el('td', { class: 'none' }, el('span', { class: 'hidden' }, 'no such turn'));
  const value = rollout.advantages[k];
  const link = el('a', {
    href: `#rollouts/${group.number}/${rollout.at}/${k + 1}`, class: 'cell', 'aria-current': current ? 'true' : null,
    'aria-label': `rollout ${rollout.name}, turn ${k + 1}: advantage ${signed(value)}, paid ${plain(rollout.rewards[k])}`,
  }, el('b', {}, signed(value)), el('span', {}, plain(rollout.rewards[k])));
  return el('td', {}, shade(link, value, SCALE));
}

function meanCell(group, k) {
  const alive = kept(group).filter((one) => one.rewards.length > k);
  return el('td', { title: 'what was paid at this turn, over the rollouts that have it' },
    plain(mean(alive.map((one) => one.rewards[k]))), el('span', { class: 'quiet' }, ` of ${alive.length}`));
}

function kept(group) {
  return group.rollouts.filter((one) => !(one.flags & DROPPED));
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
