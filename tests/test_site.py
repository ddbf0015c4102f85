"""The site as nbdev hands it to quarto, which need not be installed: pages, links, labels, references, figures,
widgets.
`nbdev_proc_nbs` runs in a copy of the project, with a `quarto` on PATH that does nothing."""
import ast, os, re, shutil, subprocess, sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml
from books import TOP, VIEW, code, directives, markdown, notebooks, read, shown, source, view_ids, widget_state

NBS = TOP/'nbs'
PAGES = [p.relative_to(NBS).as_posix() for p in notebooks(NBS)]
every_page = pytest.mark.parametrize('page', PAGES)


# ---- what quarto is given

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder `_proc` of a copy of the project."
    top = tmp_path_factory.mktemp('site')/'udfc_nb'
    shutil.copytree(TOP, top, symlinks=True,
        ignore=shutil.ignore_patterns('.git', '.venv', '.*cache*', '_proc', '_docs', '__pycache__', '.hypothesis',
        '*.egg-info', 'build', 'dist'))
    (info := top/'udfc_nb-0.dist-info').mkdir() # nbdev makes links to what is registered as installed
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: udfc_nb\nVersion: 0\n')
    (info/'entry_points.txt').write_text('[nbdev]\nudfc_nb = udfc_nb._modidx:d\n')
    (bin := top.parent/'bin').mkdir(); (bin/'quarto').write_text('#!/bin/sh\nexit 0\n'); (bin/'quarto').chmod(0o755)
    own = Path(sys.executable).parent
    env = dict(os.environ, PATH=os.pathsep.join(map(str, [bin, own, os.environ['PATH']])), PYTHONPATH=str(top),
        OMP_NUM_THREADS='1', MPLBACKEND='agg')
    done = subprocess.run([own/'nbdev_proc_nbs', '--n_workers', '2'], cwd=top, env=env, capture_output=True, text=True,
        timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return top/'_proc'


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


def test_widgets_reach_the_site(site):
    pages = [p for p in notebooks(site) if view_ids(read(p))]
    assert pages
    for p in pages: widget_state(read(p))


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
    return {slug(t) for t in re.findall(r'^#+ +(.*?)(?: *\{.*\})?$', text, re.M)} | set(re.findall(r'\{#([\w-]+)',
        text)) | set(re.findall(r'<a id="([\w-]+)"', text)) | {d['label'] for d in map(directives, code(nb)) if 'label' in d}


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
    return (re.findall(r'(?:\{#|<a id=")((?:eq|fig|tbl|sec)-[\w-]+)', text) + [d['label'] for d in map(directives, code(nb))
        if 'label' in d])


CROSS = r'(?<![\w@.])@((?:eq|fig|tbl|sec)-[\w-]*\w)'


@every_page
def test_cross_references(page):
    "Labels are numbered within a page, so a reference must find its label there, once."
    nb = read(NBS/page)
    twice = [n for n, k in Counter(labels(nb)).items() if k > 1]
    assert not twice, f'{twice} stand there more than once'
    lost = set(re.findall(CROSS, prose(markdown(nb)))) - set(labels(nb))
    assert not lost, f'{sorted(lost)} are referred to, but have no label on this page'
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
    import json
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
