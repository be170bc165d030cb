(() => {
  'use strict';
  const all = (node, what) => Array.from(node.querySelectorAll(what));
  const root = document.documentElement;

  // light or dark
  const button = document.querySelector('button.theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  const isDark = () => (root.dataset.theme || (system.matches ? 'dark' : 'light')) === 'dark';
  const label = () => { button.textContent = isDark() ? 'Light theme' : 'Dark theme'; };
  button.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    try { localStorage.setItem('timm-attn-theme', root.dataset.theme); } catch { /* not remembered */ }
    label();
  });
  system.addEventListener('change', label);
  label();

  // copy
  async function copy(text, button) {
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // no permission, or an old browser
      const area = document.createElement('textarea');
      area.value = text;
      area.style.cssText = 'position:fixed;opacity:0';
      document.body.append(area);
      area.select();
      done = document.execCommand('copy');
      area.remove();
      button.focus();
    }
    const before = button.dataset.label ||= button.textContent;
    button.textContent = done ? 'Copied' : 'Not copied';
    clearTimeout(button.timer);
    button.timer = setTimeout(() => { button.textContent = before; }, 1500);
  }
  const textOf = (cell) => 'missing' in cell.dataset ? '' : cell.textContent.replace(/\s+/g, ' ').trim();
  // a spreadsheet must not take a name for a formula
  const inert = (text, isNumber) => (!isNumber && /^[=+\-@]/.test(text) && isNaN(text) ? `'${text}` : text);

  function tabSeparated(table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const rows = Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
    const line = (row) => Array.from(row.cells, (cell, i) => inert(textOf(cell), 'number' in heads[i].dataset));
    return [heads.map(textOf), ...rows.map(line)].map((cells) => cells.join('\t')).join('\n') + '\n';
  }
  for (const button of all(document, 'button.copy')) {
    button.addEventListener('click', () => {
      const isCode = button.dataset.copy === 'code';
      const source = button.closest(isCode ? '.code' : '.table').querySelector(isCode ? 'code' : 'table');
      copy(isCode ? source.textContent : tabSeparated(source), button);
    });
  }

  // sort: numbers as numbers, text as people do, missing values last in both directions
  const compareText = new Intl.Collator(undefined, { numeric: true }).compare;
  function sort(table, index, down) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const isNumber = 'number' in heads[index].dataset;
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows, (row) => [row.cells[index].dataset.value, row]);
    keyed.sort(([a], [b]) => {
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      const order = isNumber ? (Number(a) > Number(b)) - (Number(a) < Number(b)) : compareText(a, b);
      return down ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
    heads.forEach((head, i) => {
      if (i === index) head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      else head.removeAttribute('aria-sort');
    });
  }
  for (const table of all(document, 'table[data-sortable]')) {
    Array.from(table.tHead.rows[0].cells).forEach((head, i) => {
      head.querySelector('button').addEventListener('click', () => {
        sort(table, i, head.getAttribute('aria-sort') === 'ascending');
      });
    });
  }

  // filter
  const tests = {
    has: (cell, wanted) => wanted.toLowerCase().split(/\s+/).every((word) => textOf(cell).toLowerCase().includes(word)),
    is: (cell, wanted) => cell.dataset.value === wanted,
    min: (cell, bound) => 'value' in cell.dataset && Number(cell.dataset.value) >= Number(bound),
    max: (cell, bound) => 'value' in cell.dataset && Number(cell.dataset.value) <= Number(bound),
  };
  for (const form of all(document, 'form.filters')) {
    const frame = form.closest('.table');
    const rows = Array.from(frame.querySelector('table').tBodies[0].rows);
    const [count, reset] = ['.count', '.reset'].map((what) => frame.querySelector(what));
    const apply = () => {
      const set = all(form, '[data-test]').filter((control) => control.value.trim());
      for (const row of rows) {
        row.hidden = !set.every((c) => tests[c.dataset.test](row.cells[c.dataset.column], c.value.trim()));
      }
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
      reset.hidden = !set.length;
    };
    form.addEventListener('input', apply);
    form.addEventListener('submit', (event) => event.preventDefault());
    reset.addEventListener('click', () => { form.reset(); apply(); count.closest('.tools').querySelector('.copy').focus(); });
    apply();
  }
})();
