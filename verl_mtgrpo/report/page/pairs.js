'use strict';
// Pairs: what an expert did and what the policy did in the same state, side by side.

/** The pair of the chosen action; nothing if its partner was lost or is equal. */
function pairView(group, text, chosen) {
  const pair = text.pairs.pairs.find(([expert, own]) => expert === chosen || own === chosen);
  if (!pair) return null;
  const [expert, own, expertRatio, ownRatio, beta, margin, share] = pair;
  return el('section', { class: 'roles', 'aria-label': 'The pair' },
    actionCard(group, text, expert, 'The expert', expertRatio, chosen),
    actionCard(group, text, own, 'The policy', ownRatio, chosen),
    el('div', {}, el('p', { class: 'label' }, 'What is learnt'),
      el('p', {}, `D = β (lr expert − lr own) = ${compact(beta)} · (${plain(expertRatio, 3)} − ${plain(ownRatio, 3)}) = ${plain(margin, 3)}`),
      el('p', {}, `β σ(−D) = ${compact(beta)} · ${plain(share, 3)} = ${plain(beta * share, 4)}: plus for the expert’s tokens, minus for the policy’s.`),
      el('p', { class: 'quiet' }, margin > 0 ? 'The policy already prefers the expert’s action more than its reference does.'
        : 'The policy does not yet prefer the expert’s action more than its reference does.')));
}

function actionCard(group, text, at, who, ratio, chosen) {
  const value = mean(group.rollouts[at].advantages);
  return el('div', {}, el('p', { class: 'label' }, who),
    el('div', { class: at === chosen ? 'card current' : 'card' },
      el('p', {}, el('a', { href: `#rollouts/${group.number}/${at}`, 'aria-current': at === chosen ? 'true' : null }, sideName(group, text, at)),
        ` lr ${plain(ratio, 3)} `, value !== null && shade(el('span', { class: 'chip' }, `advantage ${signed(value, 3)}`), value, SCALE)),
      ...text.rollouts[at].turns.map((one) => verbatim(one.text))));
}

/** What to call an action in the matrix. */
function sideName(group, text, at) {
  return `${visible(text.pairs.sides[at])} ${group.rollouts[at].name}`;
}
