// What the pages do beyond what a browser does by itself: they work without it.

const said = () => document.getElementById('said');

/** A button that changes something: ask where it must be asked, do it, say what came of it, and look again. */
document.addEventListener('submit', async (event) => {
  const form = event.target;
  if (!form.matches('form.act')) return;
  event.preventDefault();
  if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) return;
  const button = form.querySelector('button');
  if (button.ariaDisabled) return;
  button.ariaDisabled = 'true'; // disabled itself, it would lose the focus
  const part = form.closest('[hx-get]');
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.action, { method: 'POST', body, headers: { Accept: 'application/json' } });
    const { message, to } = await answer.json();
    if (answer.ok && to && !part) return void window.location.assign(to);
    said().textContent = message;
  } catch {
    said().textContent = 'hourhand did not answer: nothing may have been changed.';
  } finally {
    button.ariaDisabled = null;
  }
  await Promise.all([...document.querySelectorAll('[hx-get]')].map(lookAgain));
  if (!part || document.activeElement !== document.body) return;
  part.tabIndex = -1; // the button is there no more: whoever pressed it goes on from its part
  part.focus();
});

const lookAgain = (part) =>
  window.htmx.ajax('GET', part.getAttribute('hx-get'), { source: part, target: part, swap: 'outerMorph' });

/** The parts whose last look came to nothing, or to something else than that part: they stay as they are, and that they may be old is said. */
const unseen = new Set();

function looked({ id }, well) {
  const before = unseen.size;
  if (well) unseen.delete(id);
  else unseen.add(id);
  const away = document.getElementById('away');
  if (unseen.size === 0) away.textContent = '';
  else if (before === 0)
    away.textContent = `What is shown may be old: hourhand has not answered since ${new Date().toISOString().slice(11, 19)}.`;
}

document.addEventListener('htmx:after:request', (event) => {
  const { sourceElement: part, response, text } = event.detail.ctx;
  const well = response.status === 204 || (response.status === 200 && text.startsWith(`<section id="${part.id}"`));
  if (!well && !response.headers.has('HX-Redirect')) event.preventDefault();
  looked(part, well);
});
document.addEventListener('htmx:error', ({ detail }) => detail.ctx && looked(detail.ctx.sourceElement, false));

/** Nobody looks at a page in the background. */
document.addEventListener('htmx:before:request', (event) => {
  if (document.hidden) event.preventDefault();
});

/** Of the calendar's cells one is in the order of the Tab key; the arrows lead to the others. */
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function rove() {
  const cells = [...document.querySelectorAll('.hours a, .days a')];
  const chosen =
    cells.find((cell) => cell === document.activeElement) ??
    cells.find((cell) => cell.tabIndex === 0 && cell.hasAttribute('tabindex')) ??
    cells[0];
  for (const cell of cells) cell.tabIndex = cell === chosen ? 0 : -1;
}

document.addEventListener('keydown', (event) => {
  const cell = event.target.closest?.('.hours td, .days li');
  if (!cell) return;
  const row = cell.parentElement;
  const rows = row.matches('.days') ? [row] : [...row.parentElement.children];
  const columns = [...row.children];
  const linked = columns.filter((column) => column.querySelector('a'));
  let [y, x] = [rows.indexOf(row), columns.indexOf(cell)];
  if (event.key === 'Home') x = columns.indexOf(linked.at(0));
  else if (event.key === 'End') x = columns.indexOf(linked.at(-1));
  else if (STEPS[event.key]) {
    const [down, right] = STEPS[event.key];
    do {
      [y, x] = [y + down, x + right];
    } while (rows[y]?.children[x] && !rows[y].children[x].querySelector('a'));
  } else return;
  event.preventDefault();
  const link = rows[y]?.children[x]?.querySelector('a');
  if (!link) return;
  link.focus();
  rove();
});

rove();
document.addEventListener('htmx:after:swap', rove);
