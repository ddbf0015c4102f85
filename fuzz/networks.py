"""Random networks. A network is a plan of tuples, which is drawn, printed, shortened and built again.

A part takes images of any number of channels and gives images, (N, C, *size); so any parts follow one another, and
some hold
parts of their own. A plan is (dimensions, example, head, parts); a part is (name, seed, lists of parts that it holds
...)."""
import dataclasses, random, zlib
from collections import OrderedDict, namedtuple
import torch, torch.nn as nn, torch.nn.functional as F
import torch.nn.utils.prune
import torch.nn.utils.parametrizations as parametrizations
import torch.utils.checkpoint

PARTS, HEADS, EXAMPLES = {}, {}, {}
HOLDS = {} # part → how many lists of parts it holds
SIZES = {1: [12], 2: [8, 6], 3: [4, 4, 4]}
of_dim = lambda d, name: getattr(nn, f'{name}{d}d')


class Part(nn.Module):
    "Modules and parameters, and a function of them and of images."
    def __init__(self, f, **held):
        super().__init__()
        for k, v in held.items(): setattr(self, k, v)
        self.f = f
    def forward(self, x): return self.f(self, x)


class State:
    """What is known while a network is built: dimensions, channels, size of the images, and the random choices of
    one part."""
    def __init__(self, d, c, size): self.d, self.c, self.size, self.r = d, c, list(size), None
    def pick(self, *options): return self.r.choice(options)
    def chance(self, p=.5): return self.r.random() < p
    def width(self): return self.pick(4, 6, 8, 12)
    def at(self, c, size=None):
        new = State(self.d, c, self.size if size is None else size); new.r = self.r
        return new
    def conv(self, i, o, k=1, **kw): return of_dim(self.d, 'Conv')(i, o, k, padding=k//2, **kw)
    def bn(self, c): return of_dim(self.d, 'BatchNorm')(c)
    def wide(self, v): return v.reshape(-1, *[1]*self.d) # one number per channel
    def ones(self): return [1]*self.d
    def axes(self): return tuple(range(2, 2+self.d))
    def divisor(self, *options):
        fit = [g for g in options if self.c % g == 0 and self.c > g]
        return self.r.choice(fit) if fit else None
    def parts(self, plan):
        "Builds parts one after the other; the state is that behind the last one."
        built = []
        for p in plan:
            r, self.r = self.r, random.Random(zlib.crc32(repr((p[0], p[1])).encode()))
            m = PARTS[p[0]](self, *p[2:])
            self.r = r
            if m is not None: built.append(m)
        return nn.Sequential(*built)


def part(f=None, holds=0):
    """Enters a function (state, lists of parts …) → module; it sets `state.c` and `state.size`, or gives None where
    it does not fit."""
    def enter(f): PARTS[f.__name__], HOLDS[f.__name__] = f, holds; return f
    return enter(f) if f else enter

def simple(name, f, fits=lambda b: True):
    "Enters a function (part, images) → images of the same shape."
    PARTS[name], HOLDS[name] = (lambda b: Part(f) if fits(b) else None), 0


# ---- layers

@part
def conv(b):
    k, c, o = b.pick(1, 3, 3), b.c, b.width()
    stride = b.pick(1, 1, 2) if min(b.size) >= 4 else 1
    kw = dict(bias=b.chance(), padding_mode=b.pick('zeros', 'zeros', 'reflect', 'circular', 'replicate') if k == 3
        and min(b.size) > 2 else 'zeros')
    if stride == 1 and b.chance(.3):
        m = of_dim(b.d, 'Conv')(c, o, k, padding='same', dilation=b.pick(1, 2) if min(b.size) > 2 else 1, **kw)
    else: m = b.conv(c, o, k, stride=stride, **kw)
    b.c, b.size = o, [-(-n//stride) for n in b.size]
    return m

@part
def normed(b):
    "The usual block."
    o, k = b.width(), b.pick(1, 3)
    m = nn.Sequential(b.conv(b.c, o, k, bias=False), b.bn(o), b.pick(nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU)())
    b.c = o
    return m

@part
def grouped(b):
    g = b.divisor(2, 3, 4)
    if g is None: return
    o = g*b.pick(2, 3, 4)
    m = b.conv(b.c, o, 3, groups=g, bias=b.chance()); b.c = o
    return m

@part
def depthwise(b):
    k, m = b.pick(1, 1, 2), b.c
    b.c *= k
    return b.conv(m, m*k, 3, groups=m, bias=b.chance())

@part
def transposed(b):
    s, o = b.pick(1, 2) if max(b.size) <= 8 else 1, b.width()
    g = b.pick(1, 1, 2)
    if g == 2 and b.c % 2: g = 1
    m = of_dim(b.d, 'ConvTranspose')(b.c, o, 3, stride=s, padding=1, output_padding=s-1, groups=g, bias=b.chance())
    b.c, b.size = o, [n*s for n in b.size]
    return m

@part
def transposed_depthwise(b): return of_dim(b.d, 'ConvTranspose')(b.c, b.c, 3, padding=1, groups=b.c)

@part
def transposed_to_size(b):
    m = Part(lambda m, x: m.up(F.max_pool1d(x, 2) if m.d == 1 else getattr(F, f'avg_pool{m.d}d')(x, 2),
        output_size=x.shape[2:]), up=of_dim(b.d, 'ConvTranspose')(b.c, b.c, 2, stride=2), d=b.d)
    return m if min(b.size) >= 2 else None

@part
def linear(b):
    "On channels last."
    o = b.width()
    m = Part(lambda m, x: m.l(x.movedim(1, -1)).movedim(-1, 1), l=nn.Linear(b.c, o, bias=b.chance())); b.c = o
    return m

@part
def tokens(b):
    "Two linear layers on rows of channels, with a norm."
    h = b.width()
    def f(m, x):
        t = x.flatten(2).transpose(1, 2)
        t = t+m.two(F.gelu(m.one(m.n(t))))
        return t.transpose(1, 2).reshape(x.shape)
    return Part(f, one=nn.Linear(b.c, h), two=nn.Linear(h, b.c), n=nn.LayerNorm(b.c) if b.chance() else nn.Identity())

@part
def functional(b):
    "A convolution or product that holds its weight itself."
    o, how, c = (b.width(), b.pick('conv', 'linear', 'matmul', 'einsum', 'addmm', 'baddbmm', 'mv', 'left',
        'tensordot'), b.c)
    w = nn.Parameter(torch.randn(o, c)*.3)
    bias = nn.Parameter(torch.randn(o)*.3)
    rows = lambda x: x.movedim(1, -1).reshape(-1, x.shape[1])
    def back(x, y): return y.reshape(x.shape[0], *x.shape[2:], -1).movedim(-1, 1)
    f = dict(conv=lambda m, x: getattr(F, f'conv{x.dim()-2}d')(x, m.w[(...,)+(None,)*(x.dim()-2)], m.b),
        linear=lambda m, x: back(x, F.linear(rows(x), m.w, m.b)), matmul=lambda m,
        x: (x.movedim(1, -1)@m.w.t()+m.b).movedim(-1, 1),
        einsum=lambda m, x: torch.einsum('oc,ncs->nos', m.w, x.flatten(2)).reshape(len(x), -1, *x.shape[2:]),
        addmm=lambda m, x: back(x, torch.addmm(m.b, rows(x), m.w.t())),
        baddbmm=lambda m, x: back(x, torch.baddbmm(m.b, x.movedim(1, -1).reshape(len(x), -1, x.shape[1]),
        m.w.t().expand(len(x), -1, -1))),
        mv=lambda m, x: x+torch.mv(rows(x), m.w[0]).reshape(len(x), 1, *x.shape[2:]),
        left=lambda m, x: (m.w@x.flatten(2)).reshape(len(x), -1, *x.shape[2:]),
        tensordot=lambda m, x: torch.tensordot(m.w, x, ([1], [1])).transpose(0, 1))[how]
    if how != 'mv': b.c = o
    return Part(f, w=w, b=bias)

class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w-w.mean((1, 2, 3), keepdim=True))/(w.var((1, 2, 3), keepdim=True)+1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding)

class PerOutput(nn.Conv2d):
    "A learned factor per filter."
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.gain = nn.Parameter(torch.rand(self.out_channels)+.5)
    def forward(self, x): return F.conv2d(x, self.weight*self.gain[:, None, None, None], self.bias, 1, self.padding)

class SamePad(nn.Conv2d):
    def forward(self, x): return F.conv2d(F.pad(x, [1, 1, 1, 1]), self.weight, self.bias)

class Equalised(nn.Conv2d):
    "Weights scaled by the number of what they read, as generators have it."
    def forward(self, x): return F.conv2d(x, self.weight*(self.weight[0].numel()**-.5), self.bias, 1, self.padding)

class Demodulated(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, F.normalize(self.weight.flatten(1), dim=1).view_as(self.weight), self.bias, 1, self.padding)

class Masked(nn.Conv2d):
    "A mask over the weight."
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.register_buffer('mask', torch.ones_like(self.weight))
        self.mask[:, :, 2] = 0
    def forward(self, x): return F.conv2d(x, self.weight*self.mask, self.bias, 1, self.padding)

class Binary(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, torch.sign(self.weight)*self.weight.abs().mean((1, 2, 3), keepdim=True), self.bias, 1,
            self.padding)

@part
def subclass(b):
    if b.d != 2: return
    o, kind = b.width(), b.pick(Standardised, PerOutput, SamePad, Equalised, Demodulated, Masked, Binary)
    m = kind(b.c, o, 3, padding=0 if kind is SamePad else 1, bias=b.chance()); b.c = o
    return m

class Halved(nn.Module):
    def forward(self, w): return w*.5

class Symmetric(nn.Module):
    "Of a matrix, the mean with its transposed one."
    def forward(self, w): return (w+w.transpose(0, 1))/2

@part
def parametrised(b):
    o, c = b.width(), b.c
    m = b.conv(c, o, 3)
    how = b.pick('weight', 'old weight', 'spectral', 'old spectral', 'halved', 'pruned', 'weight dim 1')
    if how == 'weight': m = parametrizations.weight_norm(m)
    if how == 'weight dim 1': m = parametrizations.weight_norm(m, dim=1)
    if how == 'old weight': m = torch.nn.utils.weight_norm(m)
    if how == 'spectral': m = parametrizations.spectral_norm(m)
    if how == 'old spectral': m = torch.nn.utils.spectral_norm(m)
    if how == 'halved': nn.utils.parametrize.register_parametrization(m, 'weight', Halved())
    if how == 'pruned': nn.utils.prune.random_unstructured(m, 'weight', .3)
    b.c = o
    return m

@part
def symmetric(b):
    m = b.conv(b.c, b.c, 1); nn.utils.parametrize.register_parametrization(m, 'weight', Symmetric())
    return m

@part
def shared(b):
    m, how = b.conv(b.c, b.c, 3), b.pick('twice', 'two names', 'one weight', 'own norms')
    if how == 'one weight':
        other = b.conv(b.c, b.c, 3)
        other.weight = m.weight
        return nn.Sequential(m, nn.ReLU(), other)
    if how == 'own norms': return nn.Sequential(m, b.bn(b.c), nn.ReLU(), m, b.bn(b.c))
    return nn.Sequential(m, nn.ReLU(), m) if how == 'two names' else Part(lambda s, x: s.m(F.relu(s.m(x))), m=m)

@part
def tied(b):
    "An autoencoder: the second product is by the transposed matrix."
    h = b.width()
    return Part(lambda m, x: (F.relu(x.movedim(1, -1)@m.w)@m.w.t()).movedim(-1, 1),
        w=nn.Parameter(torch.randn(b.c, h)*.3))

@part
def low_rank(b):
    "An adapter beside a layer."
    o, c = b.width(), b.c
    m = Part(lambda m, x: m.l(x)+m.up(m.down(x))*.5, l=b.conv(c, o), down=b.conv(c, 4, bias=False),
        up=b.conv(4, o, bias=False))
    b.c = o
    return m

@part
def dynamic(b):
    "A filter for each image, mixed of several (CondConv)."
    if b.d != 2: return
    o, c = b.width(), b.c
    def f(m, x):
        a = m.route(x.mean((2, 3))).sigmoid()
        w = (a@m.w.flatten(1)).reshape(-1, *m.w.shape[2:])
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), w, padding=1, groups=len(x))
        return y.reshape(len(x), -1, *y.shape[2:])
    b.c = o
    return Part(f, route=nn.Linear(c, 3), w=nn.Parameter(torch.randn(3, o, c, 3, 3)*.2))

@part
def heads(b):
    "A matrix for each group of channels."
    g = b.divisor(2, 3, 4)
    if g is None: return
    n = b.c//g
    how = b.pick('einsum', 'bmm')
    f = dict(einsum=lambda m, x: torch.einsum('bgcs,gco->bgos', x.reshape(len(x), g, n, -1), m.w).reshape(x.shape),
        bmm=lambda m, x: torch.bmm(x.transpose(0, 1).reshape(g, n, -1).transpose(1, 2), m.w).transpose(1,
        2).reshape(-1, len(x), *x.shape[2:]).transpose(0, 1))[how]
    return Part(f, w=nn.Parameter(torch.randn(g, n, n)*.4))

@part
def bilinear(b):
    o = b.width()
    m = Part(lambda m, x: m.l(*[x.movedim(1, -1)]*2).movedim(-1, 1), l=nn.Bilinear(b.c, b.c, o)); b.c = o
    return m

@part
def deformable(b):
    if b.d != 2: return
    from torchvision.ops import DeformConv2d
    m = Part(lambda m, x: m.l(x, m.shift(x)*.1), shift=nn.Conv2d(b.c, 18, 3, padding=1),
        l=DeformConv2d(b.c, 8, 3, padding=1))
    b.c = 8
    return m


# ---- norms

@part
def norm(b):
    c, g = b.c, b.divisor(2, 3, 4) or 1
    kind = b.pick('bn', 'bn', 'bn plain', 'bn no statistics', 'group', 'one group', 'instance', 'instance tracked',
        'each', 'layer', 'layer image', 'rms', 'local', 'unit', 'frozen',
        'functional', 'functional layer', 'pixel', 'momentum')
    bn = of_dim(b.d, 'BatchNorm')
    last = lambda n: Part(lambda m, x: m.n(x.movedim(1, -1)).movedim(-1, 1), n=n)
    if kind == 'bn': return bn(c)
    if kind == 'bn plain': return bn(c, affine=False)
    if kind == 'bn no statistics': return bn(c, track_running_stats=False)
    if kind == 'momentum': return bn(c, momentum=None, eps=1e-3)
    if kind == 'group': return nn.GroupNorm(g, c)
    if kind == 'one group': return nn.GroupNorm(1, c)
    if kind == 'each': return nn.GroupNorm(c, c, affine=b.chance())
    if kind == 'instance':
        return of_dim(b.d, 'InstanceNorm')(c, affine=b.chance()) if torch.tensor(b.size).prod() > 1 else None
    if kind == 'instance tracked': return of_dim(b.d, 'InstanceNorm')(c, affine=True, track_running_stats=True)
    if kind == 'layer': return last(nn.LayerNorm(c))
    if kind == 'layer image': return nn.LayerNorm((c, *b.size))
    if kind == 'rms': return last(nn.RMSNorm(c))
    if kind == 'local': return nn.LocalResponseNorm(3)
    if kind == 'unit': return Part(lambda m, x: F.normalize(x, dim=1)*m.s, s=nn.Parameter(torch.ones(1)))
    if kind == 'pixel': return Part(lambda m, x: x*torch.rsqrt(x.square().mean(1, keepdim=True)+1e-6))
    if kind == 'functional layer': return Part(lambda m, x: F.layer_norm(x.movedim(1, -1), (c,)).movedim(-1, 1))
    held = dict(weight=torch.rand(c)+.5, bias=torch.randn(c)*.2, running_mean=torch.randn(c)*.2,
        running_var=torch.rand(c)+.5)
    view = b.wide
    def frozen(m, x):
        w = m.weight*(m.running_var+1e-5).rsqrt()
        return x*view(w)+view(m.bias-m.running_mean*w)
    def plain(m, x): return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, .1, 1e-5)
    m = Part(frozen if kind == 'frozen' else plain)
    for k, t in held.items(): m.register_buffer(k, t)
    return m


# ---- elementwise

class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x*torch.sigmoid(x)
    @staticmethod
    def backward(ctx, g): return g

@torch.jit.script
def scripted_gelu(x): return x*.5*(1.+torch.erf(x/1.41421))

@part
def act(b):
    c = b.c
    inplace = b.chance(.3)
    return b.pick(*[lambda k=k: k()
        for k in (nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.Softplus, nn.Sigmoid,
        nn.Tanh, nn.Mish, nn.RReLU, nn.CELU, nn.SELU,
        nn.Hardsigmoid, nn.Hardtanh, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
        nn.Dropout, nn.Identity, nn.AlphaDropout)],
        lambda: nn.ReLU(inplace), lambda: nn.PReLU(c), lambda: nn.Threshold(.1, 0.), lambda: nn.Softmax(1),
        lambda: nn.Softmax(-1), lambda: nn.LogSoftmax(1), lambda: nn.Softmax2d() if b.d == 2 else nn.Softmax(1))()

@part
def elementwise(b):
    f = b.pick(*[(lambda g: lambda m, x: g(x))(g)
        for g in (torch.abs, torch.sin, torch.erf, torch.atan, lambda x: x**2, lambda x: x.pow(3),
        lambda x: (x.abs()+1).sqrt(), lambda x: (x*x+1).log(), lambda x: x*torch.sigmoid(x),
        lambda x: x.clamp(-1, 2), lambda x: torch.where(x > 0, x, x*.1), lambda x: torch.maximum(x, x*.2),
        lambda x: torch.exp(-x.abs()), lambda x: 1-x, lambda x: 2/(x.abs()+1), lambda x: x.masked_fill(x < 0, 0.),
        lambda x: torch.lerp(x, torch.tanh(x), .3), lambda x: x.nan_to_num(), Swish.apply, scripted_gelu,
        lambda x: torch.addcmul(x, x, x, value=.5), lambda x: x.float().to(x.dtype) if x.dtype is torch.float32 else x,
        lambda x: x-x.detach(), lambda x: torch.relu_(x.clone()), lambda x: x.mul_(2.).add_(1.),
        lambda x: F.relu(x, inplace=True), lambda x: x.round()*.1+x,
        lambda x: torch.heaviside(x, torch.ones_like(x))+x, lambda x: x.sign()*x,
        lambda x: torch.floor_divide(x, .5)+x, lambda x: torch.fmod(x, 2.), lambda x: torch.special.expit(x),
        lambda x: torch.logaddexp(x, -x), lambda x: torch.stack([x, -x]).amax(0), lambda x: x.new_tensor(2.)*x,
        lambda x: torch.hypot(x, x+1), lambda x: (x > 0).to(x.dtype)*x,
        lambda x: torch.bitwise_and((x > 0).int(), (x < 1).int()).to(x.dtype)+x, lambda x: x.clip(max=1.),
        lambda x: torch.atan2(x, x+2))])
    return Part(f)

@part
def per_channel(b):
    "Parameters and buffers with an entry per channel."
    c, view = b.c, b.wide
    p = nn.Parameter(torch.rand(c)+.5)
    how = b.pick('scale', 'shift', 'swish', 'snake', 'clamp', 'where', 'lerp', 'pow', 'affine', 'gate', 'buffer',
        'stacked', 'list', 'fake', 'flat', 'max', 'keyed', 'embedded', 'index')
    f = dict(scale=lambda m, x: x*view(m.p), shift=lambda m, x: x-view(m.p), swish=lambda m,
        x: x*torch.sigmoid(view(m.p)*x), snake=lambda m, x: x+torch.sin(view(m.p)*x)**2/(view(m.p)+1e-6),
        clamp=lambda m, x: torch.clamp(x, min=-view(m.p), max=view(m.p)), where=lambda m,
        x: torch.where(x > view(m.p), x, view(m.p)*.1), lerp=lambda m,
        x: torch.lerp(x, x.tanh(), view(m.p.clamp(0, 1))),
        pow=lambda m, x: (x.abs()+.1)**view(m.p), affine=lambda m, x: torch.addcmul(view(m.q), x, view(m.p)),
        gate=lambda m, x: x*view(m.p).sigmoid(), buffer=lambda m, x: (x-view(m.mean))/view(m.std),
        stacked=lambda m, x: x*view(m.s[0])+view(m.s[1]), list=lambda m, x: x*view(m.l[0])+view(m.l[1]), fake=lambda m,
        x: torch.fake_quantize_per_channel_affine(x.float(), m.step.float(), m.zero, 1, -128, 127).to(x.dtype),
        flat=lambda m, x: (x.flatten(2)*m.p[:, None]).view_as(x), max=lambda m, x: torch.max(x, view(m.p)),
        keyed=lambda m, x: x*view(m.d['g']), embedded=lambda m, x: x+view(m.e.weight[1]), index=lambda m,
        x: x*m.p[:, *[None]*(x.dim()-2)])[how]
    m = Part(f, p=p)
    if how == 'affine': m.q = nn.Parameter(torch.randn(c)*.2)
    if how == 'buffer':
        m.register_buffer('mean', torch.randn(c)*.1)
        m.register_buffer('std', torch.rand(c)+.5, persistent=b.chance())
    if how == 'stacked': m.s = nn.Parameter(torch.rand(2, c)+.5)
    if how == 'list': m.l = nn.ParameterList([torch.rand(c)+.5, torch.randn(c)])
    if how == 'keyed': m.d = nn.ParameterDict(dict(g=torch.rand(c)+.5))
    if how == 'fake':
        m.register_buffer('step', torch.rand(c)*.1+.01)
        m.register_buffer('zero', torch.zeros(c, dtype=torch.int32))
    if how == 'embedded': m.e = nn.Embedding(3, c)
    return m

@part
def position(b):
    "A parameter over the whole image, or over its pixels."
    how = b.pick('image', 'pixels', 'rows', 'flat')
    c, size = b.c, b.size
    shape = dict(image=(1, c, *size), pixels=(1, 1, *size), rows=(1, c, size[0], *[1]*(b.d-1)),
        flat=(1, torch.tensor(size).prod().item(), c))[how]
    f = ((lambda m, x: (x.flatten(2).transpose(1, 2)+m.p).transpose(1, 2).reshape(x.shape)) if how == 'flat'
        else lambda m, x: x+m.p)
    return Part(f, p=nn.Parameter(torch.randn(shape)*.2))

@part
def interpolated_position(b):
    m = Part(lambda m, x: x+F.interpolate(m.p, size=x.shape[2:], mode='nearest'),
        p=nn.Parameter(torch.randn(1, b.c, *[2]*b.d)*.2))
    return m


# ---- branches

@part(holds=1)
def residual(b, inner):
    c, size = b.c, list(b.size)
    body = b.parts(inner)
    project = b.conv(c, b.c, bias=False) if c != b.c else nn.Identity()
    scale = nn.Parameter(b.wide(torch.rand(b.c)))
    if b.size != size: project = nn.Sequential(project, of_dim(b.d, 'AdaptiveAvgPool')(tuple(b.size)))
    f = b.pick(lambda m, x: m.p(x)+m.body(x), lambda m, x: torch.add(m.p(x), m.body(x), alpha=.5), lambda m,
        x: m.body(x).add_(m.p(x)), lambda m, x: m.p(x)-m.body(x), lambda m, x: F.relu(m.body(x)+m.p(x)),
        lambda m, x: m.p(x)+m.s*m.body(x), lambda m, x: (m.p(x)+m.body(x))/2, lambda m, x: sum([m.p(x), m.body(x)]),
        lambda m, x: torch.stack([m.p(x), m.body(x)]).sum(0), lambda m, x: torch.stack([m.p(x), m.body(x)], 1).mean(1),
        lambda m, x: torch.lerp(m.p(x), m.body(x), .3), lambda m, x: torch.sub(m.p(x), m.body(x), alpha=2), lambda m,
        x: m.body(x.clone())+m.p(x), lambda m,
        x: torch.utils.checkpoint.checkpoint(m.body, x, use_reentrant=False)+m.p(x))
    return Part(f, body=body, p=project, s=scale)

@part(holds=2)
def branches(b, left, right):
    "Two ways that are joined."
    other = b.at(b.c)
    x, y = b.parts(left), other.parts(right)
    pool = of_dim(b.d, 'AdaptiveAvgPool')(tuple(b.size)) if other.size != b.size else nn.Identity()
    how = b.pick('cat', 'cat', 'mul', 'max', 'gate', 'div', 'stack', 'blend', 'interleave', 'list', 'minus', 'bmm',
        'three')
    if how in ('cat', 'list', 'three'):
        f = dict(cat=lambda m, x: torch.cat([m.x(x), m.pool(m.y(x))], 1), list=lambda m,
            x: torch.cat([x, *(g(x) for g in (m.x, nn.Sequential(m.y, m.pool)))][1:], 1),
            three=lambda m, x: torch.cat((F.relu(a := m.x(x)), m.pool(m.y(x)), a), 1))[how]
        b.c = other.c+b.c*(2 if how == 'three' else 1)
        return Part(f, x=x, y=y, pool=pool)
    y = nn.Sequential(y, b.conv(other.c, b.c), pool)
    f = dict(mul=lambda m, x: m.x(x)*m.y(x), max=lambda m, x: torch.max(m.x(x), m.y(x)), gate=lambda m,
        x: m.x(x)*m.y(x).sigmoid(), div=lambda m, x: m.x(x)/(m.y(x).abs()+1), minus=lambda m, x: m.x(x)-m.y(x),
        stack=lambda m, x: torch.stack([m.x(x), m.y(x)], 1).max(1)[0], blend=lambda m,
        x: (lambda g, a, c: g*a+(1-g)*c)(m.y(x).sigmoid(), m.x(x), m.y(x)),
        interleave=lambda m, x: torch.stack([m.x(x), m.y(x)], 2).flatten(1, 2), bmm=lambda m,
        x: m.x(x)+(m.x(x).flatten(2)*m.y(x).flatten(2)).sum(-1).reshape(len(x), -1, *[1]*(x.dim()-2)))[how]
    if how == 'interleave': b.c *= 2
    return Part(f, x=x, y=y)

@part(holds=1)
def split(b, inner):
    "A part of the channels goes another way."
    c = b.c
    if c < 4: return
    k = c//2 if b.chance() and c % 2 == 0 else b.pick(1, 2, c-1)
    half = b.at(k)
    body = half.parts(inner)
    pool = of_dim(b.d, 'AdaptiveAvgPool')(tuple(b.size)) if half.size != b.size else nn.Identity()
    def cut(m, x):
        if m.how == 'slice': return x[:, :k], x[:, k:]
        if m.how == 'narrow': return x.narrow(1, 0, k), x.narrow(1, k, x.shape[1]-k)
        if m.how == 'split': return torch.split(x, [k, c-k], 1)
        if m.how == 'tensor_split': return torch.tensor_split(x, [k], 1)
        if m.how == 'index': return x[:, torch.arange(k)], x[:, torch.arange(k, c)]
        if m.how == 'steps': return x[:, ::2][:, :k], torch.cat([x[:, ::2][:, k:], x[:, 1::2]], 1)
        return x.chunk(2, 1)
    how = b.pick('slice', 'narrow', 'split', 'tensor_split', 'index', *(['chunk']*3 if 2*k == c else []),
        *(['steps'] if k <= c//2 else []))
    order = b.pick('cat', 'swap', 'add') if half.c == c-k else b.pick('cat', 'swap')
    def f(m, x):
        a, rest = cut(m, x)
        a = m.pool(m.body(a))
        return torch.cat([a, rest], 1) if order == 'cat' else torch.cat([rest, a], 1) if order == 'swap' else a+rest
    b.c = c-k if order == 'add' else half.c+c-k
    m = Part(f, body=body, pool=pool); m.how = how
    return m

@part(holds=1)
def unet(b, inner):
    c, size = b.c, list(b.size)
    if min(size) < 4: return
    up = b.pick('nearest', 'linear', 'transposed', 'same')
    if any(n % 2 for n in size) and up == 'transposed': up = 'nearest'
    down = getattr(nn, f'{b.pick("Max", "Avg")}Pool{b.d}d')(2)
    b.size = [n//2 for n in size]
    body = b.parts(inner)
    mode = {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[b.d] if up == 'linear' else 'nearest'
    lift = (of_dim(b.d, 'ConvTranspose')(b.c, b.c, 2, stride=2) if up == 'transposed'
        and b.size == [n//2 for n in size] else None)
    def f(m, x):
        y = m.body(m.down(x))
        y = (m.up(y) if m.up is not None
            else F.interpolate(y, size=x.shape[2:], mode=mode, **(dict(align_corners=False) if up == 'linear' else {})))
        return torch.cat([x, y], 1)
    b.size, b.c = size, c+b.c
    return Part(f, body=body, down=down, up=lift)

@part
def dense(b):
    g, n, c = b.pick(2, 4), b.pick(2, 3), b.c
    layers = nn.ModuleList(nn.Sequential(b.bn(c+i*g), nn.ReLU(), b.conv(c+i*g, g, 3)) for i in range(n))
    def f(m, x):
        found = [x]
        for l in m.layers: found.append(l(torch.cat(found, 1)))
        return torch.cat(found, 1)
    b.c = c+n*g
    return Part(f, layers=layers)

@part
def res2(b):
    "Parts of the channels, one after the other (Res2Net)."
    g = b.divisor(3, 4)
    if g is None: return
    n = b.c//g
    def f(m, x):
        out, y = [], None
        for i, s in enumerate(torch.split(x, n, 1)):
            if i == 0: out.append(s); continue
            y = F.relu(m.layers[i-1](s if y is None else s+y)); out.append(y)
        return torch.cat(out, 1)
    return Part(f, layers=nn.ModuleList(b.conv(n, n, 3) for _ in range(g-1)))

@part
def ghost(b):
    o = b.width()
    m = Part(lambda m, x: (lambda y: torch.cat([y, m.cheap(y)], 1))(F.relu(m.l(x))), l=b.conv(b.c, o),
        cheap=b.conv(o, o, 3, groups=o))
    b.c = 2*o
    return m

@part
def maxout(b):
    o = b.pick(2, 4, 6)
    how = b.pick('view', 'chunk', 'pool')
    f = dict(view=lambda m, x: (lambda y: y.view(len(y), o, 2, *y.shape[2:]).amax(2))(m.l(x)), chunk=lambda m,
        x: torch.max(*m.l(x).chunk(2, 1)), pool=lambda m,
        x: (lambda y: y.view(len(y), y.shape[1]//2, 2, *y.shape[2:]).max(2).values)(m.l(x)))[how]
    m = Part(f, l=b.conv(b.c, 2*o)); b.c = o
    return m

@part
def gated(b):
    "GLU and its relatives."
    o, how = b.width(), b.pick('glu', 'chunk', 'swiglu', 'simple', 'two', 'spatial')
    f = dict(glu=lambda m, x: F.glu(m.l(x), 1), chunk=lambda m, x: (lambda a, c: a*c.sigmoid())(*m.l(x).chunk(2, 1)),
        swiglu=lambda m, x: (lambda a, c: F.silu(a)*c)(*m.l(x).split(o, 1)),
        simple=lambda m, x: (lambda a, c: a*c)(*m.l(x).chunk(2, 1)), two=lambda m, x: m.a(x)*m.l(x).chunk(2, 1)[0],
        spatial=lambda m, x: (lambda a, c: a*(m.g(c)+1))(*F.gelu(m.l(x)).chunk(2, 1)))[how]
    m = Part(f, l=b.conv(b.c, 2*o), a=b.conv(b.c, o), g=b.conv(o, o, 3, groups=o)); b.c = o
    return m


# ---- attention and gates

@part
def excite(b):
    c, h, axes, how = (b.c, max(b.c//2, 2), b.axes(),
        b.pick('conv', 'linear', 'eca', 'max', 'global', 'style', 'context', 'spatial', 'cbam'))
    wide = lambda v: v.reshape(*v.shape, *[1]*len(axes))
    f = dict(conv=lambda m, x: x*m.two(F.relu(m.one(x.mean(axes, keepdim=True)))).sigmoid(), linear=lambda m,
        x: x*wide(m.l2(F.relu(m.l1(x.mean(axes)))).sigmoid()),
        eca=lambda m, x: x*wide(m.e(x.mean(axes)[:, None])[:, 0].sigmoid()), max=lambda m,
        x: x*wide((m.l2(F.relu(m.l1(x.amax(axes))))+m.l2(F.relu(m.l1(x.mean(axes))))).sigmoid()),
        style=lambda m, x: (lambda g, s: x*wide(g)+wide(s))(*m.l3(x.mean(axes)).chunk(2, 1)), context=lambda m,
        x: x+wide((x.flatten(2)@m.k(x).flatten(2).softmax(-1).transpose(1, 2))[..., 0]),
        spatial=lambda m, x: x*m.k(x).sigmoid(), cbam=lambda m,
        x: x*m.s(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid(),
        **{'global': lambda m, x: m.g*(x*(n := x.flatten(2).norm(dim=2).reshape(*x.shape[:2],
        *[1]*len(axes)))/(n.mean(1, keepdim=True)+1e-6))+x})[how]
    return Part(f, one=b.conv(c, h), two=b.conv(h, c), l1=nn.Linear(c, h), l2=nn.Linear(h, c), l3=nn.Linear(c, 2*c),
        e=nn.Conv1d(1, 1, 3, padding=1), k=b.conv(c, 1), s=b.conv(2, 1, 3), g=nn.Parameter(b.wide(torch.rand(c))[None]))

@part
def select_kernels(b):
    "Two kernels, and a softmax over which of them (SKNet, split attention)."
    o, axes = b.width(), b.axes()
    how = b.pick('stack', 'view')
    def f(m, x):
        u = (torch.stack([F.relu(m.x(x)), F.relu(m.y(x))], 1) if how == 'stack'
            else (lambda y: y.view(len(y), 2, y.shape[1]//2, *y.shape[2:]))(F.relu(m.z(x))))
        z = m.two(F.relu(m.one(u.sum(1).mean(axes)))).view(len(x), 2, -1).softmax(1)
        return (u*z.reshape(*z.shape, *[1]*len(axes))).sum(1)
    m = Part(f, x=b.conv(b.c, o), y=b.conv(b.c, o, 3), z=b.conv(b.c, 2*o), one=nn.Linear(o, 4), two=nn.Linear(4, 2*o))
    b.c = o
    return m

@part
def attention(b):
    c, g = b.c, b.divisor(2, 3) or 1
    how = b.pick('nonlocal', 'module', 'fused', 'channels', 'linear', 'encoder', 'window', 'einsum', 'token')
    def tok(x): return x.flatten(2).transpose(1, 2)
    def back(t, x): return t.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])
    def heads(t): return t.reshape(len(t), t.shape[1], g, -1).transpose(1, 2)
    f = dict(nonlocal_=lambda m, x: x
        +m.o(((m.v(x).flatten(2)@(m.q(x).flatten(2).transpose(1, 2)@m.k(x).flatten(2)).softmax(-1).transpose(1,
        2))).reshape(x.shape)),
        module=lambda m, x: x+back(m.a(*[tok(x)]*3, need_weights=False)[0], x),
        fused=lambda m, x: back(F.scaled_dot_product_attention(*map(heads, m.qkv(tok(x)).chunk(3, -1))).transpose(1,
        2).flatten(2), x),
        channels=lambda m, x: (lambda q, k,
        v: ((F.normalize(q, dim=-1)@F.normalize(k, dim=-1).transpose(1, 2)*m.t).softmax(-1)@v).reshape(x.shape))(
        *(l(x).flatten(2) for l in (m.q, m.k, m.v))),
        linear=lambda m, x: (lambda q, k,
        v: (v@k.softmax(-1).transpose(1, 2)@q.softmax(1)).reshape(x.shape))(*(l(x).flatten(2)
        for l in (m.q, m.k, m.v))),
        encoder=lambda m, x: back(m.e(tok(x)), x), window=lambda m,
        x: x+back(m.a(*[t := torch.roll(tok(x), 1, 1)]*3)[0].roll(-1, 1), x),
        einsum=lambda m, x: torch.einsum('bij,bcj->bci',
        torch.einsum('bci,bcj->bij', m.q(x).flatten(2), m.k(x).flatten(2)).softmax(-1),
        m.v(x).flatten(2)).reshape(x.shape),
        token=lambda m, x: x+(m.a(m.cls.expand(len(x), -1, -1),
        *[torch.cat([m.cls.expand(len(x), -1, -1), tok(x)], 1)]*2)[0].transpose(1, 2)).reshape(len(x), -1,
        *[1]*(x.dim()-2)))
    f = f['nonlocal_' if how == 'nonlocal' else how]
    held = dict(q=b.conv(c, c), k=b.conv(c, c), v=b.conv(c, c), o=b.conv(c, c), t=nn.Parameter(torch.ones(1)))
    if how in ('module', 'window', 'token'):
        held = dict(a=nn.MultiheadAttention(c, g, batch_first=True), cls=nn.Parameter(torch.randn(1, 1, c)))
    if how == 'fused': held = dict(qkv=nn.Linear(c, 3*c))
    if how == 'encoder': held = dict(e=nn.TransformerEncoderLayer(c, g, 8, batch_first=True, norm_first=b.chance()))
    return Part(f, **held)

@part
def recurrent(b):
    h, kind = b.pick(4, 6), b.pick('LSTM', 'GRU', 'RNN', 'two', 'cell')
    def f(m, x):
        return (lambda t: t.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))(m.r(x.flatten(2).transpose(1, 2))[0])
    def cell(m, x):
        s = torch.zeros(len(x), h, dtype=x.dtype)
        for t in x.flatten(2).unbind(2)[:3]: s = m.r(t, s)
        return x.mean(1, keepdim=True)+s.reshape(*s.shape, *[1]*(x.dim()-2))
    r = (nn.GRUCell(b.c, h) if kind == 'cell' else nn.LSTM(b.c, h, 2, batch_first=True, bidirectional=True)
        if kind == 'two' else getattr(nn, kind)(b.c, h, batch_first=True))
    b.c = 2*h if kind == 'two' else h
    return Part(cell if kind == 'cell' else f, r=r)


# ---- channels and pixels in other places

@part
def pool(b):
    if min(b.size) < 2: return
    how = b.pick('max', 'avg', 'adaptive', 'one', 'lp', 'unpool', 'blur', 'mean', 'sum', 'adaptive max', 'ceil',
        'stochastic')
    d = b.d
    half = [n//2 for n in b.size]
    if how == 'max': b.size = half; return of_dim(d, 'MaxPool')(2)
    if how == 'avg': b.size = half; return of_dim(d, 'AvgPool')(2)
    if how == 'ceil': b.size = [-(-n//2) for n in b.size]; return of_dim(d, 'MaxPool')(2, ceil_mode=True)
    if how == 'adaptive': b.size = [2]*d; return of_dim(d, 'AdaptiveAvgPool')(2)
    if how == 'adaptive max': b.size = [2]*d; return of_dim(d, 'AdaptiveMaxPool')(2)
    if how == 'one': return Part(lambda m, x: m.p(x).expand(x.shape), p=of_dim(d, 'AdaptiveAvgPool')(1))
    if how == 'lp': b.size = half; return of_dim(d, 'LPPool')(2, 2)
    if how == 'mean': return Part(lambda m, x: x-x.mean(m.axes, keepdim=True), axes=b.axes())
    if how == 'sum': return Part(lambda m, x: x.sum(-1, keepdim=True)*.1+x)
    if how == 'stochastic': return nn.Dropout(.3)
    if how == 'unpool' and d == 2:
        return Part(lambda m, x: (lambda y,
            i: F.max_unpool2d(y, i, 2, output_size=x.shape[2:]))(*F.max_pool2d(x, 2, return_indices=True)))
    if how == 'blur' and d == 2:
        m = Part(lambda m, x: F.conv2d(x, m.k.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1]))
        m.register_buffer('k', torch.tensor([1., 2, 1])[:, None]*torch.tensor([1., 2, 1])[None]/16)
        return m

@part
def shuffle(b):
    g = b.divisor(2, 3, 4)
    how = b.pick('view', 'module', 'pixel', 'unpixel', 'swap', 'depth', 'flip', 'roll', 'order', 'gather', 'repeat',
        'interleave', 'pad', 'twice', 'steps', 'last', 'fold', 'tile', 'rotate', 'turn', 'strided', 'crop', 'expand',
        'einops')
    c = b.c
    if how == 'view' and g: return Part(lambda m, x: x.view(len(x), g, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2))
    if how == 'einops' and g:
        return Part(lambda m, x: x.reshape(len(x), x.shape[1]//g, g, *x.shape[2:]).transpose(1, 2).reshape(len(x), -1,
            *x.shape[2:]))
    if how == 'module' and g and b.d == 2: return nn.ChannelShuffle(g)
    if how == 'pixel' and b.d == 2 and c % 4 == 0 and max(b.size) <= 8:
        b.c, b.size = c//4, [2*n for n in b.size]
        return nn.PixelShuffle(2)
    if how == 'unpixel' and b.d == 2 and not any(n % 2 for n in b.size) and c <= 12:
        b.c, b.size = 4*c, [n//2 for n in b.size]
        return nn.PixelUnshuffle(2)
    if how == 'depth' and b.d == 2 and not any(n % 2 for n in b.size) and c <= 12:
        b.c, b.size = 4*c, [n//2 for n in b.size]
        return Part(lambda m, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2],
            x[..., 1::2, 1::2]], 1))
    if how == 'swap' and c % 2 == 0: return Part(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1))
    if how == 'flip': return Part(lambda m, x: x.flip(m.at), at=b.pick(1, -1, (1, 2)))
    if how == 'roll': return Part(lambda m, x: torch.roll(x, m.by, m.at), by=b.pick(1, 2), at=b.pick(1, -1))
    if how == 'order':
        m = Part(lambda m, x: x[:, m.order] if m.how else x.index_select(1, m.order), how=b.chance())
        m.register_buffer('order', torch.randperm(c))
        return m
    if how == 'gather':
        m = Part(lambda m, x: torch.gather(x, 1, m.at.expand(len(x), -1, *x.shape[2:])))
        m.register_buffer('at', b.wide(torch.randperm(c))[None])
        return m
    if how in ('repeat', 'interleave', 'twice', 'tile', 'expand') and c <= 12:
        b.c = 2*c
        return Part(dict(repeat=lambda m, x: x.repeat(1, 2, *[1]*(x.dim()-2)), interleave=lambda m,
            x: x.repeat_interleave(2, 1), twice=lambda m, x: torch.cat([x, -x], 1), tile=lambda m,
            x: torch.tile(x, (2, *[1]*(x.dim()-2))),
            expand=lambda m, x: x[:, :, None].expand(-1, -1, 2, *x.shape[2:]).flatten(1, 2))[how])
    if how == 'pad': k = b.pick(1, 3); b.c = c+k; return Part(lambda m, x: F.pad(x, [0]*(2*(x.dim()-2))+[0, k]))
    if how == 'steps' and c % 2 == 0: b.c = c//2; return Part(lambda m, x: x[:, ::2]+x[:, 1::2])
    if how == 'last': return Part(lambda m, x: x.movedim(1, -1).contiguous().movedim(-1, 1))
    if how == 'fold' and b.d == 2:
        return Part(lambda m, x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1))
    if how == 'rotate' and b.d == 2: b.size = b.size[::-1]; return Part(lambda m, x: torch.rot90(x, 1, (2, 3)))
    if how == 'turn' and b.d > 1:
        b.size[-1], b.size[-2] = b.size[-2], b.size[-1]
        return Part(lambda m, x: x.transpose(-1, -2))
    if how == 'strided': return Part(lambda m, x: x.contiguous().as_strided(x.shape, x.contiguous().stride()))
    if how == 'crop' and min(b.size) > 2:
        b.size = [n-1 for n in b.size]
        return Part(lambda m, x: x[(..., *[slice(1, None)]*(x.dim()-2))])

@part
def resize(b):
    d = b.d
    size = [n*2 for n in b.size] if max(b.size) <= 8 else list(b.size)
    mode = b.pick('nearest', 'nearest-exact', {1: 'linear', 2: 'bilinear', 3: 'trilinear'}[d],
        *(['bicubic'] if d == 2 else []), 'area')
    b.size = size
    return Part(lambda m, x: F.interpolate(x, size=tuple(size), mode=mode))

@part
def reshaped(b):
    "Views by numbers: computed, stored or written down."
    c, size = b.c, tuple(b.size)
    n = torch.tensor(size).prod().item()
    g = b.divisor(2, 3) or 1
    f = b.pick(lambda m, x: x.view(len(x), c, n).view(len(x), c, *size), lambda m,
        x: x.reshape(len(x), -1).reshape(x.shape), lambda m, x: x.flatten(1).unflatten(1, (c, *size)), lambda m,
        x: x.reshape(-1, *x.shape[2:]).reshape(x.shape),
        lambda m, x: x.flatten(2).permute(2, 0, 1).permute(1, 2, 0).reshape(x.shape), lambda m,
        x: x.view(len(x), g, c//g, *x.shape[2:]).mean(2, keepdim=True).expand(-1, -1, c//g,
        *x.shape[2:]).reshape(x.shape),
        lambda m, x: x.reshape(len(x)*g, -1, *x.shape[2:]).reshape(x.shape), lambda m,
        x: x.view(len(x), g, -1, *x.shape[2:]).softmax(2).view(x.shape), lambda m, x: x.unsqueeze(1).squeeze(1),
        lambda m, x: x[None][0],
        lambda m, x: x.view(len(x), g, c//g, -1).flip(1).reshape(x.shape), lambda m, x: torch.stack(x.unbind(1), 1),
        lambda m, x: torch.stack([x[:, i] for i in range(x.shape[1])], 1), lambda m, x: x.ravel().reshape(x.shape),
        lambda m, x: torch.cat([x[i:i+1] for i in range(len(x))]), lambda m, x: x.swapaxes(1, -1).swapaxes(1, -1),
        lambda m, x: torch.cat([x[:, i:i+1]*(i+1) for i in range(x.shape[1])], 1))
    return Part(f)

@part
def written(b):
    "Tensors that are written into."
    c, k = b.c, max(b.c//2, 1)
    def empty(m, x):
        y = torch.empty_like(x); y[:, :k] = x[:, k:][:, :k] if c % 2 == 0 else x[:, :k]; y[:, k:] = x[:, k:]
        return y
    def zeros(m, x):
        y = x.new_zeros(x.shape); y[:, :k] = x[:, :k]
        return y
    def loop(m, x):
        y = torch.zeros_like(x)
        for i in range(x.shape[1]): y[:, i] = x[:, i]*(i % 3+1)
        return y
    def some(m, x): x = x.clone(); x[:, 0] = 0; return x
    def out(m, x): y = torch.empty_like(x); torch.add(x, 1., out=y); return y
    def half(m, x): x = x.clone(); x[:, :k].mul_(2.); return x
    def shift(m, x):
        y = torch.zeros_like(x); y[:, :k, ..., 1:] = x[:, :k, ..., :-1]; y[:, k:] = x[:, k:]
        return y
    def added(m, x): return x.clone().index_add_(1, torch.tensor([0]), x[:, :1])
    def kept(m, x): m.last = x; return m.last*2
    def counted(m, x): m.count += 1; return x
    def copied(m, x): y = torch.empty_like(x); y.copy_(x); return y
    def masked(m, x): x = x.clone(); x[x < 0] = 0; return x
    def scattered(m, x):
        return torch.zeros_like(x).scatter_(1, torch.arange(c).reshape(1, -1, *[1]*(x.dim()-2)).expand(x.shape), x)
    def padded(m, x): y = x.new_zeros(len(x), c+2, *x.shape[2:]); y[:, 1:c+1] = x; return y[:, 1:-1]
    def buffered(m, x): m.seen.copy_(x.detach().mean()); return x+m.seen*0
    f = b.pick(empty, zeros, loop, some, out, half, shift, added, kept, counted, copied, masked, scattered, padded,
        buffered)
    m = Part(f)
    m.register_buffer('count', torch.zeros((), dtype=torch.long)); m.register_buffer('seen', torch.zeros(()))
    return m

@part
def python(b):
    "Python looks at sizes."
    c, size = b.c, list(b.size)
    def scaled(m, x): return x*x.shape[1]**-.5
    def branch(m, x): return x*2 if x.shape[1] == c else x
    def pixels(m, x): return x*2 if x.shape[-1] > 4 else x
    def asserted(m, x): assert x.shape[1] == c, 'channels'; return x
    def loop(m, x):
        for _ in range(x.dim()): x = x*.9
        return x
    def tried(m, x):
        try: return x.view(len(x), c, -1).view(x.shape)
        except RuntimeError: return x*3
    def made(m, x): return x+torch.zeros(c).reshape(-1, *[1]*(x.dim()-2)).to(x)
    def mean(m, x): return x-x.sum(1, keepdim=True)/x.shape[1]
    def lists(m, x): return (lambda d: d['a'][0]+d['b'])(dict(a=[x, x], b=x*.5))
    def module(m, x): return x.view(len(x), m.c, *x.shape[2:])
    def linspace(m, x): return x*torch.linspace(.5, 1, c).reshape(-1, *[1]*(x.dim()-2)).to(x)
    def arange(m, x): return x*(torch.arange(x.shape[1])+1).reshape(-1, *[1]*(x.dim()-2)).to(x)
    def numel(m, x): return x/x[0].numel()**.5
    def coords(m, x): return torch.cat([x, torch.linspace(0, 1, x.shape[-1]).to(x).expand(len(x), 1, *x.shape[2:])], 1)
    def sorted_(m, x): return x.sort(m.at)[0]
    def top(m, x): return x*(x >= x.topk(min(2, x.shape[1]), 1)[0][:, -1:]).to(x.dtype)
    f = b.pick(scaled, branch, pixels, asserted, loop, tried, made, mean, lists, module, linspace, arange, numel,
        coords, sorted_, top)
    if f is coords: b.c = c+1
    m = Part(f, c=c, at=b.pick(1, -1))
    return m

@part
def hooked(b):
    l = b.conv(b.c, b.c, 3)
    l.register_forward_hook(b.pick(lambda m, i, o: o*2, lambda m, i, o: F.relu(o), lambda m, i,
        o: None)) if b.chance() else l.register_forward_pre_hook(lambda m, i: (i[0]*.5,))
    return l

@part
def fourier(b):
    how = b.pick('filter', 'abs', 'mix')
    n = b.size[-1]//2+1
    f = dict(filter=lambda m, x: torch.fft.irfft(torch.fft.rfft(x)*m.w, n=x.shape[-1]), abs=lambda m,
        x: torch.fft.fft(x).abs(),
        mix=lambda m, x: (lambda z: torch.fft.irfft(torch.view_as_complex(torch.view_as_real(z).mul(2.).contiguous()),
        n=x.shape[-1]))(torch.fft.rfft(x)))[how]
    return Part(f, w=nn.Parameter(torch.rand(n)+.5))

@part
def sampled(b):
    "An image read at places that it computes itself (spatial transformer)."
    if b.d != 2: return
    def f(m, x):
        theta = (m.l(x.mean((2, 3)))*.1+torch.tensor([1., 0, 0, 0, 1, 0]).to(x)).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
    return Part(f, l=nn.Linear(b.c, 6))

@part
def quantised(b):
    "Stubs and fake quantization, as training for fixed-point numbers has it."
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, QuantStub
    q = FakeQuantize(MovingAverageMinMaxObserver)
    q(torch.randn(4, 4)); q.disable_observer()
    return nn.Sequential(QuantStub(), b.conv(b.c, b.c, 3), q)

@part
def codebook(b):
    "Each pixel is replaced by the nearest of some vectors."
    def f(m, x):
        t = x.movedim(1, -1).reshape(-1, x.shape[1])
        return m.e(torch.cdist(t, m.e.weight).argmin(1)).reshape(x.movedim(1, -1).shape).movedim(-1, 1)
    return Part(f, e=nn.Embedding(5, b.c))

@part
def scripted(b):
    o = b.width()
    m = (torch.jit.script(nn.Sequential(b.conv(b.c, o, 3), nn.ReLU())) if b.chance()
        else nn.Sequential(b.conv(b.c, o, 3), torch.jit.script(nn.Hardswish())))
    b.c = o
    return m

@part
def traced(b):
    if b.d != 2: return
    o = b.width()
    m = torch.jit.trace(nn.Sequential(nn.Conv2d(b.c, o, 1), nn.ReLU()), torch.randn(1, b.c, *b.size), check_trace=False)
    b.c = o
    return m

@part
def named(b):
    "A module whose container is a dict, called by name, one of them never."
    o = b.width()
    m = Part(lambda m, x: m.d['one'](x), d=nn.ModuleDict(dict(one=b.conv(b.c, o), never=b.conv(b.c, o)))); b.c = o
    return m


# ---- heads

def head(f): HEADS[f.__name__] = f; return f

@head
def mean(b): axes = b.axes(); return Part(lambda m, x: m.l(x.mean(axes)), l=nn.Linear(b.c, 3))
@head
def pooled(b):
    return nn.Sequential(of_dim(b.d, 'AdaptiveAvgPool')(2), nn.Flatten(), nn.Linear(b.c*2**b.d, 6), nn.ReLU(),
        nn.Dropout(), nn.Linear(6, 3))
@head
def dense_map(b): return b.conv(b.c, 3)
@head
def flat(b):
    n = b.c*torch.tensor(b.size).prod().item()
    return Part(lambda m, x: m.l(x.view(x.size(0), -1)), l=nn.Linear(n, 3))
@head
def dictionary(b):
    axes = b.axes()
    return Part(lambda m, x: OrderedDict(out=m.a(x), aux=m.l(x.mean(axes))), a=b.conv(b.c, 2), l=nn.Linear(b.c, 3))
@head
def two(b):
    axes = b.axes()
    return Part(lambda m, x: (m.l(x.mean(axes)), [m.a(x)]), a=b.conv(b.c, 2), l=nn.Linear(b.c, 3))
@head
def features(b): axes = b.axes(); return Part(lambda m, x: dict(x=x, y=m.l(x.mean(axes))), l=nn.Linear(b.c, 3))

Pair = namedtuple('Pair', 'logits image')
@head
def pair(b):
    axes = b.axes()
    return Part(lambda m, x: Pair(m.l(x.mean(axes)), m.a(x)), a=b.conv(b.c, 2), l=nn.Linear(b.c, 3))

@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    extra: object = None

@head
def answer(b): axes = b.axes(); return Part(lambda m, x: Answer(m.l(x.mean(axes))), l=nn.Linear(b.c, 3))
@head
def auxiliary(b):
    "A second output while training."
    axes = b.axes()
    return Part(lambda m, x: (m.l(x.mean(axes)), m.a(x)) if m.training else m.l(x.mean(axes)), a=b.conv(b.c, 2),
        l=nn.Linear(b.c, 3))
@head
def bare(b): return nn.Identity()
@head
def embedded(b):
    axes = b.axes()
    return Part(lambda m, x: F.normalize(m.l(x.mean(axes)), dim=1)@F.normalize(m.w, dim=1).t(), l=nn.Linear(b.c, 6),
        w=nn.Parameter(torch.randn(3, 6)))
@head
def boxes(b):
    "One-stage detection: a map per anchor, reshaped to rows."
    return Part(lambda m, x: (lambda y: y.view(len(y), 2, 5, -1).permute(0, 3, 1, 2).reshape(len(y), -1,
        5).sigmoid())(m.l(x)), l=b.conv(b.c, 10))


# ---- examples

class Net(nn.Module):
    def __init__(self, body, head): super().__init__(); self.body, self.head = body, head
    def forward(self, x): return self.head(self.body(x))

class TwoInputs(Net):
    def __init__(self, body, head, stem, other): super().__init__(body, head); self.stem, self.other = stem, other
    def forward(self, image, depth): return self.head(self.body(F.relu(self.stem(image)+self.other(depth))))

class Masking(Net):
    def forward(self, x, mask=None): return self.head(self.body(x if mask is None else x*mask))

class Conditioned(Net):
    def __init__(self, body, head, stem, table): super().__init__(body, head); self.stem, self.table = stem, table
    def forward(self, batch):
        s = self.stem(batch['image'])
        return self.head(self.body(s*(1+self.table(batch['kind']).reshape(len(s), -1, *[1]*(s.dim()-2)))))

class Listing(Net):
    def forward(self, x):
        found = []
        for l in self.body: x = l(x); found.append(x)
        return [self.head(x), x.sum()*0]

EXAMPLES = ('tensor', 'tensor', 'tensor', 'pair', 'named', 'masked', 'dict', 'list')

def _example(kind, d, n, size, r):
    x = lambda c=3: torch.randn(n, c, *size)
    if kind == 'pair': return x(), x(1)
    if kind == 'named': return dict(depth=x(1), image=x())
    if kind == 'masked': return dict(x=x(), mask=torch.ones(n, 1, *size))
    if kind == 'dict': return ({'image': x(), 'kind': torch.arange(n) % 3},)
    return x()


# ---- plans

def draw_part(r, depth=2):
    "A part, and the parts that it holds."
    name = r.choice(['conv', 'normed', 'norm', 'act']) if r.random() < .4 else r.choice(sorted(PARTS))
    if HOLDS[name] and not depth: name = 'normed'
    return (name, r.randrange(1000),
        *(tuple(draw_part(r, depth-1) for _ in range(r.randint(1, 3))) for _ in range(HOLDS[name])))

def draw_plan(
    r, # `random.Random`, or hypothesis' like of it
    most:int=5, # parts between the first and the last convolution
):
    "(dimensions, kind of example, head, parts)"
    d = r.choice([1, 2, 2, 2, 3])
    parts = ([('conv', r.randrange(1000))]+[draw_part(r, 2 if most > 2 else 1)
        for _ in range(r.randint(1, most))]+[('conv', r.randrange(1000))])
    return d, r.choice(EXAMPLES), (r.choice(sorted(HEADS)), r.randrange(1000)), tuple(parts)

@torch.no_grad()
def settled(net):
    "Norms whose parameters and statistics are all different, as after training."
    for m in net.modules():
        for k, lo, hi in (('running_mean', -.3, .3), ('running_var', .5, 2.)):
            if isinstance(t := getattr(m, k, None), torch.Tensor): t.uniform_(lo, hi)
        if isinstance(m, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)) and m.weight is not None:
            m.weight.uniform_(.5, 1.5); m.bias is not None and m.bias.normal_(0, .3)
    return net

def build(plan):
    "(network in eval mode, example)"
    d, kind, (name, seed), parts = plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(repr(plan).encode()))
        stem = nn.Conv1d, nn.Conv2d, nn.Conv3d
        b = State(d, 3 if kind not in ('pair', 'named', 'dict') else 8, SIZES[d])
        body = b.parts(parts)
        b.r = random.Random(seed)
        h = HEADS[name](b)
        if kind in ('pair', 'named'): net = TwoInputs(body, h, stem[d-1](3, 8, 1), stem[d-1](1, 8, 1))
        elif kind == 'dict': net = Conditioned(body, h, stem[d-1](3, 8, 1), nn.Embedding(3, 8))
        else: net = dict(masked=Masking, list=Listing).get(kind, Net)(body, h)
        return settled(net).eval(), _example(kind, d, 2, SIZES[d], random.Random(seed))

def fresh_example(plan, seed, n=3):
    "Other inputs of the same kind."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _example(plan[1], plan[0], n, SIZES[plan[0]], None)

def shortened(plan):
    "Plans with a part less, or with a part's own parts in its place."
    d, kind, head, parts = plan
    for new in _less(parts):
        if new: yield d, kind, head, new
    if kind != 'tensor': yield d, 'tensor', head, parts
    if head[0] != 'mean': yield d, kind, ('mean', 0), parts
    if d != 2: yield 2, kind, head, parts

def _less(parts):
    for i, p in enumerate(parts):
        yield parts[:i]+parts[i+1:]
        for k, inner in enumerate(p[2:], 2):
            yield parts[:i]+inner+parts[i+1:]
            for new in _less(inner):
                yield parts[:i]+((*p[:k], new, *p[k+1:]),)+parts[i+1:]
