"Figures are functions of values: no value is too odd for them, and a control that is moved changes its picture."
import ast, base64, builtins, copy, json, math
from pathlib import Path
import matplotlib, pytest, torch
import matplotlib.pyplot as plt
from udfc_nb import UDFCError
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.app.plots import LINES, message_figure, new_figure, picture, style, styled, svg, touch
from udfc_nb.app.figures import (filter_directions, landscape_figure, loss_landscape, map_figure, offset,
    offset_figure, tradeoff_figure)
from udfc_nb.app.explore import explore_figure, pareto, sensitivity_figure
from udfc_nb.graph.proof import find_sites
from udfc_nb.app.structure import lanes, structure_figure, structure_rows

NAN, INF = float('nan'), float('inf')


def bar(height=1., colour='grey', frame=True):
    fig, ax = new_figure()
    ax.bar([0], [height], color=colour)
    if not frame: ax.set_axis_off()
    return fig


FIGURES = dict(
    offset=lambda: offset_figure({'a': (torch.randn(4, 3), torch.randn(4, 3)), 'b': (torch.zeros(2), torch.zeros(2))}),
    offset_of_nothing=lambda: offset_figure({'a': (torch.zeros(0), torch.zeros(0))}),
    offset_from_nothing=lambda: offset_figure({'a': (torch.zeros(3), torch.ones(3))}),
    offset_with_gradient=lambda: offset_figure({'a': (torch.ones(3, requires_grad=True), torch.ones(3))}),
    landscape=lambda: landscape_figure({'one': torch.rand(5, 5)}),
    landscape_flat=lambda: landscape_figure({'zero': torch.zeros(3, 3), 'one': torch.ones(3, 3)}),
    landscape_odd=lambda: landscape_figure({'nan': torch.full((3, 3), NAN), 'inf': torch.full((3, 3), INF),
    'huge': torch.full((3, 3), 1e30)}),
    ratio_bits=lambda: map_figure([dict(ratio=r, bits=b, accuracy=50*r+b) for r in (0, .5) for b in (2, 4, 32)]),
    ratio_bits_holes=lambda: map_figure([dict(ratio=0, bits=2, accuracy=1.), dict(ratio=.5, bits=4, accuracy=NAN)]),
    ratio_bits_nothing=lambda: map_figure([]),
    tradeoff=lambda: tradeoff_figure([dict(label=l, bytes=1000*i, accuracy=90+i) for i in range(1, 4) for l in 'pq'],
    95.),
    tradeoff_nothing=lambda: tradeoff_figure([]),
    tradeoff_odd=lambda: tradeoff_figure([dict(label=str(i), bytes=0, accuracy=NAN) for i in range(9)]),
    explore=lambda: explore_figure([dict(ratio=r, bits=b, unexplained=10**-b, bytes=1000*b) for r in (0., .5)
    for b in (4, 8)]),
    explore_odd=lambda: explore_figure([dict(ratio=0., bits=3.5, unexplained=u, bytes=b)
    for u, b in ((0., 1), (1., 10**9), (None, 5))]),
    explore_nothing=lambda: explore_figure([dict(ratio=0., bits=4, unexplained=None, bytes=5)]),
    sensitivity=lambda: sensitivity_figure([dict(layer=l, ratio=r, bits=b, unexplained=.1) for l in 'ab'
    for r, b in ((.5, None), (None, 4))]),
    sensitivity_odd=lambda: sensitivity_figure([dict(layer='a', ratio=None, bits=4, unexplained=0.)]),
    structure_of_nothing=lambda: structure_figure([]),
    message=lambda: message_figure('an odd value: $x_{, <b>, \n' + 'long '*60),
)


@pytest.mark.parametrize('make', FIGURES.values(), ids=FIGURES)
@pytest.mark.filterwarnings('error')
def test_figures_of_odd_values(make):
    before = dict(matplotlib.rcParams)
    out = svg(make())
    assert out.startswith(b'<?xml') and len(out) > 1000
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before


def test_axes_say_what_they_show():
    "Every axis with ticks has a label."
    for name, make in FIGURES.items():
        for ax in make().axes:
            if (ax.axison and ax.get_label() != '<colorbar>' and not name.startswith(('structure', 'sensitivity'))
                    and 'offset' not in name and 'landscape' not in name):
                assert ax.get_xlabel() and ax.get_ylabel(), name


def test_svg_is_the_same_every_time():
    assert svg(bar()) == svg(bar()) != svg(bar(2.))


def test_picture_takes_the_colours_of_its_page():
    shown = picture(bar(colour='black'), 'one "bar" <b>')
    assert 'aria-label="one &quot;bar&quot; &lt;b&gt;"' in shown and 'currentColor' in shown and '<text' in shown
    assert ('#000000' not in shown and '#ffffff;' not in shown.replace('var(--jp-layout-color1, #ffffff)', '')
        and shown.startswith('<div') and shown.endswith('</div>'))


class Dense(torch.nn.Module):
    "Everything reads everything before."
    def __init__(self, n=6):
        super().__init__()
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(2*(i+1), 2, 1) for i in range(n)])
    def forward(self, x):
        for c in self.convs: x = torch.cat([x, c(x).relu()], 1)
        return x


class Gate(torch.nn.Module):
    "Squeeze and excite: two ways from one value, which meet in a product."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = torch.nn.Conv2d(2, 8, 3), torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)
    def forward(self, x): x = self.a(x); return x*self.c(self.b(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def test_structure_of_other_networks():
    rows = structure_rows(find_sites(Gate().eval(), torch.zeros(1, 2, 6, 6)))
    assert [(r['layer'] or r['join'], r['reads']) for r in rows] == [('a', []), ('b', [0]), ('c', [1]), ('×', [0, 2])]
    dense = structure_rows(find_sites(Dense().eval(), torch.zeros(1, 2, 4, 4)))
    assert sum(r['join'] == '‖' for r in dense) == 6 and max(lanes(dense)) == 1


@pytest.mark.parametrize('seed', range(5))
def test_lanes_never_lie_upon_each_other(seed):
    gen = torch.Generator().manual_seed(seed)
    rows = [dict(reads=sorted(set(torch.randint(0, i, (torch.randint(0, 4, (1,), generator=gen).item(),),
        generator=gen).tolist())) if i else []) for i in range(40)]
    lane, last = lanes(rows), {s: i for i, r in enumerate(rows) for s in r['reads']}
    for i in range(40):
        for j in range(i+1, last.get(i, i)): assert lane[j] != lane[i], 'a row stands on the line of another value'


def test_pareto_front_is_what_nothing_beats():
    gen = torch.Generator().manual_seed(0)
    rows = [dict(bytes=int(b), unexplained=float(u))
        for b, u in zip(torch.randint(1, 30, (200,), generator=gen), torch.rand(200, generator=gen).mul(20).round()/20)]
    beats = (lambda a, b: a['bytes'] <= b['bytes'] and a['unexplained'] <= b['unexplained']
        and (a['bytes'], a['unexplained']) != (b['bytes'], b['unexplained']))
    front = pareto(rows)
    assert {(r['bytes'], r['unexplained']) for r in front} == {(r['bytes'], r['unexplained']) for r in rows
        if not any(beats(o, r) for o in rows)}
    assert [r['bytes'] for r in front] == sorted({r['bytes'] for r in front})


def test_style_stays_inside():
    before = dict(matplotlib.rcParams)
    with style(): assert not matplotlib.rcParams['axes.spines.top']
    with pytest.raises(ZeroDivisionError): styled(lambda: 1/0)()
    assert dict(matplotlib.rcParams) == before
    assert len({(l['color'], l['linestyle'], l['marker']) for l in LINES}) == len({l['marker']
        for l in LINES}) == len(LINES)


def test_touch_draws_what_its_controls_say():
    box = touch(bar, height=(0, 10), colour=['grey', 'black'], frame=True)
    # the function's own defaults
    assert [box.controls[k].value for k in ('height', 'colour', 'frame')] == [1, 'grey', True]
    assert box.image.value == svg(bar(1))
    for name, value in (('height', 7), ('colour', 'black'), ('frame', False)):
        before = box.image.value
        box.controls[name].value = value
        assert box.image.value != before
    assert box.image.value == svg(bar(7, 'black', False))


def test_touch_takes_a_widget_and_ranges():
    import ipywidgets as w
    mine = w.IntText(value=3)
    box = touch(bar, height=mine)
    mine.value = 4
    assert box.image.value == svg(bar(4))
    box = touch(bar, height=(0., 1., .25))
    assert (box.controls['height'].min, box.controls['height'].max, box.controls['height'].step) == (0., 1., .25)


def test_touch_survives_a_value_that_cannot_be_drawn():
    def f(n=1): return bar(1/n)
    box = touch(f, n=(-2, 2))
    box.controls['n'].value = 0
    assert box.image.value == svg(message_figure('ZeroDivisionError: division by zero'))
    box.controls['n'].value = 2
    assert box.image.value == svg(bar(.5))
    with pytest.raises(ZeroDivisionError): touch(lambda n: bar(1/n), n=[0]) # broken from the start


def test_touch_refuses_what_is_no_range():
    with pytest.raises(UDFCError, match='height: no control'): touch(bar, height=('low', 'high'))


def test_touch_without_widgets_says_what_to_do(monkeypatch):
    real = builtins.__import__
    def no_widgets(name, *args, **kwargs):
        if name == 'ipywidgets': raise ModuleNotFoundError("No module named 'ipywidgets'", name=name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', no_widgets)
    with pytest.raises(UDFCError, match='ipywidgets is not installed(.|\n)*pip install'): touch(bar, height=(0, 1))


def test_offset():
    a = torch.tensor([3., 4.])
    assert offset(a, 2*a) == pytest.approx(1) and offset(a, a) == offset(0*a, 0*a) == 0 and offset(0*a, a) == math.inf


def test_landscape_leaves_the_network_alone():
    model, (x, y) = digits_net().train(), digits('test')
    before, mode = copy.deepcopy(model.state_dict()), model.training
    plane = loss_landscape(model, x[:20], y[:20], extent=.5, points=3)
    assert plane.shape == (3, 3) and plane.isfinite().all() and model.training == mode
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # the same seed, the same plane
    assert torch.equal(plane, loss_landscape(model, x[:20], y[:20], extent=.5, points=3))
    assert not torch.equal(plane, loss_landscape(model, x[:20], y[:20], extent=.5, points=3, seed=1))
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


def test_directions_of_dead_filters():
    layer = torch.nn.Conv2d(2, 3, 3)
    with torch.no_grad(): layer.weight[1] = 0
    (d,) = filter_directions(layer, 1)
    assert (torch.allclose(d['weight'].flatten(1).norm(dim=1), layer.weight.detach().flatten(1).norm(dim=1))
        and not d['bias'].any())


# What a control calls is called long after its cell: when the notebook has run to its end, every name must still mean
# what it meant.

PAGES = sorted(p for p in (Path(__file__).resolve().parents[1]/'nbs').rglob('*.ipynb')
    if 'touch(' in p.read_text() and p.stem != '80_plots' and not any(o[0] in '._' for o in p.parts[-2:]))


def names_of(node):
    "Names that are read below a node, without those that it binds itself."
    read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {a.arg
        for n in ast.walk(node) if isinstance(n, ast.arguments) for a in n.args+n.kwonlyargs}
    return read-own


def bound(node):
    "Names that a statement of a cell gives a meaning."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return {node.name}
    inside = {m for n in ast.walk(node)
        if isinstance(n, (ast.Lambda, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)) for m in ast.walk(n)}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        and n not in inside}


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_later_cells_leave_a_figure_its_names(page):
    code = [''.join(c['source']) for c in json.loads(page.read_text())['cells'] if c['cell_type'] == 'code']
    cells = [ast.parse('\n'.join(l for l in c.splitlines() if l[:1] not in '%!')).body for c in code]
    touched = [(i, n.args[0].id) for i, cell in enumerate(cells) for s in cell for n in ast.walk(s)
               if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'touch' and isinstance(n.args[0], ast.Name)]
    assert touched, 'no figure that answers'
    for at, name in touched:
        meaning = {n: s for cell in cells[:at+1] for s in cell for n in bound(s)}
        needed, todo = set(), [name]
        while todo:
            if (n := todo.pop()) in needed or n not in meaning: continue
            needed.add(n)
            s = meaning[n]
            if isinstance(s, ast.FunctionDef) or isinstance(getattr(s, 'value', None), ast.Lambda): todo += names_of(s)
        again = {n for cell in cells[at+1:] for s in cell for n in bound(s)}
        assert not needed & again, f'{name} needs {sorted(needed & again)}, which a later cell binds anew'


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_a_saved_picture_stands_behind_every_control(page):
    "The view is saved with its state, and within two cells a figure that needs no kernel."
    nb = json.loads(page.read_text())
    state = nb['metadata'].get('widgets', {}).get('application/vnd.jupyter.widget-state+json', {}).get('state', {})
    cells = [c for c in nb['cells'] if c['cell_type'] == 'code']
    data = [[o.get('data', {}) for o in c['outputs']] for c in cells]
    for i, c in enumerate(cells):
        if 'touch(' not in ''.join(c['source']): continue
        views = [d['application/vnd.jupyter.widget-view+json']['model_id'] for d in data[i]
            if 'application/vnd.jupyter.widget-view+json' in d]
        assert views and all(v in state for v in views), 'the widget is not saved'
        images = [m for m in state.values() if m['model_name'] == 'ImageModel']
        saved = [base64.b64decode(b['data']) for m in images for b in m.get('buffers', []) if b['path'] == ['value']]
        assert saved and len(saved) == len(images) and all(saved)
        assert not any(b'height="115.2pt"' in p for p in saved), 'a message was saved in the place of the picture'
        assert any(k.startswith('image/') for later in data[i+1:i+3] for d in later
            for k in d), 'no picture stands behind it'


def test_style_of_a_notebook():
    from udfc_nb.app.plots import use_style
    with matplotlib.rc_context():
        use_style() # outside of a notebook: the style alone
        assert not matplotlib.rcParams['axes.spines.top']
        assert matplotlib.rcParams['axes.grid'] == matplotlib.rcParamsDefault['axes.grid'] # images keep no lines across
