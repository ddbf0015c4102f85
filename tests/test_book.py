"The map, the trail and the contents of the book: in step with the source, and within their limits."
import ast, importlib.machinery, importlib.util, os, re, sys
import pytest
from books import TOP, code, directives, markdown, notebooks, read, shown, source

NBS = TOP/'nbs'


def script(name):
    "A script of .ci as a module."
    loader = importlib.machinery.SourceFileLoader(f'{name}_script', str(TOP/'.ci'/name))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(module)
    finally: sys.dont_write_bytecode = before
    return module


MAP, WORDS = script('map'), script('words')
TRAIL = WORDS.trail()[1:]


# ---- the pictures

def drawn(): return (NBS/'imports.svg').read_text(encoding='utf-8')


def test_imports_are_drawn_as_they_are():
    known = MAP.modules()
    arcs = [tuple(e.split()) for e in re.findall('data-edge="([^"]+)"', drawn())]
    assert sorted(arcs) == MAP.imports(known), 'run make map'
    assert set(re.findall(r'<text class="m"[^>]*>([^<]+)', drawn())) == set(known), 'run make map'


def test_an_import_that_goes_up_is_seen():
    assert MAP.upward([('paper.error', 'graph.sites'), ('graph.sites', 'paper.error')]) == [('paper.error',
        'graph.sites')]
    with pytest.raises(SystemExit, match='circle'):
        MAP.ordered({'paper.a': '', 'paper.b': ''}, [('paper.a', 'paper.b'), ('paper.b', 'paper.a')])


@pytest.mark.parametrize('name', ['way.svg', 'imports.svg'])
def test_boxes_lead_to_notebooks(name):
    text = (NBS/name).read_text(encoding='utf-8')
    pages = re.findall(r'<a href="([^"]+)"', text)
    assert len(pages) >= 12 and [p for p in pages if not (NBS/p).exists()] == [], 'run make map'
    assert len(re.search('<title>([^<]+)', text)[1]) > 80 and 'aria-label=' in text


def test_the_way_names_modules_that_are_there():
    known, text = MAP.modules(), (NBS/'way.svg').read_text(encoding='utf-8')
    for _, module in (*MAP.WAY, *MAP.MOMENTS):
        if module:
            assert f'<a href="{known[module]}">' in text and f'>{module}</text>' in text, f'{module}: run make map'


@pytest.mark.parametrize('page,name', [('index.ipynb', 'way.svg'), ('contents.ipynb', 'imports.svg')])
def test_pages_show_the_pictures_of_today(page, name):
    html = [''.join(d['text/html']) for c in code(read(NBS/page)) for d in shown(c) if 'text/html' in d]
    want = (NBS/name).read_text(encoding='utf-8').strip()
    assert want in [h.strip() for h in html], 'run make map'


# ---- the trail

def test_the_trail_takes_an_evening():
    total = sum(map(WORDS.words, WORDS.trail()))
    assert 10_000 < total <= WORDS.MOST == 25_000


@pytest.mark.parametrize('page', TRAIL)
def test_a_page_of_the_trail_begins_with_its_question(page):
    texts = [source(c) for c in read(NBS/page)['cells']]
    n = TRAIL.index(page)+1
    assert re.match(rf'\*\[One evening\]\(\.\./trail\.ipynb\), page {n} of {len(TRAIL)}\.\* \*\*[^*]+\?\*\*', texts[1])
    following = '../contents.ipynb' if page == TRAIL[-1] else os.path.relpath(TRAIL[n], os.path.dirname(page))
    told = next(t for t in (texts[1], texts[-1]) if '**Next.**' in t)
    assert f']({following})' in told.split('**Next.**')[1]


def test_the_trail_lists_its_pages():
    nb = read(NBS/'trail.ipynb')
    assert re.findall(r'\| \d+ \| \[[^]]+\]\(([^)]+)\)', markdown(nb)) == TRAIL
    for page in TRAIL:
        question = re.search(r'\*\*([^*]+\?)\*\*', source(read(NBS/page)['cells'][1]))[1]
        assert f'({page}) | {question} |' in markdown(nb)


# ---- the contents

def test_every_notebook_is_listed_with_its_title():
    listed = '\n'.join(''.join(d['text/markdown']) for c in code(read(NBS/'contents.ipynb')) for d in shown(c)
        if 'text/markdown' in d)
    own = {'index.ipynb', 'trail.ipynb', 'contents.ipynb', 'glossary.ipynb', 'extending.ipynb'}
    for path in notebooks(NBS):
        if (name := path.relative_to(NBS).as_posix()) in own: continue
        lines = source(read(path)['cells'][0]).splitlines()
        title, sentence = (next(o[2:].strip() for o in lines if o.startswith(p)) for p in ('# ', '> '))
        assert f'- [{title}]({name}): {sentence}' in listed, f'run .ci/execute nbs/contents.ipynb: {name} ({title})'


# ---- cells

def exported(cell): return any(d.startswith('export') for d in directives(cell))


def lines(cell):
    "What stands in a cell of code, without blank lines and what nbdev and Quarto read."
    return [o for o in source(cell).splitlines() if o.strip() and not o.startswith('#|')]


def defined(text):
    """Public names of a cell, and whether it needs a lesson: a function, a method, a class or a table does, a number
    is explained beside it."""
    names, lesson = [], False
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found, taught = [node.name], True
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [n.id for t in targets for n in ast.walk(t)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            taught = isinstance(node.value, (ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.Tuple))
        else: continue
        found = [n for n in found if not n.startswith('_')]
        names, lesson = names+found, lesson or taught and bool(found)
    return names, lesson


def without_lesson(cells):
    "The exports of a notebook none of whose names is used by a cell that is no export, among the next two of code."
    for i, cell in enumerate(cells):
        if not exported(cell): continue
        names, lesson = defined(source(cell))
        near = [source(c) for c in cells[max(i-2, 0):i+3] if not exported(c)]
        if lesson and not any(re.search(rf'\b{n}\b', text) for n in names for text in near): yield names


@pytest.mark.parametrize('path', notebooks(NBS), ids=lambda p: p.stem)
def test_cells_are_short_and_have_a_lesson(path):
    cells = code(read(path))
    assert [(i, n) for i, c in enumerate(cells) if (n := len(lines(c))) > 40] == [], 'cut it where two ideas meet'
    assert list(without_lesson(cells)) == [], 'use it in a cell of its own, right behind it'


def test_these_cells_would_be_seen():
    cell = lambda text: dict(cell_type='code', source=text, outputs=[])
    export, other = cell('#| export\nN = 3\ndef f(): pass\ndef _g(): pass'), cell('x = 1')
    assert list(without_lesson([export, other, cell('fig(1)'), cell('f()')])) == [['N', 'f']]
    assert list(without_lesson([export, other, cell('f()')])) == [] == list(without_lesson([cell('N'), export]))
    assert list(without_lesson([cell('#| export\nN = 3\ndef _g(): pass')])) == []
    assert list(without_lesson([cell('#| export\n@patch\ndef m(self:T): pass'), cell('#| export\nT.m')])) == [['m']]
    assert list(without_lesson([cell("#| export\nT = {'a': 1}")])) == [['T']]
    assert len(lines(cell('#| export\n\na = 1\n# said\n'))) == 2
