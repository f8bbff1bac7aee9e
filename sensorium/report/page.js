(() => {
  document.documentElement.classList.add('js');

  // ---- tables that can be sorted by a column

  for (const table of document.querySelectorAll('table.sortable')) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') !== 'descending' && head.dataset.first !== 'ascending'
          || head.getAttribute('aria-sort') === 'ascending';
        for (const other of heads) other.removeAttribute('aria-sort');
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const key = row => row.cells[column].dataset.value ?? '';
        const order = (a, b) => {
          const x = key(a), y = key(b);
          if (x === '' || y === '') return (x === '') - (y === '');  // what has no value stands last either way
          const numbers = Number.isFinite(+x) && Number.isFinite(+y);
          return (numbers ? x - y : x.localeCompare(y, undefined, {numeric: true})) * (down ? -1 : 1);
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  // ---- the sample browser

  const form = document.querySelector('.filter'), store = document.getElementById('records');
  if (!form || !store) return;
  const {names, pictures, reasons, entries} = JSON.parse(store.textContent);
  const list = document.querySelector('.examples'), SIZE = +list.dataset.size;
  for (const image of list.querySelectorAll('img[data-picture]')) pictures[+image.dataset.picture] = image.src;
  const many = names.some(name => name);
  const OUTCOMES = {right: '✓ right', wrong: '✗ wrong', unread: '? unreadable', error: '! error', open: 'not scored'};
  const SHOWS = {
    all: () => true,
    right: entry => entry.answers.every(one => one.outcome === 'right'),
    wrong: entry => entry.answers.some(one => one.outcome === 'wrong'),
    unread: entry => entry.answers.some(one => one.outcome === 'unread'),
    blind: entry => entry.answers.some(one => one.blindOutcome === 'right' && one.outcome !== 'right' && one.outcome !== 'open'),
    seen: entry => entry.answers.some(one => one.outcome === 'right' && one.blindOutcome && one.blindOutcome !== 'right'),
    error: entry => entry.answers.some(one => one.outcome === 'error'),
    differ: entry => new Set(entry.answers.map(one => one.outcome === 'right')).size > 1,
  };
  entries.forEach((entry, index) => {
    entry.index = index;
    entry.name = entry.id || '#' + (index + 1);
    entry.where = entry.task + '\n' + entry.split;
    const words = [entry.name, entry.task, entry.part, entry.question, entry.expected, ...entry.options];
    for (const one of entry.answers) words.push(one.said, one.read, one.blind ?? '', one.error);
    entry.words = words.join('\n').toLowerCase();
    const scores = entry.answers.map(one => one.score === '' ? {right: 1, wrong: 0}[one.outcome] : +one.score.replace(/,/g, ''));
    const known = scores.filter(one => one !== undefined);
    entry.score = known.length ? known.reduce((a, b) => a + b) / known.length : NaN;
  });

  const h = (tag, given, ...inside) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given || {})) if (value !== null) made.setAttribute(name, value);
    made.append(...inside.filter(one => one !== null));
    return made;
  };
  const said = text => text.trim() ? h('bdi', {dir: 'auto'}, text) : h('i', {class: 'soft'}, '(empty)');
  const mark = outcome => h('span', {class: 'mark ' + outcome}, OUTCOMES[outcome]);
  const boxed = (kind, box) => {
    const [x0, y0, x1, y1] = box.map(edge => edge * 100), made = h('i', {class: 'box ' + kind});
    Object.assign(made.style, {left: x0 + '%', top: y0 + '%', width: x1 - x0 + '%', height: y1 - y0 + '%'});
    return made;
  };
  const picture = (entry, place, number) => {
    if (!pictures[place]) return h('span', {class: 'small soft nopicture'}, 'picture cannot be shown: ' + reasons[place]);
    const alt = 'picture ' + (number + 1) + ' of this question';
    const frame = h('span', {class: 'frame'}, h('img', {src: pictures[place], alt, loading: 'lazy'}));
    if (number === 0) {
      frame.append(...entry.boxes.map(box => boxed('expected', box)));
      for (const one of entry.answers) frame.append(...one.boxes.map(box => {
        const made = boxed('said', box);
        if (many) made.style.setProperty('--box', 'var(--c' + one.by % 8 + ')');
        return made;
      }));
    }
    return frame;
  };
  const answer = one => {
    const rows = [];
    const row = (name, ...inside) => rows.push(h('dt', null, name), h('dd', null, ...inside));
    if (one.error) row('error', said(one.error)); else row('answer', said(one.said));
    if (one.read) row('read as', said(one.read));
    if (one.score) row('score', one.score);
    if (one.blind !== null) row('blind', said(one.blind), ...(one.blindOutcome && one.blindOutcome !== 'open' ? [' ', mark(one.blindOutcome)] : []));
    return rows;
  };
  const card = entry => {
    const first = entry.answers[0];
    const head = h('div', {class: 'head'},
      h('span', {class: 'small soft'}, [entry.task.replace(/_/g, ' '), entry.split, entry.part].filter(one => one).join(' · ')),
      many || !first ? null : mark(first.outcome));
    const text = h('div', {class: 'text'}, head, h('div', {class: 'question'}, said(entry.question)));
    if (entry.options.length) text.append(h('ol', {class: 'options', type: 'A'}, ...entry.options.map(one => h('li', null, said(one)))));
    const expected = [h('dt', null, 'expected'), h('dd', null, said(entry.expected))];
    if (many) {
      text.append(h('dl', null, ...expected));
      for (const one of entry.answers) {
        const name = h('b', null, h('span', {class: 'swatch c' + one.by % 8}), names[one.by]);
        const also = [];
        if (one.read) also.push('read as ', said(one.read), '; ');
        if (one.score) also.push('score ' + one.score + '; ');
        if (one.blind !== null) also.push('blind: ', said(one.blind), one.blindOutcome === 'right' ? ' ✓' : '');
        text.append(h('div', {class: 'given'}, h('div', {class: 'head'}, name, mark(one.outcome)),
          h('p', null, said(one.error || one.said)), also.length ? h('p', {class: 'soft small'}, ...also) : null));
      }
    } else text.append(h('dl', null, ...expected, ...(first ? answer(first) : [])));
    const link = h('a', {href: '#' + fragment({item: entry.index}), 'aria-label': 'link to ' + entry.name}, 'link');
    text.append(h('p', {class: 'foot'}, entry.id ? entry.id + ' · ' : '', link));
    const made = h('article', {class: 'example', tabindex: '-1', 'data-index': entry.index});
    if (entry.pictures.length) made.append(h('div', {class: 'pictures'}, ...entry.pictures.map((place, number) => picture(entry, place, number))));
    made.append(text);
    return made;
  };

  // A view is what the fragment says, so that it can be linked: #view:show=wrong&task=...&part=...&q=...&sort=...&page=2
  const EMPTY = {show: 'all', task: '', part: '', q: '', sort: '', page: '1', item: ''};
  const fragment = view => {
    const kept = Object.entries(view).filter(([name, value]) => String(value) !== EMPTY[name]);
    return 'view:' + new URLSearchParams(kept.map(([name, value]) => [name, String(value)]));
  };
  const read = () => {
    const view = {...EMPTY}, found = location.hash.match(/^#view:(.*)$/);
    if (found) for (const [name, value] of new URLSearchParams(found[1])) if (name in EMPTY) view[name] = value;
    if (!(view.show in SHOWS)) view.show = 'all';
    return view;
  };
  let view = read(), found = [];
  const field = name => form.querySelector('[name=' + name + ']');
  const pages = [...document.querySelectorAll('.pages')];

  const fits = entry => (!view.task || entry.where === view.task) && (!view.part || entry.part === view.part)
    && view.q.toLowerCase().split(/\s+/).every(word => entry.words.includes(word));
  const select = (name, first, options) => {
    const box = field(name);
    box.replaceChildren(h('option', {value: ''}, first), ...options.map(([value, text]) => h('option', {value}, text)));
    box.value = view[name];
    if (box.selectedIndex < 0) box.value = view[name] = '';
    box.parentElement.hidden = options.length < 2;
  };
  const tasks = new Map(entries.map(entry => [entry.where, [entry.task.replace(/_/g, ' '), entry.split].filter(one => one).join(' · ')]));
  const draw = () => {
    select('task', 'every task', [...tasks]);
    const parts = [...new Set(entries.filter(entry => !view.task || entry.where === view.task).map(entry => entry.part))];
    select('part', 'every part', parts.filter(part => part).map(part => [part, part]));
    field('q').value === view.q || (field('q').value = view.q);
    field('sort').value = view.sort;
    const inside = entries.filter(fits);
    for (const radio of form.querySelectorAll('[name=show]')) {
      const count = inside.filter(SHOWS[radio.value]).length;
      radio.checked = radio.value === view.show;
      radio.disabled = !count && radio.value !== view.show && radio.value !== 'all';
      radio.parentElement.querySelector('b').textContent = count.toLocaleString('en');
    }
    const lone = entries[view.item === '' ? -1 : +view.item];
    found = lone ? [lone] : inside.filter(SHOWS[view.show]);
    if (view.sort) found.sort((a, b) => isNaN(a.score) - isNaN(b.score) || (view.sort === 'low' ? a.score - b.score : b.score - a.score) || a.index - b.index);
    const last = Math.max(1, Math.ceil(found.length / SIZE)), page = Math.min(Math.max(1, Math.trunc(+view.page) || 1), last);
    view.page = String(page);
    const start = (page - 1) * SIZE, shown = found.slice(start, start + SIZE);
    list.replaceChildren(...shown.map(card));
    if (lone) list.firstChild.classList.add('lone');
    if (!shown.length) list.append(h('p', {class: 'soft'}, 'No item fits these filters.'));
    for (const bar of pages) {
      const [back, next] = bar.querySelectorAll('button[data-turn]');
      back.disabled = page <= 1; next.disabled = page >= last;
      bar.querySelector('output').textContent = lone ? 'one item of ' + entries.length.toLocaleString('en')
        : found.length ? (start + 1).toLocaleString('en') + ' to ' + (start + shown.length).toLocaleString('en') + ' of ' + found.length.toLocaleString('en') : '0 items';
      bar.querySelector('.whole').hidden = !lone;
      bar.hidden = bar.classList.contains('below') && last < 2;
    }
  };
  const go = (changes, replace) => {
    view = {...view, page: '1', item: '', ...changes};
    draw();
    const hash = '#' + fragment(view);
    if (replace) history.replaceState(null, '', hash); else history.pushState(null, '', hash);
  };
  const turn = by => {
    go({page: String(+view.page + by)});
    document.getElementById('examples').scrollIntoView();
  };

  form.hidden = false;
  for (const bar of pages) {
    bar.hidden = false;
    for (const button of bar.querySelectorAll('button[data-turn]')) button.addEventListener('click', () => turn(+button.dataset.turn));
    bar.querySelector('.whole').addEventListener('click', () => go({}));
  }
  form.addEventListener('change', event => event.target.name !== 'q' && go({[event.target.name]: event.target.value, ...(event.target.name === 'task' ? {part: ''} : {})}));
  let waiting = 0;
  field('q').addEventListener('input', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => go({q: field('q').value}, true), 120);
  });
  const arrive = () => {
    view = read();
    draw();
    if (location.hash.startsWith('#view:')) document.getElementById('examples').scrollIntoView();
  };
  addEventListener('hashchange', arrive);
  addEventListener('popstate', () => { view = read(); draw(); });
  addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== 'radio') {
      if (event.key === 'Escape' && event.target === field('q')) field('q').blur();
      return;
    }
    const cards = [...list.querySelectorAll('.example')], at = cards.indexOf(document.activeElement);
    if (event.key === '/') field('q').focus();
    else if (event.key === 'j' || event.key === 'k') {
      const to = event.key === 'j' ? at + 1 : at - 1;
      if (cards[to]) cards[to].focus();
    } else if (event.key === 'n' && +view.page * SIZE < found.length) turn(1);
    else if (event.key === 'p' && +view.page > 1) turn(-1);
    else return;
    event.preventDefault();
  });
  arrive();
})();
