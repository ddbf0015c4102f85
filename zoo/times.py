"""How does the time grow with the work? Seconds of `best` and `fast` beside the floor, for twenty networks.

    python zoo/times.py                    all networks, into zoo/times.csv (rows that are there already are kept)
    python zoo/times.py resnet18           only these

The networks are torchvision's, with random weights and with norms that have seen three batches of noise; 30 % of the
channels go and 4 bits are left. The floor (notebook 50b) is the time that the matrix products of one candidate of
`best` would take at the speed that a product of two matrices reaches right after the run. Run it while nothing else
does.
"""
import sys
from pathlib import Path

import torch
from torchvision import models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rows import grow, kept
from udfc_nb import compress
from udfc_nb.run.floor import speed

TABLE = Path(__file__).with_name('times.csv')
COLUMNS = 'network recipe params forward_macs floor_macs speed floor seconds candidates threads'.split()
NETWORKS = '''mobilenet_v3_small shufflenet_v2_x1_0 squeezenet1_1 mobilenet_v2 mnasnet1_0 regnet_y_400mf
    mobilenet_v3_large efficientnet_b0 regnet_x_800mf resnet18 googlenet densenet121 resnet34 resnet50 resnext50_32x4d
    convnext_tiny wide_resnet50_2 vgg11_bn resnet101 inception_v3'''.split()
ASKED = {'googlenet': dict(init_weights=False), # a minute of random numbers
    'inception_v3': dict(init_weights=False, aux_logits=False)} # its second head needs larger images in training


def network(name):
    """With norms that have seen something."""
    torch.manual_seed(0)
    net = models.get_model(name, weights=None, **ASKED.get(name, {})).train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 224, 224))
    return net.eval()


def rows_of(name, recipes, done):
    """A row for every recipe that is not there yet; the floor is that of the first."""
    floor_macs = None
    for recipe in [r for r in recipes if (name, r) not in done]:
        out = compress(network(name), torch.randn(1, 3, 224, 224), pruning_ratio=.3, weight_bits=4, recipe=recipe)
        r, reached = out.report, speed()
        floor_macs = floor_macs or r.timings['floor_macs']
        tried = sum(not c[0].endswith(('not fitted', 'not rounded')) for c in r.candidates)
        values = [name, recipe, r.totals['params_before'], r.totals['macs_before'], floor_macs, reached,
            floor_macs and floor_macs/reached, r.totals['seconds'], tried, torch.get_num_threads()]
        yield {c: f'{v:.5g}' if isinstance(v, float) else v for c, v in zip(COLUMNS, values)}


def main(names):
    rows = kept(TABLE)
    done = {(r['network'], r['recipe']) for r in rows}
    for name in names or NETWORKS:
        grow(TABLE, COLUMNS, rows, rows_of(name, ('best', 'fast'), done))


if __name__ == '__main__':
    main(sys.argv[1:])
