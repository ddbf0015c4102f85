"""The record of a run: awkward forwards that are all taken, and cuts that are all exact; nothing outside of the copy
is touched."""
import dataclasses, threading, types
from collections import OrderedDict
import pytest, torch, torch.nn as nn, torch.nn.functional as F, torchvision
import torch.utils.checkpoint as checkpoint
from udfc_nb.errors import ExampleInputError, UDFCError, UnsupportedError
from udfc_nb.graph.labels import core, slabs
from udfc_nb.graph.shadow import Shadow
from udfc_nb.graph.proof import find_sites
from udfc_nb.graph.copies import copied
from udfc_nb.graph.record import record


# ---- labels

def test_views_of_a_shadow():
    "What a view says without writing the labels out is what it says when they are written out."
    for form in (torch.contiguous_format, torch.channels_last):
        x, labels = torch.zeros(2, 6, 4, 3).to(memory_format=form), torch.arange(1, 7).reshape(1, 6, 1, 1)
        short, full = Shadow(x), Shadow(x)
        short.write('a', x, labels); full.write('a', x, labels); full.whole('a')
        for v in (x.permute(0, 2, 3, 1), x[:, 2:5], x[:, 3], x[1], x[:, :, ::2], x.unsqueeze(1),
                x[:, :, 1:3, 0].transpose(1, 2), x[:, 1:4, 2]):
            assert torch.equal(short.read('a', v).expand(v.shape), full.read('a', v).expand(v.shape))


def test_whole_slabs():
    "Of labels that vary along two axes the one stays along which most can be chosen."
    axis, edges = slabs(torch.arange(6).reshape(2, 3))
    assert axis == 1 and edges.shape == (2, 6)
    assert core(torch.ones(3, 4)).shape == (1, 1)


# ---- awkward forwards

def conv(i, o, k=3, **kw): return nn.Conv2d(i, o, k, padding=k//2, **kw)

class Middle(nn.Module):
    "A function of itself and of a tensor, with modules or parameters of its own."
    def __init__(self, f, **held):
        super().__init__()
        self.f = f
        for k, v in held.items(): setattr(self, k, v)
    def forward(self, x): return self.f(self, x)

class Net(nn.Module):
    "Three convolutions and a linear layer; what stands between the first two is the question."
    def __init__(self, middle=None, width=16):
        super().__init__()
        self.a, self.bn, self.middle, self.b = conv(3, 16), nn.BatchNorm2d(16), middle or nn.Identity(), conv(width, 12)
        self.c, self.fc = conv(12, 8), nn.Linear(8, 5)
    def forward(self, x):
        return self.fc(F.relu(self.c(F.relu(self.b(self.middle(F.relu(self.bn(self.a(x)))))))).mean((2, 3)))

def rough(net):
    "Norms that do something."
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .3); m.running_var.uniform_(.5, 2)
    return net.eval()

@torch.jit.script
def swish(x):
    if x.dim() == 4: return x*torch.sigmoid(x)
    return x

class Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x*torch.tanh(F.softplus(x))

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return torch.from_numpy(x.detach().numpy()*2)

class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w-w.mean((1, 2, 3), keepdim=True))/(w.std((1, 2, 3), keepdim=True)+1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)

class Same(nn.Conv2d):
    def forward(self, x):
        if x.shape[-1] % self.stride[0]: x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 1)

def halves_in_place(self, x): y = x.clone(); y[:, :8].mul_(2.); y[:, 8:] += 1.; return y
def given_out(self, x): y = torch.empty_like(x); torch.mul(x, 2., out=y); return y
def swapped(self, x): c = x.shape[1]//2; return torch.cat([x[:, c:], x[:, :c]], 1)
def shuffled(self, x): b, c, h, w = x.shape; return x.view(b, 2, c//2, h, w).transpose(1, 2).reshape(b, c, h, w)
def filled(self, x): z = torch.zeros_like(x); z[:, :x.shape[1]].copy_(x); return z
def in_a_thread(self, x):
    found = []
    t = threading.Thread(target=lambda: found.append(torch.sigmoid(x))); t.start(); t.join()
    return found[0]
def on_even_counts(self, x): return x*2 if x.shape[0] > 1 and x.shape[1] % 2 == 0 else x
def over_width(self, x): return self.k(x.mean(2).transpose(1, 2))[0].transpose(1, 2)[:, :, None]
def attention(self, x):
    q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
    return (v@(q.transpose(1, 2)@k).softmax(-1).transpose(1, 2)).view(len(x), -1, *x.shape[2:])
def hooked():
    k = conv(16, 16)
    k.register_forward_hook(lambda m, args, out: out*2)
    return Middle(lambda s, x: s.k(x), k=k)
def one(k): return lambda: Middle(lambda s, x: s.k(x), k=k())
def does(f, **held): return lambda: Middle(f, **{k: v() for k, v in held.items()})

EVERYTHING = ('a', 'b', 'c')
FORWARDS = { # name → middle, its width, the layers that lose channels
    'plain': (lambda: None, 16, EVERYTHING),
    'own forward': (one(lambda: Same(16, 16, 3)), 16, (*EVERYTHING, 'middle.k')),
    'weight standardisation': (one(lambda: Standardised(16, 16, 3, padding=1)), 16, ('b', 'c', 'middle.k')),
    'one layer twice': (does(lambda s, x: s.k(F.relu(s.k(x))), k=lambda: conv(16, 16)), 16, (*EVERYTHING, 'middle.k')),
    'functional weight': (does(lambda s, x: F.conv2d(x, s.w, padding=1),
    w=lambda: nn.Parameter(torch.randn(16, 16, 3, 3))), 16, EVERYTHING),
    'einsum': (does(lambda s, x: torch.einsum('bchw,dc->bdhw', x, s.w), w=lambda: nn.Parameter(torch.randn(16, 16))),
    16, EVERYTHING),
    'scripted function': (does(lambda s, x: swish(x)), 16, EVERYTHING),
    'scripted module': (one(lambda: torch.jit.script(nn.Sequential(conv(16, 16), nn.ReLU()))), 16, EVERYTHING),
    'autograd.Function': (does(lambda s, x: Mish.apply(x)), 16, EVERYTHING),
    'numpy': (does(lambda s, x: Doubled.apply(x)), 16, ('b', 'c')),
    'checkpoint': (does(lambda s, x: checkpoint.checkpoint(s.k, x, use_reentrant=False), k=lambda: conv(16, 16)), 16,
    (*EVERYTHING, 'middle.k')),
    'old checkpoint': (does(lambda s, x: checkpoint.checkpoint(s.k, x, use_reentrant=True), k=lambda: conv(16, 16)),
    16, (*EVERYTHING, 'middle.k')),
    'view by a number': (does(lambda s, x: x.view(len(x), 16, -1).view(len(x), 16, *x.shape[2:])), 16, ('b', 'c')),
    'in place on views': (does(halves_in_place), 16, EVERYTHING),
    'condition on a count': (does(on_even_counts), 16, ('b', 'c')),
    'iteration': (does(lambda s, x: torch.stack([F.relu(q) for q in x])), 16, EVERYTHING),
    'out=': (does(given_out), 16, EVERYTHING),
    'halves': (does(swapped), 16, EVERYTHING),
    'glu': (does(lambda s, x: F.glu(torch.cat([x, x], 1), 1)), 16, EVERYTHING),
    'channel shuffle': (does(shuffled), 16, EVERYTHING),
    'pixel shuffle': (does(lambda s, x: F.pixel_shuffle(s.k(x), 2), k=lambda: conv(16, 32)), 8,
    (*EVERYTHING, 'middle.k')),
    'thread': (does(in_a_thread), 16, ('b', 'c')),
    'value': (does(lambda s, x: x*2 if x.abs().max().item() > 1e9 else x), 16, ('b', 'c')),
    'compiled part': (one(lambda: torch.compile(nn.Sequential(conv(16, 16), nn.ReLU()), backend='eager')), 16,
    (*EVERYTHING, 'middle.k._orig_mod.0')),
    'vmap': (does(lambda s, x: torch.func.vmap(lambda q: s.k(q))(x), k=lambda: conv(16, 16)), 16,
    (*EVERYTHING, 'middle.k')),
    'weight norm': (one(lambda: nn.utils.parametrizations.weight_norm(conv(16, 16))), 16, ('b', 'c', 'middle.k')),
    'spectral norm': (one(lambda: nn.utils.parametrizations.spectral_norm(conv(16, 16))), 16, ('b', 'c')),
    'groups': (one(lambda: conv(16, 16, groups=4)), 16, (*EVERYTHING, 'middle.k')),
    'transposed': (one(lambda: nn.ConvTranspose2d(16, 12, 2, 2)), 12, (*EVERYTHING, 'middle.k')),
    'instance norm': (one(lambda: nn.InstanceNorm2d(16, affine=True)), 16, EVERYTHING),
    'group norm': (one(lambda: nn.GroupNorm(4, 16)), 16, EVERYTHING),
    'squeeze and excite': (does(lambda s, x: x*torch.sigmoid(s.u(F.relu(s.d(x.mean((2, 3), True))))),
    d=lambda: conv(16, 4, 1), u=lambda: conv(4, 16, 1)), 16, (*EVERYTHING, 'middle.d', 'middle.u')),
    'spatial gate': (does(lambda s, x: x*torch.sigmoid(s.u(x)), u=lambda: conv(16, 1, 1)), 16, EVERYTHING),
    'attention': (does(attention, q=lambda: conv(16, 8, 1), k=lambda: conv(16, 8, 1), v=lambda: conv(16, 10, 1)), 10,
    (*EVERYTHING, 'middle.v')),
    'hook': (hooked, 16, (*EVERYTHING, 'middle.k')),
    'buffer filled': (does(filled), 16, EVERYTHING),
    'padded shortcut': (does(lambda s, x: F.pad(x, (0, 0, 0, 0, 4, 4))+s.k(x), k=lambda: conv(16, 24)), 24,
    (*EVERYTHING, 'middle.k')),
    'lstm': (does(over_width, k=lambda: nn.LSTM(16, 16, batch_first=True)), 16, EVERYTHING),
    'deformable': (does(lambda s, x: s.d(x, s.o(x)), o=lambda: conv(16, 18),
    d=lambda: torchvision.ops.DeformConv2d(16, 16, 3, padding=1)), 16, ('b', 'c'))}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', FORWARDS)
def test_awkward_forwards(name):
    "All are recorded; the cut is exact operation by operation; and what can lose channels does."
    middle, width, pruned = FORWARDS[name]
    net = rough(Net(middle(), width)).double()
    graph = find_sites(net, torch.randn(2, 3, 16, 16).double(), sites='all')
    assert graph.proof.difference < 1e-9 and graph.proof.share > .1
    assert {n for n, r in graph.reasons.items() if r == 'pruned'} == {n for n in graph.reasons if n in pruned}


def test_weights_outside_of_layers():
    "Weights that no layer holds are recorded under names of their own, and are no sites."
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v, self.u = (nn.Parameter(torch.randn(o, i, 3, 3)) for i, o in ((3, 16), (16, 8), (8, 4)))
        def forward(self, x): return F.conv2d(F.conv2d(F.conv2d(x, self.w).relu(), self.v).relu(), self.u)
    graph = find_sites(Own(), torch.randn(2, 3, 12, 12))
    assert list(graph.layers) == ['w', 'v', 'u'] and not graph.sites


# ---- what a node knows

def test_rows_of_tokens():
    """A view of (examples, tokens, channels) as a matrix has several rows per example, and so has the product that
    reads it; not the view back."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    def tokens(*shape):
        return [n.tokens for n in record(copied(net), torch.randn(shape)).nodes
            if n.op in ('view', '_unsafe_view', 'addmm')]
    assert tokens(2, 5, 8) == [True, True, False]*2
    assert tokens(2, 8) == [False, False]
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert not any(n.tokens for n in record(copied(flat), torch.randn(2, 3, 4, 4)).nodes)


def test_attention_is_seen_from_inside():
    "Not as one operation: its fast path is left without a word to the process."
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    graph = find_sites(net, torch.randn(2, 5, 16))
    assert not any('native_multi_head' in n.op or 'transformer' in n.op for n in graph.nodes)
    assert [s.name for s in graph.sites] == ['layers.0.linear1', 'layers.1.linear1'] and graph.proof.difference < 1e-9


def test_inputs_and_outputs_of_any_form():
    "Dicts, dataclasses, keywords; inputs that the forward writes into."
    @dataclasses.dataclass
    class Out: y: torch.Tensor; parts: list
    class Forms(Net):
        def forward(self, image, scale=1., *args, **kwargs):
            return Out({'y': super().forward(image.mul_(scale))}, [image])
    net, x = rough(Forms()), torch.randn(2, 3, 16, 16)
    before = x.clone()
    for example in (x, (x, torch.tensor(2.)), dict(image=x, scale=torch.tensor(2.))):
        assert len(find_sites(net, example).sites) == 3 and torch.equal(x, before)


# ---- odd kinds

def show(net, *x, **kw): return find_sites(net, x[0] if len(x) == 1 else x, **kw)

def test_lazy_meta_and_uncopyable():
    "Typed errors that name the module."
    x = torch.randn(2, 3, 12, 12)
    with pytest.raises(UnsupportedError, match=r'^0: a lazy module'):
        show(nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()), x)
    with pytest.raises(UnsupportedError, match=r'^b: .*meta'):
        show(nn.Sequential(OrderedDict(a=conv(3, 4), b=conv(4, 4, device='meta'))), x)
    net = nn.Sequential(conv(3, 4), nn.Sequential(conv(4, 4)))
    net[1].lock = threading.Lock()
    with pytest.raises(UnsupportedError, match=r'^1.lock: .*copied'): show(net, x)

def test_tensors_with_a_history():
    "An attribute that is no leaf can be copied all the same: old weight norm leaves one behind."
    with pytest.warns(FutureWarning):
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 3, 12, 12)
    net(x)
    assert [s.name for s in show(net.eval(), x).sites] == ['0']


def test_forward_of_another_copy():
    "A lambda that calls layers calls the copy's in a copy; what else it reaches cannot be followed."
    net = Net(); a, b, x = net.a, net.b, torch.randn(2, 3, 12, 12)
    exec('def named(x): return b(a(x))', scope := dict(a=a, b=b))
    for forward in (lambda x: b(a(x)), lambda x, layers=[a, b]: layers[1](layers[0](x)), scope['named']):
        net.forward = forward
        assert [s.name for s in show(net, x).sites] == ['a'] and net.forward is forward
    class Held: layers = a, b
    net.forward = lambda x: Held.layers[1](Held.layers[0](x))
    with pytest.raises(UnsupportedError, match=r'^a.weight: '): show(net, x)
    net.forward = types.MethodType(lambda self, x: self.b(self.a(x)), net)
    assert [s.name for s in show(net, torch.randn(2, 3, 12, 12)).sites] == ['a']


def test_unbatched_and_empty():
    "An image without a batch; a layer without outputs; a network without parameters."
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    graph = show(net, torch.randn(3, 12, 12))
    assert [s.name for s in graph.sites] == ['0'] and graph.proof.difference < 1e-9
    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.z, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 0), nn.Conv2d(8, 4, 3)
        def forward(self, x): y = self.a(x).relu(); return self.b(y), self.z(y.mean((2, 3)))
    assert show(Zero(), torch.randn(2, 3, 12, 12)).reasons['b'] == 'feeds an output'
    assert not show(nn.ReLU(), torch.randn(2, 3)).sites


KINDS = dict(sparse=lambda x: torch.sparse.mm(torch.eye(6).to_sparse(), x.flatten(1)[:, :6].t()).t()[:, :1, None,
    None]*x,
    complex=lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
    polar=lambda x: torch.view_as_complex(x[..., :10].unflatten(-1, (5, 2)).contiguous()).abs(),
    quantized=lambda x: torch.quantize_per_tensor(x, .1, 0, torch.qint8).dequantize(),
    nested=lambda x: x*x.flatten(1).nonzero().shape[0])

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', KINDS)
def test_tensors_that_are_not_followed(kind):
    "What reads them stays, with a reason; the rest is cut."
    graph = show(Net(Middle(lambda s, x: KINDS[kind](x))).eval(), torch.randn(2, 3, 12, 12))
    assert graph.reasons['a'] != 'pruned' and len(graph.reasons['a']) > 10
    assert graph.reasons['b'] == graph.reasons['c'] == 'pruned' and graph.proof.difference < 1e-6


def test_random_numbers_in_a_forward():
    "Noise of the tensor's own size, drawn again for the cut network, is the same noise; no generator moves."
    for f in (lambda s, x: x+torch.randn_like(x), lambda s, x: F.dropout(x, .5), lambda s,
            x: x*torch.empty_like(x).uniform_(0, 1), lambda s, x: F.rrelu(x, training=True)):
        net, x = rough(Net(Middle(f))), torch.randn(2, 3, 12, 12)
        before = torch.get_rng_state()
        graph = show(net, x)
        assert (torch.equal(before, torch.get_rng_state()) and graph.reasons['a'] == 'pruned'
            and graph.proof.difference < 1e-9)


def test_mixed_precision():
    "bfloat16 bodies, casts in the forward, float64 buffers: proven in double all the same."
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3).bfloat16(), nn.Conv2d(8, 4, 3)
            self.register_buffer('mean', torch.ones(3, 1, 1).double())
        def forward(self, x): return self.b(self.a((x-self.mean).to(torch.bfloat16)).relu().float())
    graph = show(Body(), torch.randn(2, 3, 12, 12))
    assert [s.name for s in graph.sites] == ['a'] and graph.proof.difference < 1e-9


# ---- nothing global is touched

def state():
    "What a process shares: functions of torch and F, methods of modules and tensors, hooks, flags, the random state."
    hooks = nn.modules.module
    return dict({f'{m.__name__}.{k}': v for m in (torch, F, torch.Tensor, nn.Module, nn.functional)
        for k, v in vars(m).items() if callable(v)},
        hooks=tuple(len(getattr(hooks, k)) for k in vars(hooks) if k.startswith('_global_')
        and hasattr(getattr(hooks, k), '__len__')),
        fast=torch.backends.mha.get_fastpath_enabled(), random=torch.get_rng_state().numpy().tobytes(),
        grad=torch.is_grad_enabled(), autocast=torch.is_autocast_enabled('cpu'),
        inference=torch.is_inference_mode_enabled(), dtype=torch.get_default_dtype(), call=nn.Module.__call__)

def own(net):
    return [(m, dict(m._forward_hooks), dict(m._forward_pre_hooks), m.training, {k: id(v) for k, v in vars(m).items()})
        for m in net.modules()]


@pytest.mark.parametrize('fails', (False, True))
def test_nothing_global_is_touched(fails):
    "Before, during and after, as seen by another thread; the caller's network too, also when the run ends in an error."
    def part(self, x):
        seen.append(ask())
        if fails and len(seen) > 1: raise ValueError
        return x
    def ask():
        found = []
        t = threading.Thread(target=lambda: found.append(state())); t.start(); t.join()
        return found[0]
    net, x, seen = Net(Middle(part)).train(), torch.randn(2, 3, 16, 16), []
    before, mine = ask(), own(net)
    if fails:
        with pytest.raises(UDFCError): find_sites(net, x, more_examples=(x,))
    else: find_sites(net, x)
    assert len(seen) > 1 and own(net) == mine
    for s in (*seen, ask()): assert s == before


@pytest.mark.parametrize('mode',
    (torch.inference_mode, torch.no_grad, torch.enable_grad, lambda: torch.autocast('cpu', torch.bfloat16)))
def test_modes_of_the_caller(mode):
    "Any mode of the caller's, and another default type, give the same sites."
    x = torch.randn(2, 3, 16, 16)
    names = [s.name for s in find_sites(Net(), x).sites]
    with mode():
        graph = find_sites(Net().eval(), x*1)
        assert [s.name for s in graph.sites] == names and graph.proof.difference < 1e-9
        now = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled('cpu')
    with mode():
        assert now == (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'))
    torch.set_default_dtype(torch.float64)
    try: assert [s.name for s in find_sites(Net().float(), x.float()).sites] == names
    finally: torch.set_default_dtype(torch.float32)


def test_four_threads_beside_four():
    "Four look for sites while four run other networks: all results are right."
    nets, x = [rough(Net(Middle(lambda s, x: x+torch.ones_like(x)))) for _ in range(4)], torch.randn(2, 3, 16, 16)
    others = [(n, n(x)) for n in (rough(Net()) for _ in range(4))]
    wrong, right, stop = [], [], threading.Event()
    def look(net):
        try: graph = find_sites(net, x); right.append(graph.proof.difference < 1e-9 and len(graph.sites) == 3)
        except BaseException as e: wrong.append(e)
    def serve(net, y):
        while not stop.is_set():
            try: torch.equal(net(x), y) or wrong.append(net)
            except BaseException as e: wrong.append(e)
    served = [threading.Thread(target=serve, args=o) for o in others]
    looking = [threading.Thread(target=look, args=(n,)) for n in nets]
    for t in served+looking: t.start()
    for t in looking: t.join()
    stop.set()
    for t in served: t.join()
    assert not wrong and right == [True]*4


def test_errors_of_the_forward():
    "A network that cannot run on its example says at which layer."
    with pytest.raises(ExampleInputError, match='^b: '): find_sites(Net(width=8), torch.randn(2, 3, 16, 16))


def test_networks_that_remember():
    """What a forward writes into its own network (a cache, a counter, the last image) doesn't reach the next run,
    nor the caller's network."""
    class Remembers(Net):
        def __init__(self):
            super().__init__()
            self.cache, self.last = None, []
            self.register_buffer('calls', torch.zeros(()))
        def forward(self, x):
            self.calls += 1
            y = self.a(x)
            if self.cache is None: self.cache = torch.ones(1, y.shape[1], 1, 1)
            self.last.append(y)
            return self.b(F.relu(y*self.cache))
    net = Remembers()
    graph = find_sites(net, torch.randn(2, 3, 16, 16))
    assert [s.name for s in graph.sites] == ['a'] and graph.proof.difference < 1e-9 and not graph.proof.held
    assert net.cache is None and not net.last and net.calls == 0
