// What the pages do beyond what a browser does by itself: they work without it.

const said = () => document.getElementById('said');

/** A button that changes something: ask where it must be asked, do it, say what came of it, and look again. */
document.addEventListener('submit', async (event) => {
  const form = event.target;
  if (!form.matches('form.act')) return;
  event.preventDefault();
  if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) return;
  const button = form.querySelector('button');
  button.disabled = true;
  try {
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.action, { method: 'POST', body, headers: { Accept: 'application/json' } });
    const { message, to } = await answer.json();
    if (answer.ok && to && !form.closest('[hx-get]')) return void window.location.assign(to);
    said().textContent = message;
  } catch {
    said().textContent = 'hourhand did not answer: nothing may have been changed.';
  } finally {
    button.disabled = false;
  }
  for (const part of document.querySelectorAll('[hx-get]'))
    window.htmx.ajax('GET', part.getAttribute('hx-get'), { source: part, target: part, swap: 'outerMorph' });
});

/** Nobody looks at a page in the background. */
document.addEventListener('htmx:before:request', (event) => {
  if (document.hidden) event.preventDefault();
});

/** Of the calendar's cells one is in the order of the Tab key; the arrows lead to the others. */
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function rove() {
  const cells = [...document.querySelectorAll('.hours a')];
  const chosen =
    cells.find((cell) => cell === document.activeElement) ??
    cells.find((cell) => cell.tabIndex === 0 && cell.hasAttribute('tabindex')) ??
    cells[0];
  for (const cell of cells) cell.tabIndex = cell === chosen ? 0 : -1;
}

document.addEventListener('keydown', (event) => {
  const cell = event.target.closest?.('.hours td');
  if (!cell) return;
  const row = cell.parentElement;
  const rows = [...row.parentElement.children];
  const columns = [...row.children];
  let [y, x] = [rows.indexOf(row), columns.indexOf(cell)];
  if (event.key === 'Home') x = 1;
  else if (event.key === 'End') x = columns.length - 1;
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
