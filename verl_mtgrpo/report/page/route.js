'use strict';
// Which part is shown: #overview, #metrics, #rollouts, #rollouts/<group>, …/<rollout>, …/<turn>.

/** [part, group, rollout, turn]; numbers only, undefined where the address ends. */
function whereTo() {
  const [part, ...rest] = location.hash.slice(1).split('/');
  const numbers = rest.map((word) => (/^\d+$/.test(word) ? Number(word) : undefined));
  return [['overview', 'rollouts', 'metrics'].includes(part) ? part : 'overview', ...numbers];
}

/** Show the part that the address names, and return the address. */
function showPart() {
  const [part, group, ...rest] = whereTo();
  for (const name of ['overview', 'rollouts', 'metrics']) byId(name).hidden = name !== part;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.dataset.part === part) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.body.classList.toggle('opened', group !== undefined);
  return [part, group, ...rest];
}
