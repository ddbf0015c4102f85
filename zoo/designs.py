"""Small designs written for the zoo: well-known forms (CRNN, DCGAN, U-Net, the YOLO families) in few lines each."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


# ---- networks for classification, text and sound

class CRNN(nn.Module):
    """Text recognition: convolutions squeeze the height to one, two LSTMs read along the width."""

    def __init__(self, classes: int = 37, hidden: int = 64):
        super().__init__()
        widths = (1, 32, 64, 128, 128, 256, 256)
        pools = {0: (2, 2), 1: (2, 2), 3: (2, 1), 5: (2, 1)}
        layers = []
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
            if i in pools:
                layers.append(nn.MaxPool2d(pools[i]))
        self.cnn = nn.Sequential(*layers, nn.Conv2d(256, 256, 2), nn.ReLU(inplace=True))
        self.rnn = nn.LSTM(256, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Read the columns of the features as a sequence."""
        features = self.cnn(x).squeeze(2).permute(2, 0, 1)
        steps, _ = self.rnn(features)
        return self.head(steps).log_softmax(2)


class DQN(nn.Module):
    """The Q-network of Mnih et al. (2015): three convolutions and two linear layers on four frames of 84 pixels."""

    def __init__(self, actions: int = 6):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 32, 8, stride=4)
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.fc4 = nn.Linear(64 * 7 * 7, 512)
        self.fc5 = nn.Linear(512, actions)

    def forward(self, x: Tensor) -> Tensor:
        """Give one value per action."""
        x = F.relu(self.conv1(x / 255))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return self.fc5(F.relu(self.fc4(x.view(x.size(0), -1))))


class Siamese(nn.Module):
    """Two images, one trunk: the distance of the two embeddings, weighted by a linear layer."""

    def __init__(self, width: int = 32):
        super().__init__()
        layers, a = [], 3
        for b in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
            a = b
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, 64))
        self.head = nn.Linear(64, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Compare the two images."""
        return self.head((self.trunk(left) - self.trunk(right)).abs()).sigmoid()


class TCNBlock(nn.Module):
    """Two causal dilated convolutions of sequences, with a shortcut."""

    def __init__(self, a: int, b: int, dilation: int):
        super().__init__()
        self.pad = 2 * dilation
        self.conv1, self.bn1 = nn.Conv1d(a, b, 3, dilation=dilation), nn.BatchNorm1d(b)
        self.conv2, self.bn2 = nn.Conv1d(b, b, 3, dilation=dilation), nn.BatchNorm1d(b)
        self.shortcut = nn.Identity() if a == b else nn.Conv1d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pad on the left only, so that no step sees a later one."""
        y = F.relu(self.bn1(self.conv1(F.pad(x, (self.pad, 0)))))
        y = F.relu(self.bn2(self.conv2(F.pad(y, (self.pad, 0)))))
        return F.relu(y + self.shortcut(x))


class TCN1d(nn.Module):
    """Temporal convolutional network (Bai et al. 2018): dilations 1, 2, 4, 8; the last step is classified."""

    def __init__(self, channels: int = 8, classes: int = 10):
        super().__init__()
        widths = (channels, 32, 32, 64, 64)
        self.blocks = nn.Sequential(*[TCNBlock(a, b, 2 ** i) for i, (a, b) in enumerate(zip(widths, widths[1:]))])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify what the last step has seen."""
        return self.head(self.blocks(x)[:, :, -1])


def dcgan_generator(latent: int = 100, width: int = 32) -> nn.Sequential:
    """The generator of Radford et al. (2016): transposed convolutions from noise (N, latent, 1, 1) to 64 pixels."""
    layers, a = [], latent
    for i, b in enumerate((8 * width, 4 * width, 2 * width, width)):
        stride, padding = (1, 0) if i == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(a, b, 4, stride, padding, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
        a = b
    return nn.Sequential(*layers, nn.ConvTranspose2d(a, 3, 4, 2, 1, bias=False), nn.Tanh())


# ---- super-resolution and denoising

def srcnn() -> nn.Sequential:
    """SRCNN (Dong et al. 2014): kernels of 9, 1 and 5."""
    return nn.Sequential(nn.Conv2d(1, 64, 9, padding=4), nn.ReLU(), nn.Conv2d(64, 32, 1), nn.ReLU(),
                         nn.Conv2d(32, 1, 5, padding=2))


def espcn(scale: int = 3) -> nn.Sequential:
    """ESPCN (Shi et al. 2016): tanh and a pixel shuffle at the end."""
    return nn.Sequential(nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh(),
                         nn.Conv2d(32, scale ** 2, 3, padding=1), nn.PixelShuffle(scale))


def fsrcnn(scale: int = 3, d: int = 56, s: int = 12) -> nn.Sequential:
    """FSRCNN (Dong et al. 2016): shrink, map, expand and one transposed convolution, with PReLU per channel."""
    layers = [nn.Conv2d(1, d, 5, padding=2), nn.PReLU(d), nn.Conv2d(d, s, 1), nn.PReLU(s)]
    for _ in range(4):
        layers += [nn.Conv2d(s, s, 3, padding=1), nn.PReLU(s)]
    layers += [nn.Conv2d(s, d, 1), nn.PReLU(d)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(d, 1, 9, stride=scale, padding=4, output_padding=scale - 1))


class FFDNet(nn.Module):
    """FFDNet (Zhang et al. 2018): works on the four sub-images and is told the noise level as one more channel."""

    def __init__(self, width: int = 48, depth: int = 8):
        super().__init__()
        layers = [nn.Conv2d(13, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 12, 3, padding=1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise `x` (N, 3, H, W) with the noise level `sigma` (N, 1, 1, 1)."""
        small = F.pixel_unshuffle(x, 2)
        level = sigma.expand(-1, 1, small.shape[2], small.shape[3])
        return F.pixel_shuffle(self.body(torch.cat([small, level], 1)), 2)


class PlainBlock(nn.Module):
    """The block of EDSR: two convolutions without norms, scaled and added."""

    def __init__(self, width: int, scale: float = .1):
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True),
                                  nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body finds."""
        return x + self.body(x) * self.scale


def upsampler(width: int, scale: int) -> nn.Sequential:
    """Pixel shuffles by two until the scale is reached."""
    layers = []
    for _ in range(int(math.log2(scale))):
        layers += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)


class EDSR(nn.Module):
    """EDSR (Lim et al. 2017): residual blocks between a long skip."""

    def __init__(self, width: int = 32, depth: int = 6, scale: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*[PlainBlock(width) for _ in range(depth)], nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(upsampler(width, scale), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the image."""
        x = self.head(x)
        return self.tail(x + self.body(x))


class ChannelAttention(nn.Module):
    """A gate for each channel, from its mean."""

    def __init__(self, width: int, reduction: int = 8):
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // reduction, 1), nn.ReLU(True),
                                  nn.Conv2d(width // reduction, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Weight the channels."""
        return x * self.gate(x)


class RCABlock(nn.Module):
    """The block of RCAN: two convolutions, then attention over channels."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True),
                                  nn.Conv2d(width, width, 3, padding=1), ChannelAttention(width))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body finds."""
        return x + self.body(x)


class ResidualGroup(nn.Module):
    """Blocks and a convolution with a skip around them."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.body = nn.Sequential(*[RCABlock(width) for _ in range(depth)], nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the body finds."""
        return x + self.body(x)


class RCAN(nn.Module):
    """RCAN (Zhang et al. 2018): groups of attention blocks, skips around skips."""

    def __init__(self, width: int = 32, groups: int = 3, depth: int = 3, scale: int = 2):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        body = [ResidualGroup(width, depth) for _ in range(groups)]
        self.body = nn.Sequential(*body, nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(upsampler(width, scale), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the image."""
        x = self.head(x)
        return self.tail(x + self.body(x))


class Distillation(nn.Module):
    """The block of IMDN: three times a quarter of the channels is put aside, the rest goes on."""

    def __init__(self, width: int):
        super().__init__()
        self.aside = width // 4
        rest = width - self.aside
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(rest, width, 3, padding=1)
        self.c3 = nn.Conv2d(rest, width, 3, padding=1)
        self.c4 = nn.Conv2d(rest, self.aside, 3, padding=1)
        self.attention = ChannelAttention(4 * self.aside)
        self.c5 = nn.Conv2d(4 * self.aside, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Split, refine, join, weight and add."""
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            y = F.leaky_relu(conv(rest), .05)
            part, rest = torch.split(y, (self.aside, y.shape[1] - self.aside), dim=1)
            kept.append(part)
        kept.append(self.c4(rest))
        return x + self.c5(self.attention(torch.cat(kept, 1)))


class IMDN(nn.Module):
    """IMDN (Hui et al. 2019): distillation blocks whose outputs are all joined."""

    def __init__(self, width: int = 32, depth: int = 4, scale: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Distillation(width) for _ in range(depth))
        self.join = nn.Sequential(nn.Conv2d(width * depth, width, 1), nn.LeakyReLU(.05))
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(width, 3 * scale ** 2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the image."""
        first = y = self.head(x)
        outs = []
        for block in self.blocks:
            y = block(y)
            outs.append(y)
        return self.tail(first + self.conv(self.join(torch.cat(outs, 1))))


# ---- U-Nets and a pyramid

def double_conv(a: int, b: int) -> nn.Sequential:
    """Two convolutions with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True),
                         nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): enlarged by a transposed convolution or by interpolation."""

    def __init__(self, transposed: bool, width: int = 16, classes: int = 2):
        super().__init__()
        widths = [width * 2 ** i for i in range(5)]
        self.inc = double_conv(3, widths[0])
        self.down = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, widths[1:]))
        back = list(zip(widths[:0:-1], widths[-2::-1]))
        if transposed:
            self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in back)
            self.up = nn.ModuleList(double_conv(2 * b, b) for a, b in back)
        else:
            self.grow = nn.ModuleList(nn.Upsample(scale_factor=2, mode='bilinear', align_corners=True) for _ in back)
            self.up = nn.ModuleList(double_conv(a + b, b) for a, b in back)
        self.outc = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Go down, then up beside what was kept; odd sizes are padded."""
        kept = [self.inc(x)]
        for block in self.down:
            kept.append(block(F.max_pool2d(kept[-1], 2)))
        y = kept.pop()
        for grow, up in zip(self.grow, self.up):
            skip = kept.pop()
            y = grow(y)
            dy, dx = skip.size(2) - y.size(2), skip.size(3) - y.size(3)
            y = F.pad(y, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
            y = up(torch.cat([skip, y], dim=1))
        return self.outc(y)


class FPNSharedHead(nn.Module):
    """A feature pyramid whose one head reads all levels (Lin et al. 2017)."""

    def __init__(self, width: int = 32, classes: int = 5):
        super().__init__()
        widths = (3, 32, 64, 128)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in zip(widths, widths[1:]))
        self.lateral = nn.ModuleList(nn.Conv2d(b, width, 1) for b in widths[1:])
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in widths[1:])
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True),
                                  nn.Conv2d(width, classes, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give the maps of each level, finest first."""
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        merged = [lateral(level) for lateral, level in zip(self.lateral, levels)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode='nearest')
        return [self.head(smooth(level)) for smooth, level in zip(self.smooth, merged)]


# ---- blocks of the YOLO families

class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(self, a: int, b: int, k: int = 1, s: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(a, b, k, s, (k - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(b, eps=1e-3)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return self.act(self.bn(self.conv(x)))

    def fused(self, x: Tensor) -> Tensor:
        """The same after the norm went into the convolution."""
        return self.act(self.conv(x))


def fuse(model: nn.Module) -> nn.Module:
    """Put the norms of all `ConvNorm` of an evaluating network into their convolutions."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.conv = nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
            module.forward = module.fused
            del module.bn
    return model


class Bottleneck(nn.Module):
    """Two convolutions with an optional shortcut."""

    def __init__(self, a: int, b: int, shortcut: bool = True, k: tuple[int, int] = (3, 3), e: float = .5):
        super().__init__()
        hidden = int(b * e)
        self.cv1 = ConvNorm(a, hidden, k[0])
        self.cv2 = ConvNorm(hidden, b, k[1])
        self.add = shortcut and a == b

    def forward(self, x: Tensor) -> Tensor:
        """Add where the widths agree."""
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    """Cross-stage block of v5: two branches, joined by a third convolution."""

    def __init__(self, a: int, b: int, n: int = 1, shortcut: bool = True, e: float = .5):
        super().__init__()
        hidden = int(b * e)
        self.cv1 = ConvNorm(a, hidden)
        self.cv2 = ConvNorm(a, hidden)
        self.cv3 = ConvNorm(2 * hidden, b)
        self.m = nn.Sequential(*[Bottleneck(hidden, hidden, shortcut, (1, 3), 1.) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        """Join the two branches."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3k(C3):
    """C3 with bottlenecks of 3 × 3 kernels."""

    def __init__(self, a: int, b: int, n: int = 2, shortcut: bool = True, e: float = .5):
        super().__init__(a, b, n, shortcut, e)
        hidden = int(b * e)
        self.m = nn.Sequential(*[Bottleneck(hidden, hidden, shortcut, (3, 3), 1.) for _ in range(n)])


class C2f(nn.Module):
    """Block of v8: one half is kept, the other goes through a chain whose every output is joined."""

    def __init__(self, a: int, b: int, n: int = 1, shortcut: bool = False, e: float = .5):
        super().__init__()
        self.c = int(b * e)
        self.cv1 = ConvNorm(a, 2 * self.c)
        self.cv2 = ConvNorm((2 + n) * self.c, b)
        self.m = nn.ModuleList(self.link(shortcut) for _ in range(n))

    def link(self, shortcut: bool) -> nn.Module:
        """One link of the chain."""
        return Bottleneck(self.c, self.c, shortcut, (3, 3), 1.)

    def forward(self, x: Tensor) -> Tensor:
        """Split in halves, chain, join."""
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """C2f that splits by widths, as it is written for export."""

    def forward(self, x: Tensor) -> Tensor:
        """Split by widths, chain, join."""
        y = self.cv1(x).split((self.c, self.c), 1)
        y = [y[0], y[1]]
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3k2(C2f):
    """Block of v11: C2f whose links are bottlenecks or whole C3k blocks."""

    def __init__(self, a: int, b: int, n: int = 1, deep: bool = False, e: float = .5):
        self.deep = deep
        super().__init__(a, b, n, True, e)

    def link(self, shortcut: bool) -> nn.Module:
        """A C3k in the deep stages, else a bottleneck."""
        return C3k(self.c, self.c, 2, shortcut) if self.deep else Bottleneck(self.c, self.c, shortcut)


class CIB(nn.Module):
    """Inverted block of v10: depthwise and pointwise convolutions in turn."""

    def __init__(self, width: int):
        super().__init__()
        self.cv1 = nn.Sequential(
            ConvNorm(width, width, 3, groups=width), ConvNorm(width, 2 * width),
            RepDepthwise(2 * width), ConvNorm(2 * width, width), ConvNorm(width, width, 3, groups=width))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block finds."""
        return x + self.cv1(x)


class RepDepthwise(nn.Module):
    """Depthwise convolutions of 7 and 3, added."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = ConvNorm(width, width, 7, groups=width, act=False)
        self.conv1 = ConvNorm(width, width, 3, groups=width, act=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two."""
        return self.act(self.conv(x) + self.conv1(x))


class C2fCIB(C2f):
    """C2f with inverted blocks."""

    def link(self, shortcut: bool) -> nn.Module:
        """One inverted block."""
        return CIB(self.c)


class SCDown(nn.Module):
    """Downsampling of v10: pointwise, then depthwise with stride."""

    def __init__(self, a: int, b: int, k: int = 3, s: int = 2):
        super().__init__()
        self.cv1 = ConvNorm(a, b)
        self.cv2 = ConvNorm(b, b, k, s, groups=b, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, then shrink."""
        return self.cv2(self.cv1(x))


class AConv(nn.Module):
    """Downsampling of v9: an average of 2 × 2, then a convolution with stride."""

    def __init__(self, a: int, b: int, k: int = 3, s: int = 2):
        super().__init__()
        self.cv1 = ConvNorm(a, b, k, s)

    def forward(self, x: Tensor) -> Tensor:
        """Average, then shrink."""
        return self.cv1(F.avg_pool2d(x, 2, 1, 0, False, True))


class RepConv(nn.Module):
    """Branches of 3 × 3 and 1 × 1, added before the activation."""

    def __init__(self, a: int, b: int):
        super().__init__()
        self.conv1 = ConvNorm(a, b, 3, act=False)
        self.conv2 = ConvNorm(a, b, 1, act=False)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branches."""
        return self.act(self.conv1(x) + self.conv2(x))


class RepBottleneck(Bottleneck):
    """A bottleneck whose first convolution has two branches."""

    def __init__(self, a: int, b: int):
        super().__init__(a, b, True, (3, 3), 1.)
        self.cv1 = RepConv(a, b)


class RepCSP(C3):
    """C3 with branched bottlenecks."""

    def __init__(self, a: int, b: int, n: int = 1):
        super().__init__(a, b, n)
        hidden = b // 2
        self.m = nn.Sequential(*[RepBottleneck(hidden, hidden) for _ in range(n)])


class RepNCSPELAN(nn.Module):
    """Block of v9: halves, two stages after one another, all four joined."""

    def __init__(self, a: int, b: int, n: int = 1):
        super().__init__()
        middle, inner = b, b // 2
        self.cv1 = ConvNorm(a, middle)
        self.cv2 = nn.Sequential(RepCSP(middle // 2, inner, n), ConvNorm(inner, inner, 3))
        self.cv3 = nn.Sequential(RepCSP(inner, inner, n), ConvNorm(inner, inner, 3))
        self.cv4 = ConvNorm(middle + 2 * inner, b)

    def forward(self, x: Tensor) -> Tensor:
        """Split, chain, join."""
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in [self.cv2, self.cv3])
        return self.cv4(torch.cat(y, 1))


class ELAN1(RepNCSPELAN):
    """The first stage of v9: plain convolutions as stages."""

    def __init__(self, a: int, b: int):
        super().__init__(a, b)
        self.cv2 = ConvNorm(b // 2, b // 2, 3)
        self.cv3 = ConvNorm(b // 2, b // 2, 3)


class SPPF(nn.Module):
    """Three max-pools in a row, all joined."""

    def __init__(self, a: int, b: int, k: int = 5, shortcut: bool = False):
        super().__init__()
        hidden = a // 2
        self.cv1 = ConvNorm(a, hidden)
        self.cv2 = ConvNorm(4 * hidden, b)
        self.m = nn.MaxPool2d(k, 1, k // 2)
        self.add = shortcut and a == b

    def forward(self, x: Tensor) -> Tensor:
        """Pool again and again."""
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        out = self.cv2(torch.cat(y, 1))
        return x + out if self.add else out


class SPPELAN(nn.Module):
    """The pools of v9: one module each."""

    def __init__(self, a: int, b: int):
        super().__init__()
        hidden = b // 2
        self.cv1 = ConvNorm(a, hidden)
        self.pools = nn.ModuleList(nn.MaxPool2d(5, 1, 2) for _ in range(3))
        self.cv5 = ConvNorm(4 * hidden, b)

    def forward(self, x: Tensor) -> Tensor:
        """Pool again and again."""
        y = [self.cv1(x)]
        for pool in self.pools:
            y.append(pool(y[-1]))
        return self.cv5(torch.cat(y, 1))


class Attention(nn.Module):
    """Attention over positions with one convolution for query, key and value, as in v10 and v11."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.key = self.size // 2
        self.qkv = ConvNorm(width, heads * (2 * self.key + self.size), act=False)
        self.proj = ConvNorm(width, width, act=False)
        self.pe = ConvNorm(width, width, 3, groups=width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and add a convolution of the values as position."""
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, 2 * self.key + self.size, h * w)
        q, k, v = qkv.split([self.key, self.key, self.size], dim=2)
        weights = ((q.transpose(-2, -1) @ k) * self.key ** -.5).softmax(-1)
        out = (v @ weights.transpose(-2, -1)).view(b, c, h, w)
        return self.proj(out + self.pe(v.reshape(b, c, h, w)))


class AttentionBlock(nn.Module):
    """Attention and two pointwise convolutions, each with a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = Attention(width)
        self.ffn = nn.Sequential(ConvNorm(width, 2 * width), ConvNorm(2 * width, width, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Add both."""
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """Block of v10 and v11: one half passes through attention."""

    def __init__(self, width: int, n: int = 1):
        super().__init__()
        self.c = width // 2
        self.cv1 = ConvNorm(width, 2 * self.c)
        self.cv2 = ConvNorm(2 * self.c, width)
        self.m = nn.Sequential(*[AttentionBlock(self.c) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        """Split, attend, join."""
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class AreaAttention(nn.Module):
    """Attention of v12: within each of some areas of the image."""

    def __init__(self, width: int, heads: int = 2, area: int = 4):
        super().__init__()
        self.area, self.heads, self.size = area, heads, width // heads
        self.qkv = ConvNorm(width, 3 * width, act=False)
        self.proj = ConvNorm(width, width, act=False)
        self.pe = ConvNorm(width, width, 7, groups=width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within the areas."""
        b, c, h, w = x.shape
        n = h * w
        qkv = self.qkv(x).flatten(2).transpose(1, 2)
        if self.area > 1:
            qkv = qkv.reshape(b * self.area, n // self.area, 3 * c)
        parts, steps, _ = qkv.shape
        q, k, v = (qkv.view(parts, steps, self.heads, 3 * self.size).permute(0, 2, 3, 1)
                   .split([self.size, self.size, self.size], dim=2))
        weights = ((q.transpose(-2, -1) @ k) * self.size ** -.5).softmax(dim=-1)
        out = (v @ weights.transpose(-2, -1)).permute(0, 3, 1, 2)
        v = v.permute(0, 3, 1, 2)
        if self.area > 1:
            out = out.reshape(b, n, self.heads, self.size)
            v = v.reshape(b, n, self.heads, self.size)
        out = out.reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous()
        v = v.reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous()
        return self.proj(out + self.pe(v))


class AreaBlock(nn.Module):
    """Area attention and two pointwise convolutions, each with a shortcut."""

    def __init__(self, width: int, area: int):
        super().__init__()
        self.attn = AreaAttention(width, area=area)
        self.mlp = nn.Sequential(ConvNorm(width, 2 * width), ConvNorm(2 * width, width, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Add both."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class A2C2f(nn.Module):
    """Block of v12: a chain of attention blocks (or of C3k) whose every output is joined, scaled by a gain."""

    def __init__(self, a: int, b: int, n: int = 1, area: int = 4, attend: bool = True):
        super().__init__()
        hidden = b // 2
        self.cv1 = ConvNorm(a, hidden)
        self.cv2 = ConvNorm((1 + n) * hidden, b)
        self.gamma = nn.Parameter(.01 * torch.ones(b)) if attend and a == b else None
        self.m = nn.ModuleList(
            nn.Sequential(*[AreaBlock(hidden, area) for _ in range(2)]) if attend else C3k(hidden, hidden)
            for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Chain, join, add."""
        y = [self.cv1(x)]
        y.extend(m(y[-1]) for m in self.m)
        y = self.cv2(torch.cat(y, 1))
        if self.gamma is not None:
            return x + self.gamma.view(-1, len(self.gamma), 1, 1) * y
        return y


class Join(nn.Module):
    """Concatenation along the channels, as a layer."""

    def forward(self, x: list[Tensor]) -> Tensor:
        """Join the tensors."""
        return torch.cat(x, 1)


# ---- heads of the YOLO families

def make_anchors(maps: list[Tensor], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The centres of all cells (2, positions) and the stride of each (1, positions)."""
    points, scales = [], []
    for x, stride in zip(maps, strides):
        h, w = x.shape[2:]
        sy, sx = torch.meshgrid(torch.arange(h) + .5, torch.arange(w) + .5, indexing='ij')
        points.append(torch.stack((sx, sy), -1).view(-1, 2))
        scales.append(torch.full((h * w, 1), float(stride)))
    return torch.cat(points).t().to(maps[0]), torch.cat(scales).t().to(maps[0])


class Integral(nn.Module):
    """The mean of a distribution over 0, 1, ... as a convolution with fixed weights."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, 4 · bins, positions) to (N, 4, positions)."""
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Decoupled head without anchors: boxes as distributions of distances, one score per class."""

    end2end = False

    def __init__(self, widths: tuple[int, ...], classes: int = 80, bins: int = 16, light: bool = False):
        super().__init__()
        self.nc, self.nl, self.bins = classes, len(widths), bins
        self.no = classes + 4 * bins
        self.strides = tuple(8 * 2 ** i for i in range(self.nl))
        self.shape = None
        self.anchors = self.scales = torch.empty(0)
        c2, c3 = max(16, widths[0] // 4, 4 * bins), max(widths[0], min(classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(ConvNorm(x, c2, 3), ConvNorm(c2, c2, 3), nn.Conv2d(c2, 4 * bins, 1)) for x in widths)
        self.cv3 = nn.ModuleList(self.scores(x, c3, light) for x in widths)
        self.dfl = Integral(bins) if bins > 1 else nn.Identity()

    def scores(self, a: int, b: int, light: bool) -> nn.Sequential:
        """The branch of the classes; the light form (v10 and later) is depthwise."""
        if light:
            return nn.Sequential(
                nn.Sequential(ConvNorm(a, a, 3, groups=a), ConvNorm(a, b)),
                nn.Sequential(ConvNorm(b, b, 3, groups=b), ConvNorm(b, b)), nn.Conv2d(b, self.nc, 1))
        return nn.Sequential(ConvNorm(a, b, 3), ConvNorm(b, b, 3), nn.Conv2d(b, self.nc, 1))

    def decode(self, x: list[Tensor]) -> Tensor:
        """Boxes (centre, size) and scores of all positions: (N, 4 + classes, positions)."""
        shape = x[0].shape
        flat = torch.cat([xi.view(shape[0], self.no, -1) for xi in x], 2)
        if self.shape != shape:
            self.anchors, self.scales = make_anchors(x, self.strides)
            self.shape = shape
        box, scores = flat.split((4 * self.bins, self.nc), 1)
        lt, rb = self.dfl(box).chunk(2, 1)
        low, high = self.anchors.unsqueeze(0) - lt, self.anchors.unsqueeze(0) + rb
        boxes = torch.cat(((low + high) / 2, high - low), 1) * self.scales
        return torch.cat((boxes, scores.sigmoid()), 1)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decoded boxes and the raw maps."""
        for i in range(self.nl):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        return self.decode(x), x


class DetectOnce(Detect):
    """Head of v10 and 26: a second copy of the branches gives one box per object; the best are taken."""

    def __init__(self, widths: tuple[int, ...], classes: int = 80, bins: int = 16, best: int = 10):
        super().__init__(widths, classes, bins, light=True)
        self.best = best
        c2, c3 = max(16, widths[0] // 4, 4 * bins), max(widths[0], min(classes, 100))
        self.one2one_cv2 = nn.ModuleList(
            nn.Sequential(ConvNorm(x, c2, 3), ConvNorm(c2, c2, 3), nn.Conv2d(c2, 4 * bins, 1)) for x in widths)
        self.one2one_cv3 = nn.ModuleList(self.scores(x, c3, True) for x in widths)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The best boxes with score and class: (N, best, 6), and the raw maps of both copies."""
        many = [torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1) for i in range(self.nl)]
        one = [torch.cat((self.one2one_cv2[i](x[i].detach()), self.one2one_cv3[i](x[i].detach())), 1)
               for i in range(self.nl)]
        boxes, scores = self.decode(one).transpose(1, 2).split([4, self.nc], dim=-1)
        index = scores.amax(dim=-1).topk(self.best)[1].unsqueeze(-1)
        boxes = boxes.gather(1, index.repeat(1, 1, 4))
        scores, classes = scores.gather(1, index.repeat(1, 1, self.nc)).max(-1, keepdim=True)
        return torch.cat([boxes, scores, classes.to(boxes)], -1), {'many': many, 'one': one}


class Segment(Detect):
    """Detection with coefficients of masks, and the masks they combine."""

    def __init__(self, widths: tuple[int, ...], classes: int = 80, masks: int = 32, hidden: int = 64):
        super().__init__(widths, classes)
        self.nm = masks
        self.proto = nn.Sequential(ConvNorm(widths[0], hidden, 3), nn.ConvTranspose2d(hidden, hidden, 2, 2, 0),
                                   ConvNorm(hidden, hidden, 3), ConvNorm(hidden, masks))
        c4 = max(widths[0] // 4, masks)
        self.cv4 = nn.ModuleList(
            nn.Sequential(ConvNorm(x, c4, 3), ConvNorm(c4, c4, 3), nn.Conv2d(c4, masks, 1)) for x in widths)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Boxes with coefficients, the raw maps, the masks."""
        protos = self.proto(x[0])
        b = protos.shape[0]
        extra = torch.cat([self.cv4[i](x[i]).view(b, self.nm, -1) for i in range(self.nl)], 2)
        boxes, maps = super().forward(x)
        return torch.cat([boxes, extra], 1), maps, protos


class Pose(Detect):
    """Detection with key points, decoded relative to the cells."""

    def __init__(self, widths: tuple[int, ...], classes: int = 1, points: tuple[int, int] = (17, 3)):
        super().__init__(widths, classes)
        self.points, self.nk = points, points[0] * points[1]
        c4 = max(widths[0] // 4, self.nk)
        self.cv4 = nn.ModuleList(
            nn.Sequential(ConvNorm(x, c4, 3), ConvNorm(c4, c4, 3), nn.Conv2d(c4, self.nk, 1)) for x in widths)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Boxes with key points, and the raw maps."""
        b = x[0].shape[0]
        raw = torch.cat([self.cv4[i](x[i]).view(b, self.nk, -1) for i in range(self.nl)], -1)
        boxes, maps = super().forward(x)
        y = raw.clone()
        y[:, 2::3] = y[:, 2::3].sigmoid()
        y[:, 0::3] = (y[:, 0::3] * 2 + (self.anchors[0] - .5)) * self.scales
        y[:, 1::3] = (y[:, 1::3] * 2 + (self.anchors[1] - .5)) * self.scales
        return torch.cat([boxes, y], 1), maps


class Classify(nn.Module):
    """A wide convolution, a mean, a linear layer."""

    def __init__(self, a: int, classes: int = 100, hidden: int = 320):
        super().__init__()
        self.conv = ConvNorm(a, hidden)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0., inplace=True)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and scores."""
        if isinstance(x, list):
            x = torch.cat(x, 1)
        x = self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))
        return x.softmax(1), x


# ---- the YOLO families

class Plan(nn.Module):
    """Layers that read earlier outputs by number; the layers list is built by `add`."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleList()
        self.source = []

    def add(self, layer: nn.Module, source: int | list[int] = -1) -> int:
        """Append a layer that reads the last output or those with the given numbers; returns its own number."""
        self.model.append(layer)
        self.source.append(source)
        return len(self.model) - 1

    def forward(self, x: Tensor) -> object:
        """Run the layers, keeping what a later one reads."""
        needed = {i for source in self.source for i in (source if isinstance(source, list) else [source])}
        kept = []
        for i, (layer, source) in enumerate(zip(self.model, self.source)):
            if isinstance(source, list):
                x = [x if j == -1 else kept[j] for j in source]
            elif source != -1:
                x = kept[source]
            x = layer(x)
            kept.append(x if i in needed else None)
        return x


WIDTHS = (16, 32, 64, 128, 256)


def stage(family: str, i: int, a: int, b: int) -> nn.Module:
    """The block at stage `i` (0 to 3 on the way down, 4 to 7 in the neck) of a family."""
    deep = i in (1, 2)
    n = 2 if deep and family in ('v5', 'v8', 'v10') else 1
    if family == 'v5':
        return C3(a, b, n, i < 4)
    if family == 'v6':
        return nn.Sequential(ConvNorm(a, b, 3), ConvNorm(b, b, 3))
    if family == 'v9':
        return ELAN1(a, b) if i == 0 else RepNCSPELAN(a, b)
    if family == 'v10' and i == 7:
        return C2fCIB(a, b)
    if family in ('v11', 'v26'):
        return C3k2(a, b, 1, i in (2, 3, 7), .25 if i < 2 else .5)
    if family == 'v12':
        if i in (2, 3):
            return A2C2f(a, b, 1, 4 if i == 2 else 1)
        return A2C2f(a, b, attend=False) if i in (4, 5, 6) else C3k2(a, b, 1, i == 7, .25 if i < 2 else .5)
    return C2f(a, b, n, i < 4)


def backbone(plan: Plan, family: str, widths: tuple[int, ...] = WIDTHS) -> list[int]:
    """Add the way down; returns the numbers of the outputs at strides 8, 16 and 32."""
    outs = []
    plan.add(ConvNorm(3, widths[0], 6 if family == 'v5' else 3, 2))
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        narrow = {'v10': SCDown, 'v9': AConv}.get(family, ConvNorm)
        plan.add(narrow(a, b, 3, 2) if i > 1 else ConvNorm(a, b, 3, 2))
        outs.append(plan.add(stage(family, i, b, b)))
    top = widths[-1]
    if family == 'v9':
        outs[-1] = plan.add(SPPELAN(top, top))
    elif family != 'v12':
        outs[-1] = plan.add(SPPF(top, top, shortcut=family == 'v26'))
    if family in ('v10', 'v11', 'v26'):
        outs[-1] = plan.add(C2PSA(top))
    return outs[1:]


def detector(family: str, head: nn.Module, widths: tuple[int, ...] = WIDTHS) -> Plan:
    """Way down, way up, way down again, head: the form that all families share."""
    plan = Plan()
    p3, p4, p5 = backbone(plan, family, widths)
    w3, w4, w5 = widths[-3:]

    def enlarge(width: int) -> nn.Module:
        """Twice the size."""
        return nn.ConvTranspose2d(width, width, 2, 2) if family == 'v6' else nn.Upsample(scale_factor=2)

    plan.add(enlarge(w5))
    plan.add(Join(), [-1, p4])
    n4 = plan.add(stage(family, 4, w5 + w4, w4))
    plan.add(enlarge(w4))
    plan.add(Join(), [-1, p3])
    n3 = plan.add(stage(family, 5, w4 + w3, w3))
    narrow = AConv if family == 'v9' else ConvNorm
    plan.add(narrow(w3, w3, 3, 2))
    plan.add(Join(), [-1, n4])
    m4 = plan.add(stage(family, 6, w3 + w4, w4))
    plan.add((SCDown if family == 'v10' else narrow)(w4, w4, 3, 2))
    plan.add(Join(), [-1, p5])
    m5 = plan.add(stage(family, 7, w4 + w5, w5))
    plan.add(head, [n3, m4, m5])
    return plan


def classifier(family: str) -> Plan:
    """The way down and a linear layer."""
    plan = Plan()
    widths = WIDTHS
    plan.add(ConvNorm(3, widths[0], 3, 2))
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        plan.add(ConvNorm(a, b, 3, 2))
        plan.add(stage(family, i, b, b))
    if family == 'v11':
        plan.add(C2PSA(widths[-1]))
    plan.add(Classify(widths[-1]))
    return plan


def tiny() -> Plan:
    """v3-tiny: convolutions and max-pools (the last one with stride 1 after a padding), two levels."""
    plan = Plan()
    a = 3
    for i, b in enumerate((16, 32, 64, 128, 256)):
        last = plan.add(ConvNorm(a, b, 3))
        plan.add(nn.MaxPool2d(2, 2))
        a = b
    plan.add(ConvNorm(256, 512, 3))
    plan.add(nn.ZeroPad2d((0, 1, 0, 1)))
    plan.add(nn.MaxPool2d(2, 1))
    plan.add(ConvNorm(512, 512, 3))
    middle = plan.add(ConvNorm(512, 256))
    large = plan.add(ConvNorm(256, 512, 3))
    plan.add(ConvNorm(256, 128), middle)
    plan.add(nn.Upsample(scale_factor=2))
    plan.add(Join(), [-1, last])
    small = plan.add(ConvNorm(384, 256, 3))
    plan.add(Detect((256, 512)), [small, large])
    return plan


def yolo(name: str) -> nn.Module:
    """A network of the YOLO families by its common name, at the smallest width."""
    top, narrow = WIDTHS[-3:], (16, 32, 64, 96, 128)
    makers = {
        'yolov3-tiny': tiny,
        'yolov5n': lambda: detector('v5', Detect(top)),
        'yolov6n': lambda: detector('v6', Detect(top)),
        'yolov8n': lambda: detector('v8', Detect(top)),
        'yolov8n-seg': lambda: detector('v8', Segment(top)),
        'yolov8n-pose': lambda: detector('v8', Pose(top)),
        'yolov8n-cls': lambda: classifier('v8'),
        'yolov9t': lambda: detector('v9', Detect(narrow[-3:]), narrow),
        'yolov10n': lambda: detector('v10', DetectOnce(top)),
        'yolo11n': lambda: detector('v11', Detect(top, light=True)),
        'yolo11n-cls': lambda: classifier('v11'),
        'yolo12n': lambda: detector('v12', Detect(top, light=True)),
        'yolo26n': lambda: detector('v26', DetectOnce(top, bins=1)),
    }
    return makers[name]()
