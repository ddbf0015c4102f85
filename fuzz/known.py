"""Networks built as public libraries build theirs, written here from scratch and small: name → function () →
(network, example)."""
import torch, torch.nn as nn, torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

KNOWN = {}
def known(f): KNOWN[f.__name__] = f; return f
def conv(i, o, k=3, **kw): return nn.Conv2d(i, o, k, padding=k//2, **kw)
def cbr(i, o, k=3, **kw):
    return nn.Sequential(conv(i, o, k, bias=False, **kw), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
image = lambda n=2, c=3, s=16: torch.randn(n, c, s, s)


@known
def super_resolution():
    "EDSR: blocks with a factor, a long sum, pixel shuffles."
    class Block(nn.Module):
        def __init__(self, c): super().__init__(); self.body = nn.Sequential(conv(c, c), nn.ReLU(True), conv(c, c))
        def forward(self, x): return self.body(x).mul(.1)+x
    class EDSR(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = conv(3, 16), nn.Sequential(Block(16), Block(16), conv(16, 16))
            self.tail = nn.Sequential(conv(16, 64), nn.PixelShuffle(2), conv(16, 3))
            self.register_buffer('mean', torch.tensor([.4, .4, .4]).view(1, 3, 1, 1))
        def forward(self, x): x = self.head(x-self.mean); return self.tail(self.body(x)+x)+self.mean
    return EDSR(), image()

@known
def dense_super_resolution():
    "RRDB of ESRGAN: dense blocks in residual blocks, nearest interpolation."
    class Dense(nn.Module):
        def __init__(self, c=8, g=4):
            super().__init__()
            self.l = nn.ModuleList([conv(c+i*g, g if i < 3 else c) for i in range(4)])
        def forward(self, x):
            found = [x]
            for l in self.l[:-1]: found.append(F.leaky_relu(l(torch.cat(found, 1)), .2))
            return self.l[-1](torch.cat(found, 1))*.2+x
    class RRDB(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.d, self.b, self.u, self.c = (conv(3, 8), nn.Sequential(Dense(), Dense()), conv(8, 8),
                conv(8, 8), conv(8, 3))
        def forward(self, x):
            y = self.a(x); y = y+self.b(self.d(y)*.2+y)
            return self.c(F.leaky_relu(self.u(F.interpolate(y, scale_factor=2, mode='nearest')), .2))
    return RRDB(), image()

@known
def shuffled():
    "ShuffleNet V1: grouped convolutions and a shuffle."
    class Unit(nn.Module):
        def __init__(self, c, g):
            super().__init__(); self.g = g
            self.a, self.na = nn.Conv2d(c, c//2, 1, groups=g, bias=False), nn.BatchNorm2d(c//2)
            self.d, self.nd = nn.Conv2d(c//2, c//2, 3, padding=1, groups=c//2, bias=False), nn.BatchNorm2d(c//2)
            self.b, self.nb = nn.Conv2d(c//2, c, 1, groups=g, bias=False), nn.BatchNorm2d(c)
        def forward(self, x):
            y = F.relu(self.na(self.a(x))); n, c, h, w = y.shape
            y = y.view(n, self.g, c//self.g, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
            return F.relu(x+self.nb(self.b(self.nd(self.d(y)))))
    return (nn.Sequential(cbr(3, 24), Unit(24, 3), Unit(24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 5)), image())

class SE(nn.Module):
    def __init__(self, c, r=4): super().__init__(); self.fc1, self.fc2 = nn.Conv2d(c, c//r, 1), nn.Conv2d(c//r, c, 1)
    def forward(self, x): return x*F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))

@known
def mobile():
    "MobileNetV3: expansion, depthwise, squeeze and excitation, hard swish."
    class Inverted(nn.Module):
        def __init__(self, c, e):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(c, e, 1, bias=False), nn.BatchNorm2d(e), nn.Hardswish(),
                nn.Conv2d(e, e, 5, padding=2, groups=e, bias=False), nn.BatchNorm2d(e), SE(e), nn.Hardswish(),
                nn.Conv2d(e, c, 1, bias=False), nn.BatchNorm2d(c))
        def forward(self, x): return x+self.block(x)
    return (nn.Sequential(cbr(3, 8), Inverted(8, 24), Inverted(8, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5)), image())

@known
def split_attention():
    "ResNeSt: grouped filters of some radix, a softmax among them."
    class Split(nn.Module):
        def __init__(self, c, radix=2, cards=2):
            super().__init__(); self.radix, self.cards = radix, cards
            self.conv, self.bn0 = (nn.Conv2d(c, c*radix, 3, padding=1, groups=cards*radix, bias=False),
                nn.BatchNorm2d(c*radix))
            self.fc1, self.bn1, self.fc2 = (nn.Conv2d(c, 8, 1, groups=cards), nn.BatchNorm2d(8),
                nn.Conv2d(8, c*radix, 1, groups=cards))
        def forward(self, x):
            x = F.relu(self.bn0(self.conv(x))); n, rc, h, w = x.shape
            x = x.reshape(n, self.radix, rc//self.radix, h, w)
            g = self.fc2(F.relu(self.bn1(self.fc1(x.sum(1).mean((2, 3), keepdim=True)))))
            g = F.softmax(g.view(n, self.cards, self.radix, -1).transpose(1, 2), 1).reshape(n, -1)
            return (x*g.view(n, self.radix, rc//self.radix, 1, 1)).sum(1)
    return nn.Sequential(cbr(3, 16), Split(16), nn.BatchNorm2d(16), conv(16, 12, 1), nn.ReLU(), conv(12, 4)), image()

@known
def u_net():
    "Bilinear U-Net with padding to the skip's size, as segmentation examples have it."
    class Up(nn.Module):
        def __init__(self, i, o): super().__init__(); self.conv = nn.Sequential(cbr(i, o), cbr(o, o))
        def forward(self, x, skip):
            x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
            dy, dx = skip.size(2)-x.size(2), skip.size(3)-x.size(3)
            return self.conv(torch.cat([skip, F.pad(x, [dx//2, dx-dx//2, dy//2, dy-dy//2])], 1))
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.u1, self.u2, self.out = (cbr(3, 8), cbr(8, 12), cbr(12, 16), Up(28, 12),
                Up(20, 8), nn.Conv2d(8, 2, 1))
        def forward(self, x):
            a = self.a(x); b = self.b(F.max_pool2d(a, 2)); c = self.c(F.max_pool2d(b, 2))
            return self.out(self.u2(self.u1(c, b), a))
    return UNet(), image(2, 3, 18)

@known
def attention_u_net():
    "Gates on the skips."
    class Gate(nn.Module):
        def __init__(self, g, x, h):
            super().__init__()
            self.g, self.x, self.psi = (conv(g, h, 1), conv(x, h, 1),
                nn.Sequential(conv(h, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid()))
        def forward(self, g, x): return x*self.psi(F.relu(self.g(g)+self.x(x)))
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.up, self.gate, self.c, self.out = (cbr(3, 8), cbr(8, 16),
                nn.ConvTranspose2d(16, 8, 2, 2), Gate(8, 8, 4), cbr(16, 8), conv(8, 1, 1))
        def forward(self, x):
            a = self.a(x)
            u = self.up(self.b(F.max_pool2d(a, 2)))
            return self.out(self.c(torch.cat((self.gate(u, a), u), 1))).sigmoid()
    return Net(), image()

@known
def dense_net():
    "Bottlenecks, checkpointed as torchvision can, and a transition."
    class Layer(nn.Module):
        def __init__(self, c, g):
            super().__init__()
            self.n1, self.c1, self.n2, self.c2 = (nn.BatchNorm2d(c), conv(c, 4*g, 1, bias=False), nn.BatchNorm2d(4*g),
                conv(4*g, g, 3, bias=False))
        def bottleneck(self, *xs): return self.c1(F.relu(self.n1(torch.cat(xs, 1))))
        def forward(self, xs):
            return F.dropout(self.c2(F.relu(self.n2(checkpoint(self.bottleneck, *xs, use_reentrant=True)))), .1,
                self.training)
    class Block(nn.ModuleDict):
        def __init__(self, n, c, g): super().__init__({f'l{i}': Layer(c+i*g, g) for i in range(n)})
        def forward(self, x):
            xs = [x]
            for _, l in self.items(): xs.append(l(xs))
            return torch.cat(xs, 1)
    return (nn.Sequential(conv(3, 8), Block(3, 8, 4), nn.BatchNorm2d(20), nn.ReLU(), conv(20, 10, 1), nn.AvgPool2d(2),
        Block(2, 10, 4), nn.BatchNorm2d(18), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 5)),
        image())

class WS(nn.Conv2d):
    def forward(self, x):
        w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.,
            eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)

class ScaledWS(nn.Conv2d):
    "NFNet's, with a gain."
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1)+.5)
    def forward(self, x):
        fan = self.weight[0].numel()
        w = self.weight; m, v = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
        return F.conv2d(x, (w-m)*torch.rsqrt(torch.clamp(v*fan, min=1e-4))*self.gain, self.bias, self.stride,
            self.padding)

@known
def standardised():
    return (nn.Sequential(WS(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), WS(16, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 4, 1)), image())
@known
def normaliser_free():
    return (nn.Sequential(ScaledWS(3, 16, 3, padding=1), nn.GELU(), ScaledWS(16, 16, 3, padding=1), nn.GELU(),
        ScaledWS(16, 4, 1)), image())
@known
def weight_norms():
    w = parametrizations.weight_norm
    return (nn.Sequential(w(conv(3, 12)), nn.ELU(), w(conv(12, 16)), nn.ELU(),
        torch.nn.utils.weight_norm(conv(16, 12)), nn.ELU(), w(conv(12, 3))), image())
@known
def spectral_norms():
    s = parametrizations.spectral_norm
    return (nn.Sequential(s(conv(3, 12)), nn.LeakyReLU(.2), s(conv(12, 16)), nn.LeakyReLU(.2),
        torch.nn.utils.spectral_norm(conv(16, 12)), nn.LeakyReLU(.2), conv(12, 1)), image())

@known
def conv_next():
    "LayerNorm over channels, both ways of writing it; a factor per channel."
    class Norm(nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias,
                self.eps).permute(0, 3, 1, 2)
    class Written(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.rand(c)+.5), nn.Parameter(torch.randn(c)*.1)
        def forward(self, x):
            u = x.mean(1, keepdim=True); s = (x-u).pow(2).mean(1, keepdim=True)
            return self.weight[:, None, None]*((x-u)/torch.sqrt(s+1e-6))+self.bias[:, None, None]
    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.dw, self.norm, self.p1, self.p2, self.gamma = (nn.Conv2d(c, c, 7, padding=3, groups=c),
                nn.LayerNorm(c), nn.Linear(c, 4*c), nn.Linear(4*c, c), nn.Parameter(torch.rand(c)))
        def forward(self, x):
            return (x+(self.gamma*self.p2(F.gelu(self.p1(self.norm(self.dw(x).permute(0, 2, 3, 1)))))).permute(0, 3, 1,
                2))
    return (nn.Sequential(nn.Conv2d(3, 8, 2, 2), Norm(8), Block(8), Block(8), Written(8), nn.Conv2d(8, 12, 2, 2),
        Block(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 5)), image())

@known
def conv_next_v2():
    "A response norm between the linear layers."
    class GRN(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.g, self.b = nn.Parameter(torch.rand(1, 1, 1, c)), nn.Parameter(torch.rand(1, 1, 1, c))
        def forward(self, x):
            n = torch.norm(x, 2, (1, 2), keepdim=True)
            return self.g*(x*n/(n.mean(-1, keepdim=True)+1e-6))+self.b+x
    class Block(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.dw, self.n, self.p1, self.g, self.p2 = (nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c),
                nn.Linear(c, 16), GRN(16), nn.Linear(16, c))
        def forward(self, x):
            return x+self.p2(self.g(F.gelu(self.p1(self.n(self.dw(x).permute(0, 2, 3, 1)))))).permute(0, 3, 1, 2)
    return nn.Sequential(conv(3, 8), Block(8), conv(8, 4)), image()

@known
def wave_net():
    "Gated, dilated and causal, in one dimension, with sums to the end."
    class Layer(nn.Module):
        def __init__(self, c, d):
            super().__init__()
            self.d, self.g, self.r, self.s = (d, nn.Conv1d(c, 2*c, 2, dilation=d), nn.Conv1d(c, c, 1),
                nn.Conv1d(c, 12, 1))
        def forward(self, x):
            a, b = self.g(F.pad(x, (self.d, 0))).chunk(2, 1)
            z = torch.tanh(a)*torch.sigmoid(b)
            return x+self.r(z), self.s(z)
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.l, self.o = (nn.Conv1d(1, 8, 1), nn.ModuleList([Layer(8, 2**i) for i in range(3)]),
                nn.Sequential(nn.ReLU(), nn.Conv1d(12, 12, 1), nn.ReLU(), nn.Conv1d(12, 5, 1)))
        def forward(self, x):
            x, total = self.a(x), 0
            for l in self.l: x, s = l(x); total = total+s
            return self.o(total)
    return Wave(), torch.randn(2, 1, 32)

@known
def glu_language():
    "Convolutions with GLU over time and a weight-normed embedding."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.c1, self.c2, self.o = (nn.Embedding(11, 8), nn.Conv1d(8, 16, 3, padding=1),
                nn.Conv1d(8, 24, 3, padding=1), nn.Linear(12, 11))
        def forward(self, ids):
            x = self.e(ids).transpose(1, 2)
            return self.o(F.glu(self.c2(F.glu(self.c1(x), 1)+x), 1).transpose(1, 2))
    return Net(), torch.arange(20).reshape(2, 10) % 11

@known
def fourier():
    "LaMa's spectral transform: real and imaginary parts beside one another among the channels."
    class Unit(nn.Module):
        def __init__(self, c): super().__init__(); self.l, self.n = conv(2*c, 2*c, 1, bias=False), nn.BatchNorm2d(2*c)
        def forward(self, x):
            n, c, h, w = x.shape
            f = torch.fft.rfftn(x, dim=(-2, -1), norm='ortho')
            f = torch.stack((f.real, f.imag), -1).permute(0, 1, 4, 2, 3).contiguous().view(n, -1, *f.shape[2:])
            f = F.relu(self.n(self.l(f)))
            f = f.view(n, -1, 2, *f.shape[2:]).permute(0, 1, 3, 4, 2).contiguous()
            return torch.fft.irfftn(torch.complex(f[..., 0], f[..., 1]), s=(h, w), dim=(-2, -1), norm='ortho')
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.u, self.c, self.d = cbr(3, 8), cbr(8, 12, 1), Unit(12), conv(12, 8, 1), conv(8, 3)
        def forward(self, x): y = self.b(self.a(x)); return self.d(F.relu(self.c(y+self.u(y))))
    return Net(), image(2, 3, 8)

@known
def fourier_operator():
    "FNO: a complex weight for each mode."
    class Spectral(nn.Module):
        def __init__(self, c): super().__init__(); self.w = nn.Parameter(torch.randn(c, c, 4, 3, dtype=torch.cfloat)*.1)
        def forward(self, x):
            f = torch.fft.rfft2(x); out = torch.zeros_like(f)
            out[:, :, :4, :3] = torch.einsum('bixy,ioxy->boxy', f[:, :, :4, :3], self.w)
            return torch.fft.irfft2(out, s=x.shape[-2:])
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.s, self.l, self.b, self.c = (conv(3, 8, 1), Spectral(8), conv(8, 8, 1), conv(8, 16, 1),
                conv(16, 1, 1))
        def forward(self, x): x = self.a(x); return self.c(F.gelu(self.b(F.gelu(self.s(x)+self.l(x)))))
    return Net(), image(2, 3, 8)

@known
def einsum_heads():
    "Attention written with einsum behind convolutions, in the spelling of einops."
    class Attend(nn.Module):
        def __init__(self, c, h=2, d=4):
            super().__init__()
            self.h, self.d, self.qkv, self.o = h, d, nn.Conv2d(c, 3*h*d, 1, bias=False), nn.Conv2d(h*d, c, 1)
        def forward(self, x):
            n, c, hh, ww = x.shape
            q, k, v = (t.reshape(n, self.h, self.d, hh*ww) for t in self.qkv(x).chunk(3, 1))
            a = torch.einsum('bhdi,bhdj->bhij', q*self.d**-.5, k).softmax(-1)
            return x+self.o(torch.einsum('bhij,bhdj->bhid', a, v).permute(0, 1, 3, 2).reshape(n, -1, hh, ww))
    return nn.Sequential(cbr(3, 12), Attend(12), cbr(12, 16), conv(16, 2, 1)), image(2, 3, 8)

@known
def diffusion():
    "A U-Net with a time embedding: GroupNorm, SiLU, scale and shift, attention in the middle."
    class Res(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.n1, self.c1, self.t, self.n2, self.c2, self.s = (nn.GroupNorm(4, i), conv(i, o), nn.Linear(16, 2*o),
                nn.GroupNorm(4, o), conv(o, o), conv(i, o, 1) if i != o else nn.Identity())
        def forward(self, x, t):
            h = self.c1(F.silu(self.n1(x))); scale, shift = self.t(F.silu(t))[..., None, None].chunk(2, 1)
            return self.s(x)+self.c2(F.silu(self.n2(h)*(1+scale)+shift))
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.a, self.d1, self.down, self.mid, self.up, self.u1, self.o = (nn.Sequential(nn.Linear(8,
                16), nn.SiLU(), nn.Linear(16, 16)), conv(3, 8), Res(8, 16), conv(16, 16, 3, stride=2), Res(16, 16),
                conv(16, 16), Res(32, 8), conv(8, 3))
        def forward(self, x, t):
            f = torch.exp(-torch.arange(4)/4*9.2); e = t[:, None].float()*f[None]
            e = self.time(torch.cat([e.cos(), e.sin()], -1).to(x.dtype)); x = self.a(x)
            a = self.d1(x, e); b = self.mid(self.down(a), e)
            return self.o(self.u1(torch.cat([self.up(F.interpolate(b, scale_factor=2.)), a], 1), e))
    return Net(), (image(2, 3, 8), torch.tensor([3, 7]))

@known
def scripted():
    @torch.jit.script
    def swish(x): return x*torch.sigmoid(x)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (cbr(3, 12), conv(12, 16),
                torch.jit.script(nn.Sequential(conv(16, 12), nn.ReLU())), conv(12, 4))
        def forward(self, x): return self.d(self.c(swish(self.b(self.a(x)))))
    return Net(), image()

@known
def checkpointed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = cbr(3, 12), nn.Sequential(cbr(12, 16), cbr(16, 12), conv(12, 8)), conv(8, 4)
        def forward(self, x): return self.c(F.relu(checkpoint_sequential(self.b, 2, self.a(x), use_reentrant=False)))
    return Net(), image()

@known
def attention_behind():
    "DETR-like: a convolutional body, positions, nn.MultiheadAttention."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.p, self.pos, self.att, self.n, self.o = (nn.Sequential(cbr(3, 12), cbr(12, 16, stride=2)),
                conv(16, 8, 1), nn.Parameter(torch.randn(64, 1, 8)), nn.MultiheadAttention(8, 2), nn.LayerNorm(8),
                nn.Linear(8, 5))
        def forward(self, x):
            t = self.p(self.body(x)).flatten(2).permute(2, 0, 1)
            t = t+self.pos
            return self.o(self.n(t+self.att(t, t, t)[0]).mean(0))
    return Net(), image()

@known
def transformer_behind():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.t, self.o = (nn.Sequential(cbr(3, 12), conv(12, 8, 4, stride=4)),
                nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), nn.Linear(8, 5))
        def forward(self, x): return self.o(self.t(self.body(x).flatten(2).transpose(1, 2))[:, 0])
    return Net(), image()

@known
def recurrent_behind():
    "CRNN: height is squeezed, an LSTM over width."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.r, self.o = (nn.Sequential(cbr(1, 8), nn.MaxPool2d(2), cbr(8, 16), nn.MaxPool2d((2, 1)),
                nn.Conv2d(16, 16, (4, 1)), nn.ReLU()), nn.LSTM(16, 12, bidirectional=True), nn.Linear(24, 9))
        def forward(self, x):
            x = self.body(x).squeeze(2).permute(2, 0, 1)
            y, _ = self.r(x)
            t, n, h = y.size()
            return self.o(y.view(t*n, h)).view(t, n, -1).log_softmax(2)
    return Net(), torch.randn(2, 1, 16, 24)

@known
def convolutional_lstm():
    class Cell(nn.Module):
        def __init__(self, i, h): super().__init__(); self.h, self.g = h, conv(i+h, 4*h)
        def forward(self, x, s):
            h, c = s; i, f, o, g = torch.split(self.g(torch.cat([x, h], 1)), self.h, 1)
            c = f.sigmoid()*c+i.sigmoid()*g.tanh(); return o.sigmoid()*c.tanh(), c
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.a, self.cell, self.o = cbr(3, 8), Cell(8, 6), conv(6, 2, 1)
        def forward(self, x):
            n, t, c, h, w = x.shape; s = (x.new_zeros(n, 6, h, w),)*2
            for k in range(t): s = self.cell(self.a(x[:, k]), s)
            return self.o(s[0])
    return Net(), torch.randn(2, 3, 3, 8, 8)

@known
def aware_of_quantization():
    from torch.ao.quantization import (DeQuantStub, FakeQuantize, MovingAverageMinMaxObserver, PerChannelMinMaxObserver,
        QuantStub)
    def fake(*x):
        q = FakeQuantize(MovingAverageMinMaxObserver); q(torch.randn(64)*2); q.disable_observer(); return q
    class QConv(nn.Conv2d):
        def __init__(self, *args, **kw):
            super().__init__(*args, **kw)
            self.weight_fake_quant = FakeQuantize(PerChannelMinMaxObserver, quant_min=-128, quant_max=127,
                dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=0)
            self.weight_fake_quant(self.weight); self.weight_fake_quant.disable_observer()
        def forward(self, x): return self._conv_forward(x, self.weight_fake_quant(self.weight), self.bias)
    return (nn.Sequential(QuantStub(), fake(), QConv(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), fake(), conv(12, 8),
        nn.ReLU(), fake(), QConv(8, 4, 1), DeQuantStub()), image())

@known
def detection():
    "An FPN and a head that is shared by its levels, with a factor for each."
    class Net(nn.Module):
        def __init__(self):
            super().__init__(); self.a, self.b, self.c = cbr(3, 8), cbr(8, 12, stride=2), cbr(12, 16, stride=2)
            self.l, self.o = (nn.ModuleList([conv(n, 8, 1) for n in (8, 12, 16)]),
                nn.ModuleList([conv(8, 8) for _ in range(3)]))
            self.head, self.cls, self.box, self.s = (nn.Sequential(conv(8, 12), nn.GroupNorm(3, 12), nn.ReLU(),
                conv(12, 12), nn.ReLU()), conv(12, 4), conv(12, 4),
                nn.ParameterList([torch.rand(()) for _ in range(3)]))
        def forward(self, x):
            a = self.a(x); b = self.b(a); c = self.c(b); out, up = [], None
            for f, l, o in reversed(list(zip((a, b, c), self.l, self.o))):
                y = l(f)
                up = y if up is None else y+F.interpolate(up, size=y.shape[-2:], mode='nearest'); out.insert(0, o(up))
            rows = lambda t: t.permute(0, 2, 3, 1).reshape(len(x), -1, 4)
            heads = [self.head(t) for t in out]
            return dict(cls=torch.cat([rows(self.cls(h)) for h in heads], 1),
                box=torch.cat([rows(F.relu(self.box(h)*s)) for h, s in zip(heads, self.s)], 1))
    return Net(), image()

@known
def yolo():
    "CSP blocks, focus, spatial pyramid."
    class C3(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.a, self.b, self.c, self.m = (cbr(i, o//2, 1), cbr(i, o//2, 1), cbr(o, o, 1),
                nn.Sequential(cbr(o//2, o//2, 1), cbr(o//2, o//2)))
        def forward(self, x): y = self.a(x); return self.c(torch.cat((y+self.m(y), self.b(x)), 1))
    class C2f(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.c = o//2
            self.a, self.b, self.m = cbr(i, o, 1), cbr(o//2*4, o, 1), nn.ModuleList([cbr(o//2, o//2) for _ in range(2)])
        def forward(self, x):
            y = list(self.a(x).chunk(2, 1))
            y.extend(m(y[-1]) for m in self.m)
            return self.b(torch.cat(y, 1))
    class SPPF(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.a, self.b, self.p = cbr(c, c//2, 1), cbr(c*2, c, 1), nn.MaxPool2d(5, 1, 2)
        def forward(self, x):
            x = self.a(x)
            y = self.p(x)
            z = self.p(y)
            return self.b(torch.cat([x, y, z, self.p(z)], 1))
    class Focus(nn.Module):
        def __init__(self, c): super().__init__(); self.l = cbr(12, c)
        def forward(self, x):
            return self.l(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1))
    return nn.Sequential(Focus(12), C3(12, 16), C2f(16, 16), SPPF(16), conv(16, 10, 1)), image()

@known
def re_parametrised():
    "RepVGG while training: three branches, one of them a norm alone."
    class Rep(nn.Module):
        def __init__(self, c, o):
            super().__init__()
            self.id, self.a, self.b = (nn.BatchNorm2d(c) if c == o else None,
                nn.Sequential(conv(c, o, bias=False), nn.BatchNorm2d(o)),
                nn.Sequential(conv(c, o, 1, bias=False), nn.BatchNorm2d(o)))
        def forward(self, x): return F.relu(self.a(x)+self.b(x)+(0 if self.id is None else self.id(x)))
    return (nn.Sequential(Rep(3, 12), Rep(12, 12), Rep(12, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5)), image())

@known
def style():
    "A generator with weights modulated for each image."
    class Mod(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.weight, self.s = nn.Parameter(torch.randn(1, o, i, 3, 3)*.2), nn.Linear(8, i)
        def forward(self, x, z):
            n, c, h, w = x.shape
            k = self.weight*(self.s(z)+1).view(n, 1, c, 1, 1)
            k = k*torch.rsqrt(k.pow(2).sum((2, 3, 4), keepdim=True)+1e-8)
            return F.conv2d(x.reshape(1, n*c, h, w), k.view(-1, c, 3, 3), padding=1, groups=n).view(n, -1, h, w)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.start, self.a, self.b, self.rgb = (nn.Sequential(nn.Linear(6, 12), nn.LeakyReLU(.2),
                nn.Linear(12, 8)), nn.Parameter(torch.randn(1, 8, 4, 4)), Mod(8, 12), Mod(12, 8), conv(8, 3, 1))
        def forward(self, z):
            z = self.m(z*torch.rsqrt(z.pow(2).mean(1, keepdim=True)+1e-8))
            x = F.leaky_relu(self.a(self.start.expand(len(z), -1, -1, -1), z), .2)
            return self.rgb(F.leaky_relu(self.b(F.interpolate(x, scale_factor=2), z), .2))
    return Net(), torch.randn(2, 6)

@known
def adaptive_norm():
    "AdaIN: the statistics of one image on another."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.d = (nn.Sequential(cbr(3, 8), conv(8, 12), nn.ReLU()),
                nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Upsample(scale_factor=2),
                conv(8, 3)))
        def forward(self, content, style):
            c, s = self.e(content), self.e(style)
            st = lambda t: (t.mean((2, 3), keepdim=True), t.std((2, 3), keepdim=True)+1e-5)
            (mc, sc), (ms, ss) = st(c), st(s); return self.d((c-mc)/sc*ss+ms)
    return Net(), (image(2, 3, 8), image(2, 3, 8))

@known
def siamese():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = (nn.Sequential(cbr(3, 8), cbr(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                nn.Linear(12, 1))
        def forward(self, a, b): return self.o((self.e(a)-self.e(b)).abs()).sigmoid()
    return Net(), (image(), image())

@known
def correlation():
    "Optical flow: every pixel of one image with the pixels around it of the other."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.o = nn.Sequential(cbr(3, 8), conv(8, 12)), nn.Sequential(conv(9+12, 8), nn.ReLU(), conv(8, 2))
        def forward(self, a, b):
            a, b = self.f(a), self.f(b); p = F.pad(b, [1]*4); h, w = a.shape[2:]
            c = torch.cat([(a*p[:, :, i:i+h, j:j+w]).mean(1, keepdim=True) for i in range(3) for j in range(3)], 1)
            return self.o(torch.cat([c, a], 1))
    return Net(), (image(2, 3, 8), image(2, 3, 8))

@known
def point_net():
    "1-d convolutions, a maximum over points, a transform that is multiplied in."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.t, self.tl, self.a, self.b, self.o = (nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU()),
                nn.Linear(8, 9), nn.Sequential(nn.Conv1d(3, 12, 1), nn.BatchNorm1d(12), nn.ReLU()),
                nn.Sequential(nn.Conv1d(12, 16, 1), nn.BatchNorm1d(16)),
                nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)))
        def forward(self, x):
            t = self.tl(self.t(x).max(2)[0]).view(-1, 3, 3)+torch.eye(3).to(x)
            x = torch.bmm(x.transpose(2, 1), t).transpose(2, 1)
            return self.o(torch.max(self.b(self.a(x)), 2, keepdim=True)[0].view(-1, 16))
    return Net(), torch.randn(2, 3, 20)

@known
def edge_conv():
    "DGCNN: neighbours by a distance of features."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c, self.o = (nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8),
                nn.LeakyReLU(.2)), nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12),
                nn.LeakyReLU(.2)), nn.Linear(12, 4))
        def edges(self, x, k=3):
            n, c, p = x.shape; d = -torch.cdist(x.transpose(1, 2), x.transpose(1, 2)); i = d.topk(k, -1)[1]
            f = torch.gather(x[:, :, :, None].expand(n, c, p, p), 2,
                i[:, None].transpose(2, 3).expand(n, c, k, p)).transpose(2, 3)
            x = x[..., None].expand_as(f); return torch.cat([f-x, x], 1)
        def forward(self, x): x = self.a(self.edges(x)).amax(-1); return self.o(self.c(self.edges(x)).amax(-1).amax(-1))
    return Net(), torch.randn(2, 3, 12)

@known
def video():
    "(2+1)-d convolutions, and a shift of channels along time."
    class Shift(nn.Module):
        def forward(self, x):
            n, t = 2, len(x)//2; x = x.view(n, t, *x.shape[1:]); k = x.shape[2]//4; y = torch.zeros_like(x)
            y[:, :-1, :k] = x[:, 1:, :k]
            y[:, 1:, k:2*k] = x[:, :-1, k:2*k]; y[:, :, 2*k:] = x[:, :, 2*k:]; return y.view(n*t, *x.shape[2:])
    return nn.Sequential(cbr(3, 8), Shift(), cbr(8, 12), conv(12, 4)), image(6, 3, 8)

@known
def video_3d():
    return (nn.Sequential(nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 12, (3, 1, 1), padding=(1, 0, 0)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        nn.Linear(12, 4)), torch.randn(2, 3, 4, 8, 8))

@known
def mixer():
    "MLP-Mixer: products over pixels and over channels."
    class Block(nn.Module):
        def __init__(self, c, p):
            super().__init__()
            self.n1, self.t1, self.t2, self.n2, self.c1, self.c2 = (nn.LayerNorm(c), nn.Linear(p, 10),
                nn.Linear(10, p), nn.LayerNorm(c), nn.Linear(c, 16), nn.Linear(16, c))
        def forward(self, x):
            x = x+self.t2(F.gelu(self.t1(self.n1(x).transpose(1, 2)))).transpose(1, 2)
            return x+self.c2(F.gelu(self.c1(self.n2(x))))
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.b, self.o = nn.Conv2d(3, 8, 4, 4), nn.Sequential(Block(8, 16), Block(8, 16)), nn.Linear(8, 5)
        def forward(self, x): return self.o(self.b(self.p(x).flatten(2).transpose(1, 2)).mean(1))
    return Net(), image()

@known
def vision_transformer():
    class Block(nn.Module):
        def __init__(self, c, h):
            super().__init__()
            self.h = h
            self.n1, self.qkv, self.p, self.n2, self.m1, self.m2 = (nn.LayerNorm(c), nn.Linear(c, 3*c),
                nn.Linear(c, c), nn.LayerNorm(c), nn.Linear(c, 2*c), nn.Linear(2*c, c))
        def forward(self, x):
            n, t, c = x.shape; q, k, v = self.qkv(self.n1(x)).reshape(n, t, 3, self.h, c//self.h).permute(2, 0, 3, 1, 4)
            x = x+self.p(((q@k.transpose(-2, -1)*(c//self.h)**-.5).softmax(-1)@v).transpose(1, 2).reshape(n, t, c))
            return x+self.m2(F.gelu(self.m1(self.n2(x))))
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.cls, self.pos, self.b, self.n, self.o = (nn.Conv2d(3, 8, 4, 4),
                nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8)),
                nn.Sequential(Block(8, 2), Block(8, 2)), nn.LayerNorm(8), nn.Linear(8, 5))
        def forward(self, x):
            x = self.p(x).flatten(2).transpose(1, 2)
            return self.o(self.n(self.b(torch.cat([self.cls.expand(len(x), -1, -1), x], 1)+self.pos))[:, 0])
    return Net(), image()

@known
def windows():
    "Swin: windows of tokens, shifted, a table of positions, merging."
    class Block(nn.Module):
        def __init__(self, c, h=2, w=4, s=0):
            super().__init__()
            self.h, self.w, self.s = h, w, s
            self.n, self.qkv, self.p, self.table, self.m = (nn.LayerNorm(c), nn.Linear(c, 3*c), nn.Linear(c, c),
                nn.Parameter(torch.randn(h, w*w, w*w)*.1),
                nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 2*c), nn.GELU(), nn.Linear(2*c, c)))
        def forward(self, x):
            n, H, W, c = x.shape; w = self.w; y = torch.roll(self.n(x), (-self.s, -self.s), (1, 2))
            y = y.view(n, H//w, w, W//w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w*w, c)
            q, k, v = self.qkv(y).reshape(len(y), w*w, 3, self.h, -1).permute(2, 0, 3, 1, 4)
            y = ((q@k.transpose(-2, -1)+self.table).softmax(-1)@v).transpose(1, 2).reshape(len(y), w*w, c)
            y = self.p(y).view(n, H//w, W//w, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(n, H, W, c)
            x = x+torch.roll(y, (self.s, self.s), (1, 2)); return x+self.m(x)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.b, self.r, self.o = (nn.Conv2d(3, 8, 2, 2), nn.Sequential(Block(8), Block(8, s=2)),
                nn.Linear(32, 12), nn.Linear(12, 5))
        def forward(self, x):
            x = self.b(self.p(x).permute(0, 2, 3, 1))
            x = torch.cat([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], -1)
            return self.o(self.r(x).mean((1, 2)))
    return Net(), image()

@known
def hourglass():
    "Recursive down and up, intermediate outputs fed back."
    class Glass(nn.Module):
        def __init__(self, n, c):
            super().__init__()
            self.a, self.b, self.i, self.d = cbr(c, c), cbr(c, c), Glass(n-1, c) if n > 1 else cbr(c, c), cbr(c, c)
        def forward(self, x): return self.a(x)+F.interpolate(self.d(self.i(self.b(F.max_pool2d(x, 2)))), scale_factor=2)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.s, self.g, self.o, self.back, self.keep = (cbr(3, 8), nn.ModuleList([Glass(2, 8), Glass(2, 8)]),
                nn.ModuleList([conv(8, 3, 1), conv(8, 3, 1)]), conv(3, 8, 1), conv(8, 8, 1))
        def forward(self, x):
            x, out = self.s(x), []
            for i, (g, o) in enumerate(zip(self.g, self.o)):
                y = g(x); out.append(o(y))
                if i == 0: x = x+self.back(out[-1])+self.keep(y)
            return out
    return Net(), image()

@known
def atrous():
    "DeepLab: dilated branches and a pooled one, spread over the image."
    class ASPP(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.l, self.p, self.o = (nn.ModuleList([cbr(i, o, 1),
                nn.Sequential(nn.Conv2d(i, o, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(o), nn.ReLU()),
                nn.Sequential(nn.Conv2d(i, o, 3, padding='same', dilation=3), nn.ReLU())]),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(i, o, 1), nn.ReLU()), cbr(4*o, o, 1))
        def forward(self, x):
            return self.o(torch.cat([*(l(x) for l in self.l),
                F.interpolate(self.p(x), size=x.shape[-2:], mode='bilinear', align_corners=False)], 1))
    return (nn.Sequential(cbr(3, 12), ASPP(12, 8), nn.Dropout(.5), conv(8, 3, 1),
        nn.Upsample(scale_factor=2, mode='bilinear')), image())

@known
def involution():
    class Inv(nn.Module):
        def __init__(self, c, g=2, k=3):
            super().__init__()
            self.g, self.k, self.r, self.s = g, k, cbr(c, c//2, 1), conv(c//2, k*k*g, 1)
        def forward(self, x):
            n, c, h, w = x.shape; k = self.s(self.r(x)).view(n, self.g, self.k**2, h, w)[:, :, None]
            return (k*F.unfold(x, self.k, padding=1).view(n, self.g, c//self.g, self.k**2, h, w)).sum(3).view(n, c, h,
                w)
    return nn.Sequential(cbr(3, 12), Inv(12), nn.ReLU(), conv(12, 4, 1)), image(2, 3, 8)

@known
def coordinate_attention():
    class Coord(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.a, self.n, self.h, self.w = conv(c, 4, 1), nn.BatchNorm2d(4), conv(4, c, 1), conv(4, c, 1)
        def forward(self, x):
            n, c, h, w = x.size()
            y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
            a, b = torch.split(F.hardswish(self.n(self.a(y))), [h, w], 2)
            return x*self.h(a).sigmoid()*self.w(b.permute(0, 1, 3, 2)).sigmoid()
    return nn.Sequential(cbr(3, 12), Coord(12), conv(12, 4)), image()

@known
def triplet():
    "Attention over turned images: channels take the place of an image axis."
    class Gate(nn.Module):
        def __init__(self): super().__init__(); self.c = conv(2, 1, 7)
        def forward(self, x):
            return x*self.c(torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), 1)).sigmoid()
    class Triplet(nn.Module):
        def __init__(self): super().__init__(); self.a, self.b, self.c = Gate(), Gate(), Gate()
        def forward(self, x):
            return (self.a(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)+self.b(x.permute(0, 3, 2, 1)).permute(0, 3, 2,
                1)+self.c(x))/3
    return nn.Sequential(cbr(3, 12), Triplet(), cbr(12, 8), conv(8, 2)), image(2, 3, 8)

@known
def vlad():
    "NetVLAD: residuals to centres, soft assignments by a convolution."
    class Vlad(nn.Module):
        def __init__(self, c, k=4):
            super().__init__()
            self.l, self.centres = conv(c, k, 1), nn.Parameter(torch.rand(k, c))
        def forward(self, x):
            x = F.normalize(x, dim=1); a = self.l(x).flatten(2).softmax(1); f = x.flatten(2)
            r = f[:, None]-self.centres[None, :, :, None]
            return F.normalize((r*a[:, :, None]).sum(-1), dim=2).flatten(1)
    return nn.Sequential(cbr(3, 12), conv(12, 8), Vlad(8), nn.Linear(32, 5)), image(2, 3, 8)

@known
def metric():
    "A cosine head with a scale, as in ArcFace, behind a flatten and a 1-d norm."
    class Cosine(nn.Module):
        def __init__(self, i, o): super().__init__(); self.weight, self.s = nn.Parameter(torch.randn(o, i)), 30.
        def forward(self, x): return self.s*F.linear(F.normalize(x), F.normalize(self.weight))
    return (nn.Sequential(cbr(3, 8), nn.Conv2d(8, 12, 3, groups=4), nn.PReLU(12), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(108, 10), nn.BatchNorm1d(10), Cosine(10, 5)), image())

@known
def normalising_flow():
    "A coupling layer: halves in turn, reversed channels."
    class Coupling(nn.Module):
        def __init__(self, c): super().__init__(); self.n = nn.Sequential(conv(c//2, 12), nn.ReLU(), conv(12, c))
        def forward(self, x):
            a, b = x.chunk(2, 1)
            s, t = self.n(a).chunk(2, 1)
            return torch.cat([a, b*torch.exp(torch.tanh(s))+t], 1).flip(1)
    return nn.Sequential(conv(3, 8), Coupling(8), Coupling(8), conv(8, 3)), image(2, 3, 8)

@known
def lstm_pool():
    "Rows and columns by GRUs (ReNet)."
    class ReNet(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.g, self.l = nn.GRU(c, 6, batch_first=True, bidirectional=True), conv(12, 8, 1)
        def forward(self, x):
            n, c, h, w = x.shape
            y = self.g(x.permute(0, 2, 3, 1).reshape(n*h, w, c))[0]
            return self.l(y.reshape(n, h, w, -1).permute(0, 3, 1, 2))
    return nn.Sequential(cbr(3, 12), ReNet(12), nn.ReLU(), conv(8, 3)), image(2, 3, 8)
