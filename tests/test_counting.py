"Parameters, MACs and bytes against independent counts: PyTorch's own flop counter, and the tensors themselves."
import functools
import pytest, torch, torch.nn as nn, torchvision
import udfc_nb
from torch.utils.flop_counter import FlopCounterMode
from nets import Chain, Perceptron, Residual, roughen

compress = functools.partial(udfc_nb.compress, recipe='paper')
LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def flops(model, x):
    "Floating point operations per layer and in total, as counted while the operations run."
    with FlopCounterMode(display=False) as counter, torch.no_grad(): model.eval()(x)
    by_name = {k.split('.', 1)[1]: sum(v.values()) for k, v in counter.get_flop_counts().items() if '.' in k}
    return by_name, counter.get_total_flops()

class Mixed(nn.Module):
    "Strides, padding, dilation, groups, biases, a transposed convolution and a layer that runs twice."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 5, stride=2, padding=1), nn.Conv2d(8, 12, 3, dilation=2, groups=2, bias=False)
        self.up, self.c = nn.ConvTranspose2d(12, 6, 3, stride=2), nn.Conv2d(6, 10, (1, 3))
        self.fc, self.twice, self.last = nn.Linear(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    def forward(self, x):
        x = self.c(self.up(self.b(self.a(x).relu()).relu()).relu()).relu().mean((2, 3))
        return self.last(self.twice(self.twice(self.fc(x).relu()).relu()))

CASES = dict(chain=(lambda: roughen(Chain()), (3, 12, 12)), residual=(lambda: roughen(Residual()), (3, 11, 9)),
    perceptron=(lambda: Perceptron(), (6,)),
    sequence=(lambda: Perceptron(), (7, 6)), mixed=(lambda: Mixed(), (3, 24, 20)),
    resnet18=(lambda: torchvision.models.resnet18(), (3, 32, 32)),
    mobilenet_v3=(lambda: torchvision.models.mobilenet_v3_small(), (3, 32, 32)))

@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('batch', [1, 3])
def test_against_the_flop_counter(case, batch):
    build, shape = CASES[case]
    model, x = build().eval(), torch.randn(batch, *shape)
    out = compress(model, x, pruning_ratio=.3, recipe='prune')
    rows, totals = {r['layer']: r for r in out.report.rows}, out.report.totals
    for net, key in ((model, '_before'), (out.model, '')):
        by_name, total = flops(net, x)
        for n, m in net.named_modules():
            if not isinstance(m, LAYERS): continue
            assert rows[n]['macs'+key] == by_name.get(n, 0)/2/batch, n # one multiply-accumulate is two operations
            assert rows[n]['params'+key] == sum(p.numel() for p in m.parameters(recurse=False)), n
        assert totals['macs'+key] == total/2/batch
        assert totals['params'+key] == sum(p.numel() for p in net.parameters())
    assert totals['macs'] < totals['macs_before'] and totals['params'] < totals['params_before']

def test_resnet18_is_what_everyone_says():
    "11,689,512 parameters and 1.814 G multiply-accumulates at 224×224."
    totals = compress(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224), recipe='prune').report.totals
    assert totals['params'] == 11_689_512 and totals['macs'] == 1_814_073_344

@pytest.mark.parametrize('bits,layer_bits',
    [(None, None), (4, None), (8, {'head': 32}), (3, {'features.0': 8, 'features.3': None})])
def test_bytes(bits, layer_bits):
    "32 bits for everything that is not rounded; biases and batch norms stay float."
    model, x = roughen(Chain()), torch.randn(1, 3, 8, 8)
    out = compress(model, x, pruning_ratio=.3, weight_bits=bits, layer_bits=layer_bits)
    weights = {n: m.weight for n, m in out.model.named_modules() if isinstance(m, LAYERS)}
    width = {n: (layer_bits or {}).get(n, bits) or 32 for n in weights}
    held = {id(w): n for n, w in weights.items()}
    total = sum(p.numel()*(width[held[id(p)]] if id(p) in held else 32) for p in out.model.parameters())
    assert out.report.totals['nominal_bytes'] == total/8
    assert out.report.totals['effective_bits'] == pytest.approx(total/sum(p.numel() for p in out.model.parameters()))
    assert {r['layer']: r['bits'] for r in out.report.rows} == width

def test_report_forms_agree():
    import csv, io, json
    out = compress(roughen(Chain()), torch.randn(1, 3, 8, 8), pruning_ratio=.3, weight_bits=4)
    rows = out.report.rows
    assert json.loads(out.report.to_json())['rows'] == rows
    read = list(csv.DictReader(io.StringIO(out.report.to_csv())))
    assert ([int(r['macs']) for r in read] == [r['macs'] for r in rows]
        and [r['reason'] for r in read] == [r['reason'] for r in rows])
    for text in (str(out.report), out.report.to_markdown(), out.report._repr_html_()):
        for r in rows: assert r['layer'] in text and r['reason'] in text
        assert f"{out.report.totals['params']:,}" in text
