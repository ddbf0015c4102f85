"Figures are functions of values: no value is too odd for them, and a control that is moved changes its picture."
import builtins, copy, math
import matplotlib, pytest, torch
import matplotlib.pyplot as plt
from udfc_nb import UDFCError
from udfc_nb.digits import digits, digits_net
from udfc_nb.plots import (LINES, filter_directions, landscape_figure, layer_errors, loss_landscape, map_figure, message_figure, new_figure,
                           offset, offset_figure, residual_figure, style, styled, svg, touch, tradeoff_figure)
from udfc_nb.report import Report

NAN, INF = float('nan'), float('inf')
REPORT = Report([dict(layer='a', error=.2), dict(layer='b', error=None)], {}, {}, '0')


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
    landscape_odd=lambda: landscape_figure({'nan': torch.full((3, 3), NAN), 'inf': torch.full((3, 3), INF), 'huge': torch.full((3, 3), 1e30)}),
    ratio_bits=lambda: map_figure([dict(ratio=r, bits=b, accuracy=50*r+b) for r in (0, .5) for b in (2, 4, 32)]),
    ratio_bits_holes=lambda: map_figure([dict(ratio=0, bits=2, accuracy=1.), dict(ratio=.5, bits=4, accuracy=NAN)]),
    ratio_bits_nothing=lambda: map_figure([]),
    residual=lambda: residual_figure(REPORT, {'a': .1, 'c': 3.}),
    residual_nothing=lambda: residual_figure({}, {}),
    residual_odd=lambda: residual_figure({'a': NAN, 'b': INF, 'c': 0.}, {'a': 1., 'b': .1, 'c': 0.}),
    tradeoff=lambda: tradeoff_figure([dict(label=l, bytes=1000*i, accuracy=90+i) for i in range(1, 4) for l in 'pq'], 95.),
    tradeoff_nothing=lambda: tradeoff_figure([]),
    tradeoff_odd=lambda: tradeoff_figure([dict(label=str(i), bytes=0, accuracy=NAN) for i in range(9)]),
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
            if ax.axison and ax.get_label() != '<colorbar>' and 'offset' not in name and 'residual' not in name and 'landscape' not in name:
                assert ax.get_xlabel() and ax.get_ylabel(), name


def test_svg_is_the_same_every_time():
    assert svg(bar()) == svg(bar()) != svg(bar(2.))


def test_style_stays_inside():
    before = dict(matplotlib.rcParams)
    with style(): assert not matplotlib.rcParams['axes.spines.top']
    with pytest.raises(ZeroDivisionError): styled(lambda: 1/0)()
    assert dict(matplotlib.rcParams) == before
    assert len({(l['color'], l['linestyle'], l['marker']) for l in LINES}) == len({l['marker'] for l in LINES}) == len(LINES)


def test_touch_draws_what_its_controls_say():
    box = touch(bar, height=(0, 10), colour=['grey', 'black'], frame=True)
    assert [box.controls[k].value for k in ('height', 'colour', 'frame')] == [1, 'grey', True] # the function's own defaults
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


def test_layer_errors_of_a_report(): assert layer_errors(REPORT) == {'a': .2}


def test_landscape_leaves_the_network_alone():
    model, (x, y) = digits_net().train(), digits('test')
    before, mode = copy.deepcopy(model.state_dict()), model.training
    plane = loss_landscape(model, x[:20], y[:20], extent=.5, points=3)
    assert plane.shape == (3, 3) and plane.isfinite().all() and model.training == mode
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(plane, loss_landscape(model, x[:20], y[:20], extent=.5, points=3)) # the same seed, the same plane
    assert not torch.equal(plane, loss_landscape(model, x[:20], y[:20], extent=.5, points=3, seed=1))
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()


def test_directions_of_dead_filters():
    layer = torch.nn.Conv2d(2, 3, 3)
    with torch.no_grad(): layer.weight[1] = 0
    (d,) = filter_directions(layer, 1)
    assert torch.allclose(d['weight'].flatten(1).norm(dim=1), layer.weight.detach().flatten(1).norm(dim=1)) and not d['bias'].any()
