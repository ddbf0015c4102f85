"The map, the trail and the contents of the book: in step with the source, and within their limits."
import importlib.machinery, importlib.util, os, re, sys
import pytest
from books import TOP, code, markdown, notebooks, read, shown, source

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
