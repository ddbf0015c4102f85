"The project's own files agree with one another: settings, package, constraints, site."
import configparser
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import udfc_nb

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def cfg():
    config = configparser.ConfigParser(delimiters=['='])
    config.read(TOP/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def notebooks():
    "All notebooks of the book, relative to nbs/, without what nbdev ignores."
    paths = (p.relative_to(TOP/'nbs') for p in (TOP/'nbs').rglob('*.ipynb'))
    return {p.as_posix() for p in paths if not any(part[0] in '._' for part in p.parts)}


def listed(contents):
    "The pages named in a sidebar, sections and globs unfolded."
    for entry in contents:
        if isinstance(entry, str): yield entry
        elif 'auto' in entry: yield from (p.relative_to(TOP/'nbs').as_posix() for p in (TOP/'nbs').glob(entry['auto']))
        else: yield from listed(entry['contents'])


def test_version(cfg):
    assert udfc_nb.__version__ == cfg['version']
    assert f"version: {cfg['version']}" in (TOP/'CITATION.cff').read_text()


def test_typed(): assert (TOP/'udfc_nb'/'py.typed').exists()


@pytest.mark.parametrize('key', ['requirements', 'dev_requirements', 'onnx_requirements', 'widgets_requirements'])
def test_constraints_fix_every_requirement(cfg, key):
    lines = [o for o in (TOP/'constraints.txt').read_text().splitlines() if o and o[0] != '#']
    pins = dict(line.split('==') for line in lines)
    pins = {canonicalize_name(k): v for k, v in pins.items()}
    for req in map(Requirement, cfg[key].split()):
        pin = pins.get(canonicalize_name(req.name))
        assert pin is not None, f'{req.name} has no line in constraints.txt'
        assert pin in req.specifier, f'{req} excludes the {pin} of constraints.txt'


def test_one_quarto_file():
    link = TOP/'nbs'/'_quarto.yml'
    assert link.is_symlink() and link.resolve() == TOP/'_quarto.yml'


def test_sidebar_lists_every_notebook():
    site = yaml.safe_load((TOP/'_quarto.yml').read_text())['website']
    pages = list(listed(site['sidebar']['contents']))
    assert len(pages) == len(set(pages)), 'a page is listed twice'
    assert set(pages) == notebooks()
    assert {o['href'] for o in site['navbar']['left']} <= set(pages)
