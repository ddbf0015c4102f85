"""Which changes of the arithmetic does no test notice?

    python tests/mutants.py [N] [SEED] [MODULE ...]     some N places (40), as many in each module (all, or those named)

One operator, comparison or constant is changed at a time, in a copy of the package; the notebook that derives the
module is run, and then the tests that belong to it. What lives is printed. A mutant that lives is a missing test, or a
change that means nothing: a tolerance, an axis of a tensor that has one, a guard against numbers that do not come. Not
drawn are defaults, annotations and the texts of errors. A first sample, three a module with SEED 0, killed so far
(moments/refit and recipes/rounding, and what is short of three, are still to be run):

    moments/rectified          3 of 3
    paper/assumption           3 of 3
    paper/error                2 of 2
    paper/notation             3 of 3
    paper/paths                3 of 3
    paper/quantizer            3 of 3
    paper/reconstruction       3 of 3
    paper/solution             1 of 1
    recipes/budget             3 of 3
    all                        24 of 24
"""
import ast, copy, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
# module → its notebook, and the tests that belong to it
HAND = ['tests/test_arithmetic.py']
BITS = ['tests/test_bits.py', '-k', 'codes_in_range or flips or negative_variances']
GRAM = ['tests/test_properties.py', '-k', 'closed_form or superset or less_pruning or many_filters']
MODULES = {
    'paper/notation.py': ('paper/00_notation.ipynb', HAND),
    'paper/quantizer.py': ('paper/01_quantizer.ipynb', BITS),
    'paper/assumption.py': ('paper/02_assumption.ipynb', HAND),
    'paper/reconstruction.py': ('paper/03_reconstruction.ipynb', []),
    'paper/error.py': ('paper/04_error.ipynb', GRAM),
    'paper/solution.py': ('paper/05_solution.ipynb', GRAM),
    'paper/paths.py': ('paper/06_paths.ipynb', []),
    'moments/rectified.py': ('moments/20_rectified.ipynb', []),
    'moments/refit.py': ('moments/24_refit.ipynb', []),
    'recipes/rounding.py': ('recipes/33_rounding.ipynb', BITS),
    'recipes/budget.py': ('recipes/32_budget.ipynb', HAND)}
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq}
SECONDS = 600 # for one mutant; one that takes longer does not end, and is noticed


def changed(node):
    "The node as another one, or None."
    new = copy.deepcopy(node)
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER: new.op = OTHER[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER: new.ops[0] = OTHER[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub): return new.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        new.value = node.value+1 if isinstance(node.value, int) else 2*node.value or 1.
    else: return None
    return new


def places(node, way=()):
    "Where something can be changed, as ways from the top."
    if way and changed(node) is not None: yield way
    for field, value in ast.iter_fields(node):
        if field in ('defaults', 'kw_defaults', 'annotation', 'returns'): continue
        if isinstance(node, (ast.Raise, ast.JoinedStr)): continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                yield from places(child, way+((field, i if isinstance(value, list) else None),))


def mutate(text, way):
    "The source with one place changed, and what was changed."
    tree = ast.parse(text)
    node, above = tree, None
    for field, i in way:
        above = node, field, i
        node = getattr(node, field) if i is None else getattr(node, field)[i]
    new = changed(node)
    told = f'line {node.lineno}: {ast.unparse(node)} → {ast.unparse(new)}'
    parent, field, i = above
    if i is None: setattr(parent, field, new)
    else: getattr(parent, field)[i] = new
    return ast.unparse(tree), told


def run_notebook(path, module):
    """All cells that are not flagged, as `nbdev_test` runs them, but with the module instead of the cells that it is
    exported from; whatever is wrong is raised."""
    import importlib, json
    import matplotlib; matplotlib.use('agg')
    from IPython.core.inputtransformer2 import TransformerManager
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    os.chdir(path.parent)
    at = {'__name__': '__main__', 'get_ipython': lambda: type('Shell', (), dict(
        run_line_magic=lambda *a, **k: None, run_cell_magic=lambda *a, **k: None))()}
    at |= {k: v for k, v in vars(importlib.import_module(module)).items() if not k.startswith('__')}
    for cell in cells:
        if any(f'#| {flag}' in cell for flag in ('export', 'slow', 'data', 'gpu', 'eval: false')): continue
        exec(compile(TransformerManager().transform_cell(cell), path.name, 'exec'), at)


def survives(package, module, notebook, tests):
    "Runs in a process of its own: does nobody notice?"
    import pytest
    sys.path[:0] = [str(package), str(TOP/'tests')]
    import udfc_nb
    assert Path(udfc_nb.__file__).is_relative_to(package)
    try: run_notebook(TOP/'nbs'/notebook, 'udfc_nb.'+module.removesuffix('.py').replace('/', '.'))
    except BaseException as e: print(f'{type(e).__name__}', end=' ', file=sys.__stderr__); return False
    os.chdir(TOP)
    return not tests or pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *tests]) == 0


def noticed(package, module, notebook, tests):
    "Forked, so that torch is imported once; None: it did not end."
    if not (pid := os.fork()):
        quiet = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2): os.dup2(quiet, fd)
        code = 1
        try: code = 0 if survives(package, module, notebook, tests) else 1
        finally: os._exit(code)
    began = time.monotonic()
    while time.monotonic() < began+SECONDS:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status) != 0
        time.sleep(.1)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)


def main(n=40, seed=0, *named):
    import torch, torchvision, scipy, sklearn.datasets, matplotlib.pyplot, pytest, hypothesis # noqa: F401, once for all
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True # a file may change twice within a second
    texts = {m: (TOP/'udfc_nb'/m).read_text() for m in MODULES if not named or any(k in m for k in named)}
    gen, per = random.Random(int(seed)), -(-int(n)//len(texts))
    all_of = {m: list(places(ast.parse(text))) for m, text in texts.items()}
    drawn = [(m, way) for m, ways in all_of.items() for way in gen.sample(ways, min(per, len(ways)))]
    found = {m: [] for m in texts}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        shutil.copytree(TOP/'udfc_nb', package/'udfc_nb', ignore=shutil.ignore_patterns('__pycache__'))
        for m, way in drawn:
            if not found[m] and noticed(package, m, *MODULES[m]) is not False: raise SystemExit(f'{m} fails unchanged')
            text, told = mutate(texts[m], way)
            (package/'udfc_nb'/m).write_text(text)
            dead = noticed(package, m, *MODULES[m])
            (package/'udfc_nb'/m).write_text(texts[m])
            found[m].append(dead is not False)
            print('killed' if dead else 'endless' if dead is None else 'LIVES ', m, told, flush=True)
    for m, dead in found.items():
        if dead: print(f'{m:26} {sum(dead)} of {len(dead)}')
    killed, drawn_of = sum(map(sum, found.values())), sum(map(len, found.values()))
    print(f'all{"":23} {killed} of {drawn_of}, {sum(map(len, all_of.values()))} places')


if __name__ == '__main__': main(*sys.argv[1:])
