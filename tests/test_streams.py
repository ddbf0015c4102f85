"Images made of nothing, anchored streams, the judge, and the choice among candidates."
import pytest, torch, torch.nn as nn
from udfc_nb import RECIPES, Recipe, compress
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.errors import ExampleInputError
from udfc_nb.graph.proof import find_sites
from udfc_nb.moments.images import KINDS, inputs_like
from udfc_nb.moments.streams import Stream
from udfc_nb.recipes.job import Job
from udfc_nb.run.candidates import ask, which_go
from udfc_nb.run.source import CHOSEN, Source
from udfc_nb.run.judge import Judge
from udfc_nb.run.sensitivity import site_curves
from nets import assert_unchanged, roughen, settle, snapshot

blank = torch.zeros(1, 1, 8, 8)


class Net(nn.Module):
    "Two convolutions with something between them."
    def __init__(self, between=nn.ReLU(), conv=nn.Conv2d, norm=nn.BatchNorm2d, c=16):
        super().__init__()
        self.a, self.norm, self.between, self.b = (conv(3, c, 3), norm(c) if norm else nn.Identity(), between,
            conv(c, 5, 3))
    def forward(self, x): return self.b(self.between(self.norm(self.a(x))))


def with_copies(net):
    "Half of the filters are copies of the others, norm included, and a little shorter for the criterion."
    net = roughen(net)
    with torch.no_grad():
        for t in (net.norm.weight, net.norm.bias): t[8:] = t[:8]
        for t, k in ((net.a.weight, .9), (net.a.bias, .9), (net.norm.running_mean, .9), (net.norm.running_var, .81)):
            t[8:] = k*t[:8]
        net.a.weight[:8] *= (.2/net.a.weight[:8].flatten(1).norm(dim=1))[:, None, None, None]
        net.a.weight[8:] = .9*net.a.weight[:8]
        net.norm.eps = 1e-12
    return net


class Crop(nn.Module):
    def forward(self, x): return x[:, :, 1:-1, 1:-1]


class Halved(nn.Module):
    def forward(self, x): return x.relu()/2


@pytest.mark.parametrize('recipe', ['best', 'fast'])
@pytest.mark.parametrize('between',
    [nn.ReLU(), nn.Hardswish(), Crop(), Halved(), nn.Upsample(scale_factor=2), nn.MaxPool2d(2, ceil_mode=True),
    nn.ReflectionPad2d(1)], ids=lambda m: type(m).__name__)
def test_copies_come_back(recipe, between):
    "Whatever stands between the layers."
    net, x = with_copies(Net(between)), torch.randn(4, 3, 12, 12)
    out = compress(net, x, pruning_ratio=.5, recipe=recipe)
    assert out.kept['a'].tolist() == list(range(8))
    with torch.no_grad(): assert (out.model(x)-net(x)).abs().max() < 1e-5*net(x).abs().max()


@pytest.mark.parametrize('conv,norm,shape',
    [(nn.Conv1d, nn.BatchNorm1d, (2, 3, 40)), (nn.Conv2d, nn.BatchNorm2d, (2, 3, 12, 12)),
    (nn.Conv3d, nn.BatchNorm3d, (2, 3, 8, 8, 8)), (nn.Conv2d, None, (2, 3, 12, 12))])
def test_any_dimension(conv, norm, shape):
    net = roughen(Net(nn.ReLU(), conv, norm))
    if norm: net.norm.running_mean.normal_(); net.norm.running_var.uniform_(.5, 2)
    before = snapshot(net)
    out = compress(net, torch.randn(shape), pruning_ratio=.3, weight_bits=4)
    assert_unchanged(net, before)
    assert 0 < out.report.judged['this'] <= 1 and len(out.report.candidates) >= 4
    tried = {name: J for name, J in out.report.candidates if not name.endswith(('not fitted', 'not rounded'))}
    assert len(tried) == 4 and min(tried.values()) <= tried['plain']


def test_streams_leave_everything_as_it_was():
    net = roughen(Net()); before = snapshot(net)
    graph, x = find_sites(net, torch.randn(2, 3, 12, 12)), torch.randn(6, 3, 12, 12)
    source = Source(net, graph, x[:2])
    first = Stream(net); y = first.run(x)
    again = Stream(net, anchors=first.anchors).run(x)
    assert torch.equal(y, again) and Judge(source, CHOSEN)(net) < 1e-6
    assert_unchanged(net, before)


def test_only_its_own_batch():
    "A network that takes no other number of images is judged on that number."
    class Fixed(Net):
        def forward(self, x): return super().forward(x.reshape(2, 3, 12, 12))
    out = compress(roughen(Fixed()), torch.randn(2, 3, 12, 12), pruning_ratio=.3)
    assert out.report.judged['this'] is not None


def test_pixels_that_are_not_normalised():
    "Grids reach as far as the example shows, or as `input_range` says."
    pixels = (torch.rand(4, 1, 8, 8)*255).round()
    for kw in (dict(example_inputs=pixels), dict(example_inputs=blank, input_range=(0., 255.))):
        q = compress(digits_net(), activation_bits=8, recipe='fast', **kw).model.conv1.input_quantizer
        assert 150 < (q.high-q.zero_point)*q.scale < 300


def test_own_images():
    "A caller's unlabelled images take the place of those made of nothing."
    net, (x, y) = digits_net(), digits('train')
    out = compress(net, blank, pruning_ratio=.6, images=x[:300])
    assert accuracy(out.model, *digits('test')) > 95 and out.report.judged['this'] < .2


def test_seeds():
    net = digits_net()
    a, b, c = (compress(net, blank, pruning_ratio=.5, weight_bits=4, seed=s) for s in (0, 0, 1))
    same = (lambda p, q: all(torch.equal(s, t)
        for s, t in zip(p.model.state_dict().values(), q.model.state_dict().values())))
    assert same(a, b) and not same(a, c) and c.report.settings['seed'] == 1


def test_budget_does_not_lose():
    "The choice is never judged worse than the even ratio, plain pruning and fast."
    net = digits_net()
    out = {r: compress(net, blank, pruning_ratio=.6, recipe=r) for r in ('best', 'fast', 'prune', 'paper')}
    J = {r: o.report.judged['this'] for r, o in out.items()}
    assert J['best'] < min(J['fast'], J['prune'], J['paper'])
    assert accuracy(out['best'].model, *digits('test')) > 97


def test_curves_rise():
    for c in site_curves(digits_net(), blank).values(): assert c[0] == 0 and c == sorted(c)


def test_inputs_of_every_kind():
    g = torch.Generator().manual_seed(0)
    for kind in KINDS:
        x = inputs_like({'image': torch.zeros(2, 5, 9, 7), 'time': torch.tensor([3, 7, 7]),
            'volume': torch.zeros(1, 1, 4, 5, 6)}, 6, kind, g)
        assert ([tuple(t.shape) for t in x.values()] == [(6, 5, 9, 7), (6,), (6, 1, 4, 5, 6)]
            and set(x['time'].tolist()) <= {3, 7})


def test_old_recipes_are_read():
    assert (Recipe(repair=True).repair == 'moments' and Recipe(repair=False).repair == 'none'
        and RECIPES['best'].metric == 'judged')


class Silent(nn.Module):
    "A network that returns classes, which no share of a variance can be taken of."
    def __init__(self): super().__init__(); self.net = roughen(Net())
    def forward(self, x): return self.net(x).mean((2, 3)).argmax(1)


def test_nothing_to_judge_by():
    "What cannot be judged is still fitted, and the report says so."
    out = compress(Silent().eval(), torch.randn(2, 3, 12, 12), pruning_ratio=.3)
    assert (out.report.judged == dict(this=None, plain=None) and 'unseen' in str(out.report.notes)
        and out.report.candidates[-1] == ('counted', None))


@pytest.mark.parametrize('kw,what',
    [(dict(images=torch.zeros(5, 1, 8, 8)), 'too few'), (dict(images=torch.full((9, 1, 8, 8), torch.nan)), 'finite'),
    (dict(images=torch.zeros(9, 3, 8, 8)), 'instead of'), (dict(seed=1.5), 'seed')])
def test_bad_images(kw, what):
    net = digits_net(); before = snapshot(net)
    with pytest.raises(ExampleInputError, match=what): compress(net, blank, pruning_ratio=.5, **kw)
    assert_unchanged(net, before)


class OneRow(nn.Module):
    "Takes a batch of one only."
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 5)
    def forward(self, x): return self.b(self.a(x.view(1, -1)).relu())


@pytest.mark.parametrize('recipe', ['best', 'fast'])
def test_one_row_tells_no_effect(recipe):
    "What varies with nothing is no reason: the norm chooses."
    net = OneRow().eval()
    with torch.no_grad(): net.a.weight[:8] *= .05
    assert compress(net, torch.randn(1, 10), layer_ratios={'a': .5},
        recipe=recipe).kept['a'].tolist() == list(range(8, 16))


@pytest.mark.parametrize('recipe', ['best', 'fast', 'paper'])
def test_copies_stay_in_their_group(recipe):
    "A reader of two groups: the load goes to the copy that the same group reads."
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1),
        nn.Flatten()).eval()
    with torch.no_grad():
        for j, k in ((1, .5), (2, .4), (4, 3.), (5, .5), (6, .4)):
            net[0].weight[j] = k*net[0].weight[0]
            net[0].bias[j] = k*net[0].bias[0]
        net[0].weight[[3, 7]] *= 3
    x = torch.randn(2, 3, 12, 12)
    out = compress(net, x, layer_ratios={'0': .5}, recipe=recipe)
    assert out.kept['0'].tolist() == [0, 3, 4, 7]
    with torch.no_grad(): assert (out.model(x)-net(x)).abs().max() < 1e-5*net(x).abs().max()


def test_copies_and_a_preparation():
    "What was looked up before a network is prepared is looked up again."
    net, x = with_copies(Net(nn.ReLU())), torch.randn(4, 3, 12, 12)
    for prepare in ((), ('equalise',)):
        out = compress(net, x, layer_ratios={'a': .5}, recipe=RECIPES['field'].but(criterion='effect', prepare=prepare))
        with torch.no_grad(): assert (out.model(x)-net(x)).abs().max() < 1e-4*net(x).abs().max()


def asked(net, x, ratio=.5, recipe='best'):
    "A run whose channels are selected, and a judge."
    job = Job(net, find_sites(net, x, verify=False), RECIPES[recipe])
    job.source = Source(net, job.graph, x)
    job.select(ratio, {})
    return job, Judge(job.source, CHOSEN)


def test_a_question_is_asked_of_a_real_cut():
    "Also where a reader is no module, which a question of single sites cannot change."
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.na, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)
            self.w, self.nw, self.c = nn.Parameter(torch.randn(8, 16, 3, 3)/12), nn.BatchNorm2d(8), nn.Conv2d(10, 4, 1)
        def forward(self, x):
            y = self.na(self.a(x)).relu()
            z = self.nw(nn.functional.conv2d(y, self.w, padding=1)).relu()
            return self.c(torch.cat([self.b(y), z], 1))
    net, x = settle(roughen(Own()), 2, 3, 12, 12), torch.randn(2, 3, 12, 12)
    job, judge = asked(net, x)
    cut = compress(net, x, pruning_ratio=.5, recipe=RECIPES['prune'].but(criterion='effect'), verify=False)
    said, J = ask(job, judge, job.kept)
    assert said == 'not fitted' and J == pytest.approx(judge(cut.model, job_left(cut), reestimate='pass'), rel=1e-3)
    assert job.source.net.w.shape == (8, 16, 3, 3) # the original is as it was


def job_left(out):
    "What is left of a norm's statistics, by what stays of the layer in front."
    left = {'na.running_mean': out.kept['a'], 'nw.running_mean': None}
    return lambda name: left.get(name)


def test_without_norms_a_question_fits():
    "Where no norm takes up what a cut changes, what is not fitted says little of what is."
    net = roughen(Net(nn.ReLU(), norm=None))
    job, judge = asked(net, torch.randn(2, 3, 12, 12))
    assert ask(job, judge, job.kept)[0] == 'not rounded'


def test_a_question_hands_copies_on():
    "Else what costs nothing would be asked as a loss."
    net, x = with_copies(Net(nn.ReLU())), torch.randn(4, 3, 12, 12)
    job, judge = asked(net, x)
    assert ask(job, judge, job.kept)[1] < 1e-9
    kept, how = which_go(job, judge, (), None, lambda kept: True)
    assert kept['a'][0].tolist() == list(range(8)) and how == ()


def test_too_many_channels_for_a_budget():
    "Where no other spending of a ratio is possible the even one stays, and it is said."
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 3)).eval()
    out = compress(net, torch.randn(2, 3, 12, 12), pruning_ratio=.95)
    assert len(out.kept['0']) == 1 and any('same share' in n for n in out.report.notes)


def test_own_criterion_is_plain_too():
    "What a caller changes in `best` holds for the plain network beside it."
    net = digits_net()
    out = compress(net, blank, pruning_ratio=.5, recipe=RECIPES['best'].but(criterion='l1'))
    assert 'by norm' not in str(out.report.candidates) and out.report.judged['this'] < out.report.judged['plain']
