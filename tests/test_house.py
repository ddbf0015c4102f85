"The house: which chapter may import which, how long a module and a line may be."
import ast
from pathlib import Path
from books import code, notebooks, read, source

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP/'udfc_nb'
# a module may import only from its own chapter and those before it
CHAPTERS = 'errors caller writing paper data graph moments peers recipes run files training app'.split()

# What a user calls on a result, and a size in bytes: imported when it is called.
UPWARD = {('run.result', 'files.saving'), ('run.result', 'files.export'), ('run.compress', 'files.joint')}
# What is not done yet. A line may go; none may come.
LONG_MODULES = {'files.measure', 'files.editor', 'training.state'}
LONG_LINES = {}


def modules():
    "Name of a module without the package's → its path."
    paths = (p for p in PACKAGE.rglob('*.py') if p.name not in ('__init__.py', '__main__.py', '_modidx.py'))
    return {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts): p for p in paths}


def imports(tree, name, everywhere):
    "The modules that one imports: at its top, or anywhere in it."
    known = modules()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import): found = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ['udfc_nb', *name.split('.')[:-1]]
            base = '.'.join(filter(None, (*(above[:len(above)+1-node.level] if node.level else ()), node.module)))
            found = [base, *(f'{base}.{a.name}' for a in node.names)]
        else: continue
        yield from (f.removeprefix('udfc_nb.') for f in found if f.removeprefix('udfc_nb.') in known and f != 'udfc_nb')


def edges(everywhere):
    trees = {name: ast.parse(path.read_text()) for name, path in modules().items()}
    return {(name, other) for name, tree in trees.items() for other in imports(tree, name, everywhere)}


def upward(found):
    "The imports that lead to a later chapter."
    rank = lambda name: CHAPTERS.index(name.split('.')[0])
    return {(a, b) for a, b in found if rank(a) < rank(b)}


def cycle(found):
    "A way from a module back to itself, or nothing."
    after = {}
    for a, b in found: after.setdefault(a, set()).add(b)
    done = set()
    def walk(name, way):
        if name in way: return way[way.index(name):]+[name]
        if name in done: return []
        back = next((w for b in sorted(after.get(name, ())) if (w := walk(b, way+[name]))), [])
        done.add(name)
        return back
    return next((w for name in sorted(after) if (w := walk(name, []))), [])


def test_every_module_stands_in_a_chapter(): assert {n.split('.')[0] for n in modules()} == set(CHAPTERS)


def test_no_import_leads_to_a_later_chapter():
    "Not even one inside of a function."
    assert upward(edges(True)) == UPWARD


def test_imports_have_no_cycle(): assert cycle(edges(False)) == []


def test_these_tests_can_fail():
    tree = ast.parse('from ..app.cli import main\n'
        'def f():\n    import udfc_nb.training.refine\n    from . import quantizer')
    assert set(imports(tree, 'paper.notation', True)) == {'app.cli', 'training.refine', 'paper.quantizer'}
    assert set(imports(tree, 'paper.notation', False)) == {'app.cli'}
    assert upward({('paper.notation', 'app.cli'), ('app.cli', 'paper.notation'), ('app.cli', 'app.info')}) == {
        ('paper.notation', 'app.cli')}
    assert cycle({('a', 'b'), ('b', 'c'), ('c', 'b')}) == ['b', 'c', 'b'] and cycle({('a', 'b'), ('a', 'c')}) == []


def test_modules_are_short():
    long = {name for name, path in modules().items() if len(path.read_text().splitlines()) > 200}
    assert long <= LONG_MODULES and LONG_MODULES-long == set(), 'one is too long, or is done: take it off the list'


def long_lines(text):
    "Without what has to be one line: what quarto reads about a cell, and the imports and `__all__` that nbdev writes."
    return [o for o in text.splitlines() if len(o) > 120 and not o.startswith(('#|', '__all__', 'from ', 'import '))]


def test_lines_are_short():
    "120 characters, in the package, in the cells of notebooks, and in tests and tools."
    # the first line of a module is the sentence in its notebook's title
    texts = {path.relative_to(TOP).as_posix(): path.read_text().partition('\n')[2] for path in modules().values()}
    scripts = [p for f in ('tests/*.py', 'zoo/*.py', 'fuzz/*.py', '.ci/*') for p in TOP.glob(f)]
    texts |= {p.relative_to(TOP).as_posix(): p.read_text() for p in scripts}
    texts |= {p.relative_to(TOP).as_posix(): '\n'.join(source(c) for c in code(read(p))) for p in notebooks(TOP/'nbs')}
    found = {name: n for name, text in texts.items() if (n := len(long_lines(text)))}
    assert {n: c for n, c in found.items() if c > LONG_LINES.get(n, 0)} == {}
    assert set(LONG_LINES) <= set(found), 'these are done: take them off the list'
