"The project's own files agree with one another: settings, package, constraints, site."
import ast, configparser, importlib, inspect, json, shutil, subprocess, sys
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
        else: yield from listed(entry.get('contents', ())) # a line between sections has none


def test_version(cfg):
    assert udfc_nb.__version__ == cfg['version']
    assert f"version: {cfg['version']}" in (TOP/'CITATION.cff').read_text()


def test_typed(): assert (TOP/'udfc_nb'/'py.typed').exists()


def stubs(body, of=udfc_nb):
    "(what a type checker sees, what is there) of every function in the stub, methods too."
    for node in body:
        if isinstance(node, ast.FunctionDef): yield node, getattr(of, node.name)
        if isinstance(node, ast.ClassDef):
            known = {'Report': 'run.report', 'Graph': 'graph.sites', 'Refined': 'training.refine'}.get(node.name)
            yield from stubs(node.body, getattr(importlib.import_module(f'udfc_nb.{known}') if known else udfc_nb,
                node.name))


def test_type_checkers_see_what_is_there():
    "Names, order and kinds of arguments, and which of them may be left out."
    body = ast.parse((TOP/'udfc_nb'/'__init__.pyi').read_text()).body
    for node, real in stubs(body):
        a, p = node.args, inspect.signature(real).parameters
        plain = [o.arg for o in a.posonlyargs+a.args]
        assert [(n, n in plain) for n in [*plain, *(o.arg for o in a.kwonlyargs),
            *([a.kwarg.arg] if a.kwarg else [])]] == [(n, o.kind is o.POSITIONAL_OR_KEYWORD)
            for n, o in p.items()], node.name
        free = {o.arg for o in (a.args[len(a.args)-len(a.defaults):] if a.defaults else [])} | {o.arg
            for o, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
        assert free == {n for n, o in p.items() if o.default is not o.empty}, node.name
    named = next(ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
    assert named == udfc_nb.__all__
    assert {n for n in vars(udfc_nb.Compressed) if n[0] != '_'
        and inspect.isfunction(vars(udfc_nb.Compressed)[n])} == {'save', 'export'}


@pytest.mark.skipif(shutil.which('pyright') is None, reason='pyright is not installed')
def test_pyright_accepts_a_script(tmp_path):
    (tmp_path/'pyrightconfig.json').write_text(json.dumps(dict(extraPaths=[str(TOP)])))
    (tmp_path/'use.py').write_text('''import torch
from udfc_nb import RECIPES, compress, find_sites, load
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
small = compress(net, torch.zeros(1, 3, 8, 8), pruning_ratio=.5, weight_bits=4, recipe=RECIPES["fast"],
    size_budget=None, layer_bits={"0": None})
size: int = small.save("small.safetensors")+small.export("small.onnx")
print(small.report.to_csv(), find_sites(net, torch.zeros(1, 3, 8, 8)).site("0"))
print(load("small.safetensors", net).training)
''')
    said = subprocess.run(['pyright', '--pythonpath', sys.executable, 'use.py'], cwd=tmp_path, capture_output=True,
        text=True)
    assert said.returncode == 0, said.stdout


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
