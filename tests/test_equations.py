"Displayed equations of the book: numbered, referred to by number, and computed beside."
import json, re
from collections import Counter
import pytest
from books import TOP, notebooks

NBS = TOP/'nbs'
# a place to which a reference can point, and behind it the equation with its number, which Quarto, Jupyter and GitHub
# all show at its right
EQUATION = re.compile(r'(?:<a id="(eq-[\w-]+)"></a>\n)?\$\$(.+?)(?: \\tag\{([^}]+)\} )?\$\$', re.S)


def cells(page): return [(c['cell_type'], ''.join(c['source'])) for c in json.loads((NBS/page).read_text())['cells']]
def equations(page): return [m for kind, text in cells(page) if kind == 'markdown' for m in EQUATION.finditer(text)]
def labels(page): return [m[1] for m in equations(page) if m[1]]


def numbers(page): return [m[3] for m in equations(page) if m[3]]


# pages that are not done yet: a line may go, none may come
TODO = {'data/07_digits.ipynb', 'data/08_networks.ipynb', 'files/60_format.ipynb', 'files/64_export.ipynb',
    'files/65_measure.ipynb', 'moments/26_streams.ipynb', 'paper/06_paths.ipynb', 'peers/40_merging.ipynb',
    'peers/41_equalisation.ipynb', 'peers/42_relatives.ipynb', 'run/51_judge.ipynb', 'recipes/38_fit.ipynb',
    'run/53_sensitivity.ipynb', 'tutorials/tables.ipynb'}
PAGES = [p for f in notebooks(NBS) if equations(p := f.relative_to(NBS).as_posix()) and p not in TODO]
# the paper's: their equations bear its numbers, letters between; 06 is about what the paper leaves open
PAPER = [p for p in PAGES if re.match('paper/0[0-5]', p)]


def test_the_pages_are_found():
    assert len(PAPER) == 6 and len(PAGES) > 20 and sum(len(equations(p)) for p in PAGES) > 100


@pytest.mark.parametrize('page', PAGES)
def test_every_equation_has_a_place_and_a_number(page):
    bare = [m[2].strip()[:60] for m in equations(page) if not (m[1] and m[3])]
    assert not bare, f'without a place or a number: {bare}'
    assert len(set(labels(page))) == len(labels(page))
    if page in PAPER: assert [f'eq-{n}' for n in numbers(page)] == labels(page)


def test_no_number_is_given_twice():
    given = Counter(n for p in PAGES for n in numbers(p))
    assert {n for n, k in given.items() if k > 1} == set()


@pytest.mark.parametrize('page', [p.relative_to(NBS).as_posix() for p in notebooks(NBS)])
def test_references_name_the_number_of_their_equation(page):
    text = '\n'.join(t for kind, t in cells(page) if kind == 'markdown')
    for said, path, place in re.findall(r'\[[Ee]q\. ([^]]+)\]\(([^)#]*)#(eq-[\w-]+)\)', text):
        there = (NBS/page).parent/path if path else NBS/page
        named = dict(zip(labels(there), numbers(there)))
        assert named.get(place) == said, f'{place} is not the place of eq. {said}'
    old = re.findall(r'\{#eq-[\w-]+\}|(?<![\w.])@eq-[\w-]+', text)
    assert not old, f'{old} are read by Quarto only: write <a id="eq-1"></a>, \\tag{{1}} and [eq. 1](#eq-1)'


@pytest.mark.parametrize('page', PAGES)
def test_every_equation_is_computed_beside(page):
    "The next cell is code, and a check stands within two cells."
    found = cells(page)
    for i, (kind, text) in enumerate(found):
        if kind == 'markdown' and (m := EQUATION.search(text)):
            after = found[i+1:i+5]
            assert after and after[0][0] == 'code', f'no cell computes {m[2][:60]}'
            assert any(re.search(r'\btest_\w+\(|\bassert\b', t) for k, t in after
                if k == 'code'), f'nothing checks {m[2][:60]}'
