"""What a graphics card is worth: seconds of `compress`, accuracy, and steps of `refine`, beside the card's own matrix
product.

    python zoo/gpu.py                      ResNet-50/101, MobileNetV2, VGG-16, DenseNet-121 on the card, into
                                           zoo/gpu.csv and zoo/gpu.md; some minutes
    python zoo/gpu.py --pretrained --images DIR    with torchvision's trained weights, and top-1 on DIR/val/CLASS/IMAGE
    python zoo/gpu.py --small              two networks for digits, on a processor too; half a minute

Without --pretrained the weights are random, so only seconds mean something and no accuracy is shown; `weights` says
which they are (`trained`: the digits' network, which ships with the package, on its 599 held-out digits).
`products` are seconds in units of one product of two square float32 matrices (4,096 rows; 512 with --small) on the
same device in the same run: what is left of a time when the next card is faster.
"""
import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rows import grow
from udfc_nb import compress
from udfc_nb.app.evaluate import image_folder, preparation, top_k
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.digits import digits, digits_net
from udfc_nb.data.networks import LeNet
from udfc_nb.errors import UDFCError
from udfc_nb.training.refine import refine

TABLE = Path(__file__).with_name('gpu.csv')
COLUMNS = 'network weights device what seconds products accuracy base params share note'.split()
LARGE = 'resnet50', 'resnet101', 'mobilenet_v2', 'vgg16', 'densenet121'
SMALL = 'digits', 'lenet'
RECIPES = 'fast', 'best'
SETTING = dict(pruning_ratio=.3, weight_bits=4)
METHOD = 'streams'


def settled(device):
    """Waits until the device has done what it was told."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def seconds_of(run, device, repeats=1):
    """The least of several times, and what the last run gave."""
    times = []
    for _ in range(repeats):
        settled(device)
        start = time.perf_counter()
        result = run()
        settled(device)
        times.append(time.perf_counter()-start)
    return min(times), result


def product(device, side):
    """Seconds of one product of square float32 matrices."""
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    return seconds_of(lambda: a@b, device, 5)[0]


def load(name, pretrained, images, count, device):
    """The network, an example, what its weights are, and a function (network) → accuracy in percent, or None."""
    if name == 'digits':
        x, y = digits('test')
        return digits_net(), x[:1], 'trained', lambda n: accuracy(n, x.to(device), y.to(device))
    torch.manual_seed(0)
    if name == 'lenet':
        return LeNet().eval(), torch.zeros(1, 1, 28, 28), 'random', None
    from torchvision import models
    net = models.get_model(name, weights='DEFAULT' if pretrained else None).eval()
    right = None
    if pretrained and images:
        data = image_folder(images, preparation(name, True, (1, 3, 224, 224))[0], 1000, count)
        right = lambda n: top_k(n, data, (1,), device=device, workers=8)[0][0]
    return net, torch.zeros(1, 3, 224, 224), 'pretrained' if pretrained else 'random', right


def rows_of(name, args, one):
    """A row for every recipe, and one for a step of training."""
    net, example, weights, right = load(name, args.pretrained, args.images, args.count, args.device)
    net, example = net.to(args.device), example.to(args.device)
    base, before = right and right(net), sum(p.numel() for p in net.parameters())
    row = lambda what, seconds, **more: {c: f'{v:.4g}' if isinstance(v, float) else v for c, v in (
        dict.fromkeys(COLUMNS, '') | dict(network=name, weights=weights, device=args.told, what=what, seconds=seconds,
        products=seconds/one) | more).items()}
    out = None
    for recipe in RECIPES:
        seconds, out = seconds_of(lambda: compress(net, example, recipe=recipe, device=args.device, **SETTING),
            args.device)
        now = sum(p.numel() for p in out.model.parameters())
        yield row(recipe, seconds, accuracy=right(out.model) if right else '', base=base if right else '',
            params=now, share=now/before)
    marks = []

    def mark(done, total, what):
        if isinstance(what, dict):
            settled(args.device)
            marks.append(time.perf_counter())
    try:
        refine(out, net, METHOD, steps=args.steps, device=args.device, progress=mark)
    except UDFCError as e:
        yield row(f'step of {METHOD}', float('nan'), note=e.message)
    else:
        each = (marks[-1]-marks[1])/(len(marks)-2)  # the first one sets up memory
        yield row(f'step of {METHOD}', each, note=f'{1/each:.3g} steps per second')


def markdown(rows, one, side):
    """The table as the README may show it."""
    lines = ['| '+' | '.join(COLUMNS)+' |', '|:--|:--|:--|:--|'+'--:|'*(len(COLUMNS)-5)+':--|']
    lines += ['| '+' | '.join(str(r[c]) for c in COLUMNS)+' |' for r in rows]
    return '\n'.join(lines)+f'\n\nOne product of two {side}×{side} float32 matrices: {1e3*one:.3g} ms, ' \
        f'{2e-12*side**3/one:.3g} TFLOP/s. Torch {torch.__version__}; `python zoo/gpu.py` makes this table.\n'


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--small', action='store_true', help='two small networks')
    p.add_argument('--pretrained', action='store_true', help="torchvision's trained weights, downloaded")
    p.add_argument('--images', help='folder with val/CLASS/IMAGE in it')
    p.add_argument('--count', type=int, default=5000, help='at most so many images')
    p.add_argument('--steps', type=int, help='of refine (default 50, with --small 6)')
    p.add_argument('--only', nargs='+', choices=LARGE+SMALL)
    p.add_argument('--out', type=Path, default=TABLE, help='.csv; the markdown beside it')
    args = p.parse_args(argv)
    args.steps = max(args.steps or (6 if args.small else 50), 3)
    args.told = torch.cuda.get_device_name(args.device) if torch.device(args.device).type == 'cuda' else 'cpu'
    side, rows = 512 if args.small else 4096, []
    product(args.device, side)  # the first one loads libraries
    one = product(args.device, side)
    compress(digits_net(), digits('test')[0][:1], recipe='fast', device=args.device)  # likewise
    for name in args.only or (SMALL if args.small else LARGE):
        grow(args.out, COLUMNS, rows, rows_of(name, args, one))
    args.out.with_suffix('.md').write_text(markdown(rows, one, side))
    return rows


if __name__ == '__main__':
    main()
