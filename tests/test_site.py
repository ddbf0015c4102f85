"""The site as Quarto is given it, which need not be installed: pages, links, labels, references, figures, widgets.
`make docs` is carried out in a copy of the project, with a `quarto` on PATH that does nothing: the fixture `site`."""
import ast, json, re, sys
from collections import Counter
from configparser import ConfigParser
import pytest, yaml
from books import STATE, TOP, VIEW, code, directives, markdown, notebooks, read, shown, source, view_ids, widget_state
from pages import front, options
from test_book import script

NBS = TOP/'nbs'
PAGES = [p.relative_to(NBS).as_posix() for p in notebooks(NBS)]
every_page = pytest.mark.parametrize('page', PAGES)


# ---- what quarto is given

def test_every_page_is_processed(site):
    assert [p.relative_to(site).as_posix() for p in notebooks(site)] == PAGES
    assert all((site/name).exists() for name in ('_quarto.yml', 'nbdev.yml', 'styles.css', 'references.bib'))


def addresses(site):
    "Page → the name of its HTML file, as nbdev writes it in the page's front matter."
    out = {}
    for p in notebooks(site):
        name = re.search(r'^output-file: *(\S+)', source(read(p)['cells'][0]), re.M)
        at = p.relative_to(site)
        out[at.as_posix()] = (at.parent/(name[1] if name else f'{at.stem}.html')).as_posix()
    return out


def test_addresses_are_different(site):
    twice = [n for n, k in Counter(addresses(site).values()).items() if k > 1]
    assert not twice, f'{twice} would be written twice: notebooks in different places have the same name'


def test_links_that_nbdev_made(site):
    "nbdev turns names of the package into links to their pages."
    cfg = ConfigParser(delimiters=['=']); cfg.read(TOP/'settings.ini')
    home, there = cfg['DEFAULT']['doc_host']+cfg['DEFAULT']['doc_baseurl']+'/', set(addresses(site).values())
    found = {(p.name, m) for p in notebooks(site)
        for m in re.findall(re.escape(home)+r'([^)#\s"\'>]+)', markdown(read(p)))}
    assert len(found) > 20
    assert not {(p, m) for p, m in found if m not in there}


def test_the_site_is_built_and_nothing_else(site):
    assert (site/'quarto.log').read_text().split('\n') == ['render --no-cache', '']
    assert (site.parent/'_docs'/'index.html').exists()
    for name in ('README.md', '_quarto.yml', 'nbs/index.ipynb'):
        assert (site.parent/name).read_bytes() == (TOP/name).read_bytes(), f'{name} was changed'


def texts(nb):
    "All Markdown of a page: its cells, and what its code shows."
    return [source(c) for c in nb['cells'] if c['cell_type'] == 'markdown']+[''.join(d['text/markdown'])
        for c in code(nb) for d in shown(c) if 'text/markdown' in d]


NESTED = re.compile(r'\[[^\[\]\n]*\[[^\[\]\n]*\]\([^()\s]+\)[^\[\]\n]*\]\([^()\s]+\)')


def fences(text): return re.findall(r'^```.*?^```', text, re.S | re.M)


def test_no_link_within_a_link_or_within_code(site):
    for p in notebooks(site):
        for text in texts(read(p)):
            assert not NESTED.search(text), p.name
            assert not any('](http' in f for f in fences(text)), p.name


def test_no_signature_says_nothing(site):
    for p in notebooks(site): assert not any('NoneType' in f for t in texts(read(p)) for f in fences(t)), p.name


def test_heads_of_pages_and_of_cells_can_be_read(site):
    "Quarto stops at a head that is no YAML, and at a list where it expects a word."
    for p in notebooks(site):
        nb = read(p); told = front(nb)
        assert told['title'] and isinstance(told.get('crossref', {}), dict)
        assert all(isinstance(v, (str, bool)) for v in told.get('crossref', {}).values()), p.name
        for c in code(nb): assert isinstance(options(c), dict), f'{p.name}: {source(c)[:200]}'


def test_titles_are_numbered(site):
    for p in notebooks(site):
        number = re.match(r'(\d+[a-z]?)_', p.name)
        if number: assert front(read(p))['title'].startswith(f'{number[1]} '), p.name


def test_a_card_per_chapter(site):
    sections = [o['section'] for o in yaml.safe_load((TOP/'_quarto.yml').read_text())['website']['sidebar']['contents']
        if isinstance(o, dict) and 'section' in o]
    text = markdown(read(site/'index.ipynb'))
    cards = re.findall(r'<div class="chapter">\n\n\[\*\*(.*?)\*\*\]\((.*?)\)\n\n(.*?)\n', text)
    assert [name for name, *_ in cards] == sections == list(script('site').CHAPTERS)
    assert all((site/page).exists() and len(told) > 30 for _, page, told in cards)


def test_widgets_reach_the_site(site):
    pages = [p for p in notebooks(site) if view_ids(read(p))]
    assert len(pages) > 20
    for p in pages: widget_state(read(p))


def quarto_tables(text):
    "What Quarto does to HTML tables, where it isn't told otherwise: it takes them apart and writes them anew."
    def again(m): return re.sub(r'<table(?=[\s>])', '<table data-quarto-postprocess="true"', m[0]).replace('\\n', '\n')
    return re.sub(r'<table.*?</table>', again, text, flags=re.S)


def test_saved_state_survives(site):
    "The state stands on the page as JSON, and tables of HTML stand in it."
    filtered = yaml.safe_load((site/'_quarto.yml').read_text()).get('html-table-processing') != 'none'
    with_tables = 0
    for p in notebooks(site):
        if STATE not in read(p)['metadata'].get('widgets', {}): continue
        text = json.dumps(read(p)['metadata']['widgets'][STATE]); with_tables += '<table' in text
        assert 'state' in json.loads(quarto_tables(text) if filtered else text), p.name
        if '<table' in text:
            with pytest.raises(json.JSONDecodeError): json.loads(quarto_tables(text)) # it is needed
    assert with_tables


def test_a_dead_control_says_so_beside_its_twin(site):
    said = script('site')
    for p in notebooks(site):
        nb = read(p)
        for i, c in enumerate(nb['cells']):
            if c['cell_type'] != 'code' or not said.note(nb, c): continue
            after = nb['cells'][i+1:i+5]
            assert source(after[0]) == f'<p class="dead">{said.note(nb, c)}</p>', p.name
            kinds = next(set(shown(o)[0]) for o in after if o['cell_type'] == 'code' and shown(o))
            assert kinds & {'image/png', 'image/svg+xml', 'text/html'}, f'{p.name}: no twin comes next'
    nb = read(site/'app'/'97_widgets.ipynb')
    assert '<p class="dead">Run the notebook to press its buttons.</p>' in markdown(nb)
    assert sum('Run the notebook to move it.' in markdown(read(p)) for p in notebooks(site)) > 15


def test_mending_mends():
    said = script('site')
    link = '[`f`](https://x.org/a.html#f)'
    assert said.unlinked(f'{link} [{link}](b.ipynb) [the {link} of](c.ipynb)') == (
        f'{link} [`f`](b.ipynb) [the `f` of](c.ipynb)')
    assert said.unlinked(f'```python\nf(a:NoneType=None, # of {link}\n```\n{link}') == (
        f'```python\nf(a=None, # of `f`\n```\n{link}')
    assert said.numbered('---\ntitle: Labels\n---\n\n', '10b_x') == '---\ntitle: 10b Labels\n---\n'
    assert NESTED.search(f'[{link}](b.ipynb)') and not NESTED.search(f'{link} [b](c)')


# ---- what the notebooks say

def test_settings_of_the_site():
    site = yaml.safe_load((TOP/'_quarto.yml').read_text())
    html = site['format']['html']
    assert (set(html['theme']) == {'light', 'dark'} and (NBS/html['css']).exists()
        and (NBS/site['bibliography']).exists())
    assert {'fig-prefix', 'tbl-prefix'} <= set(site['crossref'])
    contents = site['website']['sidebar']['contents']
    line = next(i for i, s in enumerate(contents) if isinstance(s, dict) and s.get('text') == '---')
    # above it, what is read in one go
    assert [s['section'] for s in contents[:line] if isinstance(s, dict)] == ['One evening']
    assert all('section' in s for s in contents[line+1:] if isinstance(s, dict))


def prose(text):
    "Markdown without code, mathematics, and addresses."
    text = re.sub(r'^(```|~~~).*?^\1', '', text, flags=re.S | re.M)
    return re.sub(r'`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|<https?:[^>]*>', ' ', text, flags=re.S)


def slug(title): return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', title.replace('`', '').lower()).strip())


def anchors(nb):
    "The places of a page to which a link can point."
    text = markdown(nb)
    return {slug(t) for t in re.findall(r'^#+ +(.*?)(?: *\{.*\})?$', text, re.M)} | set(re.findall(
        r'(?:\{#|<a id=")([\w-]+)', text)) | {d['label'] for d in map(directives, code(nb)) if 'label' in d}


@every_page
def test_links(page):
    nb = read(NBS/page)
    for target in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'```.*?```|`[^`\n]*`', '', markdown(nb), flags=re.S)):
        if re.match(r'[a-z]+:', target): continue
        path, _, place = target.partition('#')
        at = (NBS/page).parent/path if path else NBS/page
        assert at.exists(), f'{target} does not exist'
        assert NBS in at.resolve().parents or at.resolve() == TOP/'LICENSE' or TOP in at.resolve().parents, (
            f'{target} lies outside the project')
        if place and at.suffix == '.ipynb': assert place in anchors(read(at)), f'{target} has no such heading or label'


def labels(nb):
    text = markdown(nb)
    return (re.findall(r'(?:\{#|<a id=")((?:eq|fig|tbl|sec)-[\w-]+)', text) + [d['label']
        for d in map(directives, code(nb)) if 'label' in d])


CROSS = r'(?<![\w@.])@((?:eq|fig|tbl|sec)-[\w-]*\w)'


@every_page
def test_cross_references(page):
    "A label stands once on its page; what Quarto alone would resolve stands nowhere."
    nb = read(NBS/page)
    twice = [n for n, k in Counter(labels(nb)).items() if k > 1]
    assert not twice, f'{twice} stand there more than once'
    raw = set(re.findall(CROSS, prose(markdown(nb))))
    assert not raw, (f'{sorted(raw)} show as they are in Jupyter and on GitHub: write [words](#see-name), and above '
        'the figure <a id="see-name"></a>')
    figures = {d['label'] for d in map(directives, code(nb)) if d.get('label', '').startswith('fig-')
        and 'fig-cap' not in d}
    assert not figures, f'{sorted(figures)} have a label but no fig-cap, and quarto numbers figures with captions only'


def bibliography():
    text = (NBS/'references.bib').read_text()
    keys = re.findall(r'^@\w+\{([^,\s]+),', text, re.M)
    return text, keys


def test_bibliography():
    text, keys = bibliography()
    assert len(keys) == len(set(keys)) == len(re.findall(r'^@', text, re.M))
    for key, entry in zip(keys, re.split(r'^@\w+\{', text, flags=re.M)[1:]):
        assert entry.count('{') + 1 == entry.count('}'), f'{key}: braces'
        assert all(re.search(rf'^ *{f} *= *\{{', entry, re.M)
            for f in ('author', 'title', 'year')), f'{key}: author, title and year are needed'


@every_page
def test_citations(page):
    cited = re.findall(r'(?<![\w@./])-?@([a-z][\w-]*\d{4}\w*)', prose(markdown(read(NBS/page))))
    assert not set(cited) - set(bibliography()[1])


DRAWS = re.compile(r'\bplt\.(subplots|plot|imshow|hist|bar|scatter|show)\(')


def draws(cell):
    "Is a picture meant to stand below this cell?"
    text = source(cell)
    if directives(cell).keys() & {'export', 'hide'}: return False
    if DRAWS.search(text): return 'plt.close' not in text
    try: body = ast.parse('\n'.join(o for o in text.splitlines() if o[:1] not in '%!')).body
    except SyntaxError: return False
    last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    name = getattr(last, 'func', None)
    return isinstance(last, ast.Call) and (getattr(name, 'id', None) or getattr(name, 'attr', '')).endswith('_figure')


def pending(nb):
    "Does the page itself say that cells of it have not been run?"
    return re.search('not been run|not yet run', markdown(nb), re.I)


@every_page
def test_figures_are_saved(page):
    nb = read(NBS/page)
    for i, c in enumerate(nb['cells']):
        if directives(c).keys() & {'slow', 'data', 'gpu'} and pending(nb): continue
        if c['cell_type'] == 'code' and draws(c):
            assert any(k.startswith('image/') for d in shown(c)
                for k in d), f'cell {i} draws, but no figure is saved: run the notebook\n{source(c)}'


@every_page
def test_every_figure_says_what_it_shows(page):
    for c in code(read(NBS/page)):
        if 'hide' in directives(c) or not any(k.startswith('image/') for d in shown(c) for k in d): continue
        told = directives(c).get('fig-alt', '').strip('"')
        assert len(told.split()) > 6, f'`#| fig-alt: "…"` is needed, which says what is seen:\n{source(c)[:200]}'
        assert told != directives(c).get('fig-cap', '').strip('"'), 'a caption is read anyway: say what is seen'


@every_page
def test_outputs_are_saved_without_errors(page):
    nb = read(NBS/page)
    wrong = [source(c) for c in code(nb) for o in c['outputs'] if o['output_type'] == 'error']
    assert not wrong, wrong[0]
    assert pending(nb) or any(c['outputs'] for c in code(nb)) or not any(draws(c) or 'test_' in source(c)
        for c in code(nb)), (
        'never executed')


@every_page
def test_widgets_have_state_and_a_twin(page):
    nb = read(NBS/page)
    widget_state(nb)
    for i, c in enumerate(nb['cells']):
        if c['cell_type'] != 'code' or not any(VIEW in d for d in shown(c)): continue
        after = [d for o in nb['cells'][i:i+5] if o['cell_type'] == 'code' for d in shown(o) if VIEW not in d]
        assert any(k in d for d in after
            for k in ('image/png', 'image/svg+xml', 'text/html',
            'text/markdown')), f'cell {i}: no figure or table follows the widget, for readers without a kernel'


def test_a_broken_page_is_found(monkeypatch, tmp_path):
    "These checks can fail."
    cell = lambda kind, text, **kw: dict(cell_type=kind, source=text, metadata={}, **kw)
    view = dict(output_type='display_data', data={VIEW: {'model_id': 'a1'}}, metadata={})
    nb = dict(metadata={}, cells=[cell('markdown',
        '# Page\n[x](nowhere.ipynb) @fig-9, [@nobody1999]\n\n<a id="eq-1"></a>\n$$ a $$\n\n<a id="eq-1"></a>\n$$ b $$'),
        cell('code', 'plt.plot([1])', outputs=[]), cell('code', 'w', outputs=[view])])
    (tmp_path/'p.ipynb').write_text(json.dumps(nb)); monkeypatch.setattr(sys.modules[__name__], 'NBS', tmp_path)
    (tmp_path/'references.bib').write_text('')
    for check in (test_links, test_cross_references, test_citations, test_figures_are_saved,
            test_widgets_have_state_and_a_twin):
        with pytest.raises(AssertionError): getattr(check, '__wrapped__', check)('p.ipynb')
