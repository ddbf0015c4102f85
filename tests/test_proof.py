"""The proof of a cut: sizes that a forward computes from a channel count, or has as a number, are found by running
the cut network."""
import numpy as np, pytest, torch, torch.nn as nn, torch.nn.functional as F
from udfc_nb.graph.proof import find_sites, prove, sites_of
from udfc_nb.graph.prover import choose, culprits
from udfc_nb.graph.beside import Masked, again, difference
from udfc_nb.graph.copies import copied, resized, twin
from udfc_nb.graph.record import record


# ---- ten baked sizes

def conv(i, o): return nn.Conv2d(i, o, 3, padding=1)
def literal_view(x): return x.view(len(x), 16, -1).mean(2)[:, :, None, None]*x
def literal_slice(x): return torch.cat([x[:, 6:], x[:, :6]], 1)
def scaled(x): return x*x.shape[1]**-.5
def condition(x): return x*2 if x.shape[1] == 16 else x
def asserted(x): torch._assert(x.shape[1] == 16, 'sixteen channels'); return x
def expanded(x): return x+x.new_zeros(1).expand(16)[:, None, None]
def literal_split(x): a, b = torch.split(x, [6, 10], 1); return torch.cat([b, a], 1)
def of_module(x, m): return x.reshape(len(x), m.width, x.shape[2:].numel()).reshape(len(x), -1, *x.shape[2:]).relu()
def indexed(x, m): return x[:, m.order]
def literal_permute(x): return x.flatten(2).permute(0, 2, 1).reshape(len(x), -1, 16).permute(0, 2, 1).reshape(x.shape)

BAKED = dict(literal_view=literal_view, literal_slice=literal_slice, scaled=scaled, condition=condition,
    asserted=asserted, expanded=expanded,
    literal_split=literal_split, of_module=of_module, indexed=indexed, literal_permute=literal_permute)
OPERATION = dict(literal_view='m', literal_slice='slice', scaled='mul', condition='mul', asserted='AssertionError',
    expanded='add', literal_split='split_with_sizes',
    of_module='view', indexed='index', literal_permute='view')

class Baked(nn.Module):
    "Convolutions with functions between them."
    def __init__(self, *functions):
        super().__init__()
        self.functions, self.width = functions, 16
        self.layers = nn.ModuleList([conv(3, 16)]+[conv(16, 16) for _ in range(2*len(functions)+1)]+[conv(16, 4)])
        self.register_buffer('order', torch.randperm(16))
    def forward(self, x):
        x = F.relu(self.layers[0](x))
        for k, f in enumerate(self.functions):
            x = F.relu(self.layers[2*k+1](x))
            x = f(x, self) if f in (of_module, indexed) else f(x)
            x = F.relu(self.layers[2*k+2](x))
        return self.layers[-1](F.relu(self.layers[-2](x)))

def line(f): return f.__code__.co_firstlineno


@pytest.mark.parametrize('name', BAKED)
def test_a_baked_size_is_caught(name):
    """The site stays whole, or as much of it as the number speaks of; the others are cut; the reason has operation,
    file and line; six runs at most."""
    graph = find_sites(Baked(BAKED[name]), torch.randn(2, 3, 12, 12))
    whole = [n for n, r in graph.reasons.items() if r != 'pruned']
    reason = (next((r for n, r in graph.reasons.items() if n == 'layers.1' and r != 'pruned'), None)
        or graph.proof.held[0][1])
    assert OPERATION[name] in reason and f'test_proof.py:{line(BAKED[name])}' in reason
    if name in ('literal_slice', 'literal_split'): assert set(whole) <= {'layers.1', 'layers.4'}
    else: assert whole == ['layers.1', 'layers.4']
    assert graph.proof.difference < 1e-9 and graph.proof.runs <= 6


def test_ten_baked_sizes_at_once():
    "All are caught, the other sites are cut, and the proof tells how many runs it took."
    net = Baked(*BAKED.values())
    graph = find_sites(net, torch.randn(2, 3, 12, 12))
    held = {f'layers.{2*k+1}' for k in range(10)}
    whole = {n for n, r in graph.reasons.items() if r != 'pruned'}-{'layers.22'}
    assert held-{'layers.3', 'layers.13'} <= whole <= held
    assert graph.proof.difference < 1e-9 and 10 < graph.proof.runs <= 40


def test_a_size_that_no_operation_tells():
    "A check at the end about a layer at the front: found by halving, and that one alone stays."
    class Late(Baked):
        def forward(self, x):
            y = super().forward(x)
            if self.layers[2].weight.shape[0] != 16: raise ValueError('another width')
            return y
    graph = find_sites(Late(*[F.relu]*4), torch.randn(2, 3, 12, 12))
    whole = [n for n, r in graph.reasons.items() if r != 'pruned']
    assert ('layers.2' in whole and len(whole) <= 3
        and 'ValueError (another width) at test_proof.py' in graph.reasons['layers.2'])


def test_counts_that_are_equal_by_chance():
    """A view of one tensor by the count of another one runs as long as both lose equally many: found, as sites of
    one size never do."""
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.q, self.k, self.v, self.b = conv(3, 32), conv(32, 8), conv(32, 8), conv(32, 32), conv(32, 4)
        def forward(self, x):
            x = F.relu(self.a(x)); b, c, h, w = x.shape
            q, k, v = (f(x).view(b, -1, h*w) for f in (self.q, self.k, self.v))
            return self.b((v@torch.softmax(q.transpose(1, 2)@k, -1).transpose(1, 2)).view(b, c, h, w))
    graph, rebuild, prover = sites_of(copied(Attend()), torch.randn(2, 3, 8, 8))
    equal = lambda graph: {s.name: (torch.arange(16), torch.arange(16, 32)) for s in graph.sites}
    graph = prove(graph, rebuild, prover, equal)
    assert 'view at test_proof.py' in graph.reasons['a'] or 'view at test_proof.py' in graph.reasons['v']


# ---- its parts

def test_culprits():
    "Whatever must stay together is found, and nothing else."
    sites = list(range(20))
    for needed in ({0}, {19}, {7}, {3, 11}, {0, 9, 19}):
        asked = []
        def helps(held): asked.append(1); return needed <= set(held)
        assert set(culprits(sites, helps)) == needed and len(asked) <= 6*len(needed)


def test_difference():
    "In units of the largest value; infinite numbers and complex ones too."
    a = torch.tensor([1., 2., 4.])
    assert difference(a, a+1) == .25 and difference(a, a) == 0 == difference(a[:0], a[:0])
    assert difference(torch.tensor([1., torch.inf]), torch.tensor([1., torch.inf])) == 0
    assert difference(torch.tensor([1j, 2j]), torch.tensor([1j, 3j])) == .5


def test_choice():
    "At least one unit stays and one goes, equally many in each group, and different numbers of sites of one size."
    graph = find_sites(nn.Sequential(*[conv(i, o) for i, o in ((3, 16), (16, 16), (16, 16), (16, 2), (2, 4))]),
        torch.randn(1, 3, 8, 8), verify=False)
    kept = choose(graph.sites)
    assert [len(kept[s.name][1]) for s in graph.sites] == [5, 4, 6, 1]
    assert all(sorted(torch.cat(kept[s.name]).tolist()) == list(range(s.size)) for s in graph.sites)


def test_other_examples_of_the_same_kind():
    "Noise of a tensor's range, with another size and batch; integers shuffled."
    x, ids = torch.rand(2, 3, 8, 8)+3, torch.arange(6)
    y, other = resized((x, ids), lambda n: n+4, 1, torch.Generator().manual_seed(0))
    assert y.shape == (3, 3, 12, 12) and y.min() >= 3 and y.max() <= 4 and sorted(other.tolist()) == list(range(6))


def test_what_is_run():
    "The example, cropped where the network takes it, and noise at a second size and batch; further examples too."
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    graph = find_sites(net, torch.randn(1, 3, 80, 80), more_examples=(torch.randn(1, 3, 20, 20),))
    assert graph.proof.inputs == [[(1, 3, 64, 64)], [(1, 3, 20, 20)], [(2, 3, 32, 32)]] and graph.proof.runs == 3
    assert find_sites(net, torch.randn(1, 3, 8, 8), verify=False).proof is None


@pytest.mark.parametrize('policy', ('own', 'all'))
def test_shuffled_halves(policy):
    "ShuffleNetV2: halves of channels that are split, shuffled and joined lose equally many."
    import torchvision
    graph = find_sites(torchvision.models.shufflenet_v2_x0_5(weights=None).eval(), torch.randn(1, 3, 64, 64),
        sites=policy)
    assert graph.proof.difference < 1e-9 and graph.proof.share > .28 and not graph.proof.held


# ---- what a first run has told of labels

class Plain(nn.Module):
    "A recurrent layer, a buffer written in place, views, dropout, two outputs."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 12), conv(12, 12), nn.Conv2d(12, 12, 3, groups=3, padding=1)
        self.d, self.lstm, self.end = conv(24, 12), nn.LSTM(12, 6, batch_first=True), nn.Linear(6, 4)
    def forward(self, x):
        x = F.dropout(F.relu(self.a(x)), .3, True)
        y = torch.zeros_like(x)
        y[:, :, 1:] = self.b(x)[:, :, :-1]
        y = self.d(F.relu(torch.cat([self.c(F.relu(y)), y], 1)))
        return self.end(self.lstm(y.flatten(2).transpose(1, 2))[0][:, -1]), y.mean()

class Branching(Plain):
    "Another operation where there is less."
    def forward(self, x):
        x = F.relu(self.a(x)).sum((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])
        return self.b(x*2 if self.limit < x.sum() else x)

@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_a_run_by_its_steps_is_a_masked_record(seed, train):
    torch.manual_seed(seed)
    net, x = Plain().double(), torch.randn(2, 3, 6, 6).double()
    graph = find_sites(net, x, sites='all')
    assert len(graph.sites) > 1
    of = lambda s: graph.removed(choose(graph.sites, .4, s))
    masked = lambda gone: record(twin(net), x, train, Masked, removed=gone)
    steps = masked(of(7)).steps
    for s in (seed, seed+10):
        want, got = masked(of(s)), again(twin(net), x, train, steps, of(s), False)
        assert len(want.values) == len(got.values)
        for (node, a), (other, b) in zip(want.values, got.values):
            assert node.op == other.op and len(a) == len(b)
            for t, u in zip(a, b): assert torch.equal(t, u) if isinstance(t, torch.Tensor) else t == u
        for t, u in zip(want.result, got.result): assert torch.equal(t, u)

def test_a_run_that_goes_another_way_has_no_steps():
    torch.manual_seed(0)
    net, x = Branching(), torch.randn(2, 3, 6, 6)
    net.limit = torch.tensor(0.)
    graph = find_sites(net, x, verify=False)
    none = np.zeros(len(graph.removed(choose(graph.sites))), bool)
    steps = record(twin(net), x, False, Masked, removed=none).steps
    assert again(twin(net), x, False, steps, none, False) is not None
    net.limit = torch.tensor(1e9)
    assert again(twin(net), x, False, steps, none, False) is None # an operation less

def test_steps_that_are_wrong_refuse_nothing():
    "Where a run by steps says that a cut differs, a record of its own has the last word."
    torch.manual_seed(0)
    graph = find_sites(Plain(), torch.randn(2, 3, 6, 6), sites='all')
    cut, runs = graph.removed(choose(graph.sites, .5, 1)), graph.proof.runs
    reading = [s for s in graph.prover.steps[0] if s.reads and cut[s.reads[0][1]].any()]
    reading[0].reads = [(i, labels*0) for i, labels in reading[0].reads] # nothing is masked
    assert graph.prover.differs(graph.record, cut, graph.proof) is None
    assert graph.proof.runs == runs+len(graph.prover.inputs)
